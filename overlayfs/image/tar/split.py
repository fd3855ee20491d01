"""What is in a tar besides the data of its files? The record by which podman makes the same tar of a tree again.

The format of tar-split (github.com/vbatts/tar-split, tar/storage/entry.go): lines of JSON, in order. A segment holds
bytes of the tar, a file stands for the data of that path, and has its size and CRC-64.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from ...tree.marks import WHITEOUT_PREFIX
from ..oci.limits import Limits
from .bytestream import ByteStream
from .compression import CHUNK, Sink, Source
from .crc64 import crc64
from .reader import Entry, TarReader

_FILE, _SEGMENT = 1, 2
_LARGEST_SEGMENT: Final = 1 << 20


class Split(NamedTuple):
    """What was found: the length of the tar, and the files whose path the tar has more than once."""

    length: int
    repeated: frozenset[bytes]


def write_split(tar: Source, out: Sink, limits: Limits, what: str, embedded: frozenset[bytes] = frozenset()) -> Split:
    """Write the record of a tar. Raises the errors of TarReader.

    A tree does not have the data of a file that another one replaces, nor perhaps that other one: where paths are
    repeated, the record is to be written again with them `embedded`, their data as parts of segments.
    """
    work = _Work(tar, out, limits, what, embedded)
    work.run()
    return Split(work.length, frozenset(work.repeated))


class _Recorded(ByteStream):
    """Hands every byte that is taken to `record`, while there is one."""

    def __init__(self, chunks: Iterator[bytes], record: Callable[[bytes | memoryview], None]) -> None:
        super().__init__(chunks)
        self.record: Callable[[bytes | memoryview], None] | None = record

    def take(self, size: int) -> bytes:
        record, self.record = self.record, None
        data = super().take(size)
        self.record = record
        if record:
            record(data)
        return data

    def piece(self, size: int) -> memoryview:
        piece = super().piece(size)
        if self.record:
            self.record(piece)
        return piece


class _Work:
    """One pass over a tar. The data of the files `embedded` are not left out."""

    def __init__(self, tar: Source, out: Sink, limits: Limits, what: str, embedded: frozenset[bytes]) -> None:
        self._stream = _Recorded(iter(lambda: tar.read(CHUNK), b""), self._record)
        self._reader = TarReader(self._stream, limits, what)
        self._out, self._embedded = out, embedded
        self._segment, self._position = bytearray(), 0
        self._seen: set[bytes] = set()
        self.repeated: set[bytes] = set()
        self.length = 0

    def run(self) -> None:
        for entry in self._reader:
            if entry.path in self._seen:
                self.repeated.add(entry.path)
            if entry.kind == "f":
                self._seen.add(entry.path)
            if _is_whole_in_tree(entry) and entry.path not in self._embedded:
                self._leave_out(entry)
        self._reader.drain()
        self._flush()

    def _record(self, data: bytes | memoryview) -> None:
        self._segment += data
        self.length += len(data)
        if len(self._segment) > _LARGEST_SEGMENT:
            self._flush()

    def _flush(self) -> None:
        if self._segment:
            self._write({"type": _SEGMENT, "payload": base64.b64encode(self._segment).decode()})
            self._segment.clear()

    def _leave_out(self, entry: Entry) -> None:
        self._flush()
        self._stream.record, checksum = None, 0
        for piece in self._reader.read_data():
            checksum = crc64(piece, checksum)
        self._stream.record = self._record
        self.length += entry.size
        payload = base64.b64encode(checksum.to_bytes(8, "big")).decode()
        self._write({"type": _FILE, **_named(entry.path), "size": entry.size, "payload": payload})

    def _write(self, line: dict[str, Any]) -> None:
        self._out.write(msgspec.json.encode({**line, "position": self._position}) + b"\n")
        self._position += 1


def _is_whole_in_tree(entry: Entry) -> bool:
    """Whether the tree has exactly the bytes that the tar has for it."""
    is_marker = entry.path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX)
    return entry.kind == "f" and entry.size > 0 and entry.sparse is None and not is_marker


def _named(path: bytes) -> dict[str, str]:
    try:
        return {"name": path.decode()}
    except UnicodeDecodeError:
        return {"name_raw": base64.b64encode(path).decode()}
