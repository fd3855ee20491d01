"""What is in a tar besides the data of its files? The record by which podman makes the same tar of a tree again.

The format of tar-split (github.com/vbatts/tar-split, tar/storage/entry.go): lines of JSON, in order. A segment holds
bytes of the tar, a file stands for the data of that path, and has its size and CRC-64.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import xxhash

from ..oci.limits import Limits
from .bytestream import ByteStream
from .compression import Sink
from .crc64 import crc64
from .reader import Entry, TarReader

_FILE, _SEGMENT = 1, 2
_LARGEST_SEGMENT: Final = 1 << 20


class Split(NamedTuple):
    """The length of the tar, and the paths of the files left out whose data the tree does not have in that place."""

    length: int
    unlike: frozenset[bytes]


def write_split(
    chunks: Iterable[bytes | memoryview],
    out: Sink,
    limits: Limits,
    what: str,
    tree: Mapping[bytes, bytes],
    embedded: frozenset[bytes] = frozenset(),
) -> Split:
    """Write the record of a tar. Raises the errors of TarReader.

    `tree` has the xxh3-128 of each file of the tree that was made of the tar. A member of another path is a part of
    segments with its data, and so is one that is `embedded`. A path that the tar has twice, or a file that a member
    behind a symlink has replaced, is known at the end only: then the record is to be written again with `unlike`.
    """
    work = _Work(chunks, out, limits, what, tree, embedded)
    work.run()
    return Split(work.length, frozenset(work.unlike))


class _Recorded(ByteStream):
    """Hands every byte that is taken to `record`, while there is one."""

    def __init__(self, chunks: Iterable[bytes | memoryview], record: Callable[[bytes | memoryview], None]) -> None:
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
    """One pass over a tar."""

    def __init__(
        self,
        chunks: Iterable[bytes | memoryview],
        out: Sink,
        limits: Limits,
        what: str,
        tree: Mapping[bytes, bytes],
        embedded: frozenset[bytes],
    ) -> None:
        self._stream = _Recorded(chunks, self._record)
        self._reader = TarReader(self._stream, limits, what)
        self._out, self._tree, self._embedded = out, tree, embedded
        self._segment, self._position = bytearray(), 0
        self._left_out: set[bytes] = set()
        self.unlike: set[bytes] = set()
        self.length = 0

    def run(self) -> None:
        for entry in self._reader:
            if self._is_in_tree(entry) and entry.path not in self._embedded:
                self._leave_out(entry)
        self._reader.drain()
        self._flush()

    def _is_in_tree(self, entry: Entry) -> bool:
        """Whether the tree may have the bytes that the tar has for it; those of a sparse file are others."""
        return entry.kind == "f" and entry.size > 0 and entry.sparse is None and entry.path in self._tree

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
        self._stream.record, checksum, content = None, 0, xxhash.xxh3_128()
        for piece in self._reader.read_data():
            checksum = crc64(piece, checksum)
            content.update(piece)
        self._stream.record = self._record
        if entry.path in self._left_out or content.digest() != self._tree[entry.path]:
            self.unlike.add(entry.path)
        self._left_out.add(entry.path)
        self.length += entry.size
        payload = base64.b64encode(checksum.to_bytes(8, "big")).decode()
        self._write({"type": _FILE, **_named(entry.path), "size": entry.size, "payload": payload})

    def _write(self, line: dict[str, Any]) -> None:
        self._out.write(msgspec.json.encode({**line, "position": self._position}) + b"\n")
        self._position += 1


def _named(path: bytes) -> dict[str, str]:
    try:
        return {"name": path.decode()}
    except UnicodeDecodeError:
        return {"name_raw": base64.b64encode(path).decode()}
