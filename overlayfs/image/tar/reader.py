"""What are the members of the tar of a layer?

One pass over a stream of chunks of any size, without seeking and without holding a file in memory. Reads the formats
that occur in layers: ustar, pax (POSIX.1-2017, pax, "ustar Interchange Format"), GNU (`tar` manual, "Basic Tar Format")
and V7 headers. Where readers differ, this one agrees with Go's archive/tar, on which most container tools are built, so
that all see the same members. Paths are normalised; nothing here touches a filesystem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from ...tree.marks import WHITEOUT_PREFIX
from ..oci.errors import InvalidError, LimitError, named
from ..oci.limits import DEFAULT_LIMITS, Limits
from . import pax
from . import sparse as tarsparse
from .bytestream import ByteStream
from .compression import CHUNK, Source
from .header import BLOCK, Header, number, parse_header
from .tally import Tally

_END: Final = bytes(BLOCK)
_METADATA_IN_A_ROW: Final = 16
_KINDS: Final = {b"0": "f", b"\0": "f", b"7": "f", b"S": "f", b"1": "h", b"2": "l", b"3": "c", b"4": "b", b"5": "d"}
_KINDS[b"6"] = "p"
_MAX_ID: Final = (1 << 32) - 2  # -1 means "leave it" to chown(2)
_LARGEST_MAJOR, _LARGEST_MINOR = (1 << 12) - 1, (1 << 20) - 1  # linux/kdev_t.h
_LONGEST_TARGET: Final = 4095


class Entry(Struct, frozen=True):
    """One member. `path` and a hard link's `target` are relative to the layer's root, without `.`, `..` or a slash at
    either end; b"" is the root. A symlink's `target` is as it is stored.

    `kind` is a letter: `f` file, `h` hard link, `l` symlink, `d` directory, `p` fifo, `c` and `b` devices. `mode` are
    permission bits (07777). `size` is a file's, in bytes, with its holes; `sparse` the extents (offset, length) that
    its data consists of, None where that is all of it. `mtime_ns` may be out of the range that a disk can hold.
    """

    path: bytes
    kind: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = {}
    sparse: tuple[tuple[int, int], ...] | None = None


class TarReader:
    """The members of a tar. Iterate over them; the data of a file can be read until the next member is requested.

    Raises InvalidError, which names the member, for malformed members and paths that lead out of the tree, LimitError
    where a limit is exceeded. A stream may end without the end marker, as other readers accept that too.
    """

    def __init__(
        self,
        chunks: Iterable[bytes | memoryview] | ByteStream,
        limits: Limits = DEFAULT_LIMITS,
        what: str = "the layer",
    ) -> None:
        """`chunks` are consecutive pieces of the stream; a chunk is not used after the next was requested."""
        self._stream = chunks if isinstance(chunks, ByteStream) else ByteStream(chunks)
        self._limits, self._what = limits, what
        self._member = b""
        self._data = 0  # bytes of the member's data that have not been read
        self._padding = 0
        self._has_begun = False  # a header with a valid checksum was read
        self._tally = Tally(limits, what)

    @classmethod
    def of(cls, source: Source, limits: Limits = DEFAULT_LIMITS, what: str = "the archive") -> TarReader:
        return cls(iter(lambda: source.read(CHUNK), b""), limits, what)

    def __iter__(self) -> Iterator[Entry]:
        while True:
            try:
                entry = self._next()
            except ValueError as error:
                raise self._error(str(error)) from None
            if entry is None:
                return
            yield entry

    def read_data(self) -> Iterator[memoryview]:
        """The data of the member, without holes, in pieces that are valid until the next piece is requested."""
        while self._data:
            piece = self._stream.piece(self._data)
            if not piece:
                raise self._error("the archive ends in the middle of it")
            self._data -= len(piece)
            yield piece

    def drain(self) -> None:
        """Read the bytes after the end marker, so that the hash of the stream covers all of it."""
        self._stream.drain()

    def _next(self) -> Entry | None:
        records, long_names = pax.Records(), dict[bytes, bytes]()
        for count in range(_METADATA_IN_A_ROW + 1):
            header = self._header()
            if header is None:
                if count:
                    raise self._error("the archive ends after an extended header")
                return None
            if header.flag not in b"xgLK":
                records.values = {**long_names, **records.values}
                return self._entry(header, records)
            data = self._whole_data(header.size)
            if header.flag == b"x":
                records = pax.parse(data)
            elif header.flag != b"g":  # global headers are ignored, as by all container tools
                long_names[pax.PATH if header.flag == b"L" else pax.LINK_PATH] = data.partition(b"\0")[0]
        raise self._error("too many extended headers follow each other")

    def _header(self) -> Header | None:
        """The next header; None at the end marker and at the end of the stream."""
        if not self._stream.skip(self._data + self._padding):
            raise self._error("the archive ends in the middle of it")
        self._data = self._padding = 0
        block = self._stream.take(BLOCK)
        if not block:
            return None
        if len(block) != BLOCK:
            if not self._has_begun:
                raise InvalidError(f"{self._what} is no tar archive")
            raise self._error("the archive ends in the middle of a header after it")
        if block == _END:
            if self._stream.take(BLOCK) not in (_END, b""):
                raise self._error("a block of zeros follows it, but not the end")
            return None
        try:
            header = parse_header(block)
        except ValueError as error:
            if not self._has_begun:
                raise InvalidError(f"{self._what} is no tar archive: at its start {error}") from None
            raise ValueError(f"in the header after it, {error}") from None
        self._has_begun = True
        self._data, self._padding = header.size, -header.size % BLOCK
        return header

    def _whole_data(self, size: int) -> bytes:
        if size > self._limits.header_size:
            raise LimitError(
                f"{self._what}: an extended header after {named(self._member)} has {size} bytes; "
                f"at most {self._limits.header_size} are allowed"
            )
        return b"".join(bytes(piece) for piece in self.read_data())

    def _entry(self, header: Header, records: pax.Records) -> Entry:
        raw = records.name(b"GNU.sparse.name") or records.name(pax.PATH) or header.name
        self._member = raw
        kind = _KINDS.get(header.flag)
        if kind is None:
            raise self._error(f"members of type {header.flag!r} are unknown")
        size = records.number(pax.SIZE)
        if size is not None and kind == "f":
            self._data, self._padding = size, -size % BLOCK
        if kind == "f" and header.flag in (b"0", b"\0") and raw.endswith(b"/"):
            kind = "d"  # as V7's tar wrote them
        elif kind != "f":
            self._data = self._padding = 0  # whatever their size says
        real_size, sparse = self._extents(header, records) if kind == "f" else (0, None)
        self._tally.add(raw, real_size)
        path, time_ns = self._path(raw), records.time_ns()
        if not path and kind != "d":
            raise self._error("the root of a layer is a directory")
        return Entry(
            path,
            kind,
            header.mode,
            self._id(records.number(pax.UID), header.uid),
            self._id(records.number(pax.GID), header.gid),
            real_size,
            header.mtime * 1_000_000_000 if time_ns is None else time_ns,
            self._target(kind, records.name(pax.LINK_PATH) or header.link),
            self._device(header.device),
            records.xattrs(),
            sparse,
        )

    def _extents(self, header: Header, records: pax.Records) -> tuple[int, tarsparse.Extents | None]:
        limit, values = self._limits.sparse_extents, records.values
        if header.flag == b"S":
            *numbers, size = tarsparse.old_format(header.block, lambda: self._stream.take(BLOCK), number, limit)
        elif values.get(b"GNU.sparse.major") == b"1" and values.get(b"GNU.sparse.minor") == b"0":
            numbers, size = tarsparse.leading_map(self._block_of_data, limit), self._real_size(records)
        elif records.extents or b"GNU.sparse.map" in values:
            numbers, size = tarsparse.pax_map(records), self._real_size(records)
        else:
            return self._data, None
        return size, tarsparse.checked(numbers, size, self._data, limit)

    def _real_size(self, records: pax.Records) -> int:
        size = records.number(b"GNU.sparse.realsize")
        size = records.number(b"GNU.sparse.size") if size is None else size
        if size is None:
            raise ValueError("its sparse map does not tell its size")
        return size

    def _block_of_data(self) -> bytes:
        if self._data < BLOCK:
            raise ValueError("the sparse map is cut short")
        self._data -= BLOCK
        return self._stream.take(BLOCK)

    def _path(self, raw: bytes) -> bytes:
        """The path without empty and `.` components; `..` is refused, as no tool has a good reason to write it."""
        parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise self._error("its path leads out of the layer")
        limits = self._limits
        path = b"/".join(parts)
        if len(path) > limits.path_length:
            raise LimitError(f"{self._what}: the path {named(raw)} has more than {limits.path_length} bytes")
        if len(path) > limits.name_length:
            self._check_names(raw, parts)
        return path

    def _check_names(self, raw: bytes, parts: list[bytes]) -> None:
        """Raises LimitError for a long name; the prefix of a whiteout does not count."""
        *parents, last = parts
        for name in (*parents, last.removeprefix(WHITEOUT_PREFIX)):
            if len(name) > self._limits.name_length:
                raise LimitError(f"{self._what}: {named(raw)} has a name of more than {self._limits.name_length} bytes")

    def _target(self, kind: str, raw: bytes) -> bytes:
        if kind == "h":
            if not (path := self._path(raw)):
                raise self._error("a hard link to the root")
            return path
        if kind != "l":
            return b""
        if not raw or len(raw) > _LONGEST_TARGET:
            raise self._error("the target of a symlink has 1 to 4095 bytes")
        return raw

    def _id(self, extended: int | None, plain: int) -> int:
        value = plain if extended is None else extended
        if value > _MAX_ID:
            raise self._error(f"{value} is no owner")
        return value

    def _device(self, device: tuple[int, int]) -> tuple[int, int]:
        if device[0] > _LARGEST_MAJOR or device[1] > _LARGEST_MINOR:
            raise self._error(f"{device[0]}:{device[1]} is no device number")
        return device

    def _error(self, problem: str) -> InvalidError:
        return InvalidError(f"{self._what}: {named(self._member)}: {problem}")
