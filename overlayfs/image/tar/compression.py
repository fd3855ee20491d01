"""How are compressed layers read and written?

The compression is detected by its magic number, as media types may be wrong. One thread reads or writes a stream; the
libraries release the GIL, so several streams run in parallel.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Protocol, Self

import zstandard
from isal import isal_zlib

from ..oci.errors import InvalidError, LimitError
from ..oci.limits import DEFAULT_LIMITS, VARIABLE, Limits
from .zstd_frames import FrameWalker

GZIP_MAGIC: Final = b"\x1f\x8b"  # RFC 1952, section 2.3.1
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"  # RFC 8878, section 3.1.1
ZSTD_SKIPPABLE: Final = tuple(bytes([byte]) + b"\x2a\x4d\x18" for byte in range(0x50, 0x60))  # section 3.1.2
_UNSUPPORTED: Final = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}

CHUNK: Final = 1 << 20
_READ: Final = 256 << 10
_WITH_GZIP_HEADER: Final = 31  # wbits: 15, and a header of time 0 without a name, so the same bytes every time

DEFAULT_LEVELS: Final = {"gzip": 2, "zstd": 3}


class Source(Protocol):
    """A readable stream of bytes: a file, a socket, a blob. `read` returns b"" at the end."""

    def read(self, size: int, /) -> bytes: ...


class Sink(Protocol):
    """A writable stream of bytes."""

    def write(self, data: bytes, /) -> object: ...


class _Decoder(Protocol):
    def readinto(self, buffer: bytearray | memoryview, /) -> int: ...


class _Counted:
    """A source that yields bytes which were read ahead and then `raw`, and counts the bytes read from it."""

    def __init__(self, raw: Source) -> None:
        self._raw = raw
        self._ahead = b""
        self.count = 0

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (more := self._raw.read(size - len(self._ahead))):
            self._ahead += more
        return self._ahead

    def read(self, size: int) -> bytes:
        data = self._raw.read(min(size, _READ)) if not self._ahead else self._ahead[:size]
        self._ahead = self._ahead[len(data) :]
        self.count += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Zstd:
    """Zstandard. The library takes a truncated stream for a complete one, so the frames are followed here."""

    def __init__(self, raw: _Counted, limits: Limits) -> None:
        self._raw, self._frames = raw, FrameWalker()
        decompressor = zstandard.ZstdDecompressor(max_window_size=limits.window_size)
        self._reader = decompressor.stream_reader(
            self,  # type: ignore[arg-type]
            read_size=_READ,
            read_across_frames=True,
        )

    def read(self, size: int) -> bytes:
        data = self._raw.read(size)
        self._frames.feed(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:
        count = self._reader.readinto(buffer)
        if not count and not self._frames.is_between_frames:
            raise EOFError("it is cut short")
        return count


class Decompressed:
    """The decompressed bytes of a stream. InvalidError: it is damaged or truncated; LimitError: it is too long.

    `compression` is gzip, zstd or None; `consumed` counts the compressed bytes. The source stays open."""

    def __init__(self, raw: Source, limits: Limits = DEFAULT_LIMITS, what: str = "the archive") -> None:
        self._raw = _Counted(raw)
        self._limits, self._what = limits, what
        self.size = 0
        self.compression: str | None = None
        self._decoder = self._choose()

    @property
    def consumed(self) -> int:
        return self._raw.count

    def _choose(self) -> _Decoder:
        magic = self._raw.peek(6)
        if magic.startswith(GZIP_MAGIC):
            self.compression = "gzip"
            # private, but all that the library has to read into a buffer of ours
            return isal_zlib._GzipReader(self._raw, _READ)  # type: ignore[arg-type]
        if magic.startswith((ZSTD_MAGIC, *ZSTD_SKIPPABLE)):
            self.compression = "zstd"
            return _Zstd(self._raw, self._limits)
        for start, name in _UNSUPPORTED.items():
            if magic.startswith(start):
                raise InvalidError(f"{self._what} is compressed with {name}; only gzip and zstd are known")
        return self._raw

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill a part of `buffer`; 0 at the end."""
        try:
            count = self._decoder.readinto(buffer)
        except (EOFError, isal_zlib.IsalError, zstandard.ZstdError, OverflowError) as error:  # type: ignore[misc]
            raise InvalidError(f"{self._what} is damaged: {error}") from None
        except OSError as error:
            if error.errno is not None:  # else gzip.BadGzipFile
                raise
            raise InvalidError(f"{self._what} is damaged: {error}") from None
        self.size += count
        self._check()
        return count

    def read(self, size: int = CHUNK) -> bytes:
        """At most `size` bytes; b"" at the end."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.readinto(buffer)])

    def _check(self) -> None:
        limit = self._limits.stream_size
        if self.size > limit:
            raise LimitError(f"{self._what} has more than {limit} bytes, the limit for a layer ({VARIABLE} raises it)")


def open_decompressed(raw: Source, limits: Limits = DEFAULT_LIMITS, what: str = "the archive") -> Decompressed:
    """Read `raw`: gzip, zstd (both may have several members or frames) or plain. `what` names it in errors."""
    return Decompressed(raw, limits, what)


class _Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class Compressed:
    """Compresses the data written to it into `out`, deterministically. `close` ends the stream and leaves `out` open.
    Where an exception leaves the context, the stream stays unfinished."""

    def __init__(self, out: Sink, kind: str | None, level: int | None = None) -> None:
        self._out = out
        self._encoder = _encoder(kind, level)

    def write(self, data: bytes | memoryview) -> int:
        packed = self._encoder.compress(data) if self._encoder is not None else data  # type: ignore[arg-type]
        if packed:
            self._out.write(packed)  # type: ignore[arg-type]
        return len(data)

    def close(self) -> None:
        if self._encoder is not None:
            self._out.write(self._encoder.flush())
            self._encoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()


def _encoder(kind: str | None, level: int | None) -> _Encoder | None:
    """`level` is 0 to 3 for gzip (ISA-L's), 1 to 22 for zstd."""
    if kind is None:
        return None
    if kind not in DEFAULT_LEVELS:
        raise InvalidError(f"unknown compression {kind!r}; use gzip or zstd")
    level = DEFAULT_LEVELS[kind] if level is None else level
    if kind == "gzip":
        return isal_zlib.compressobj(level, isal_zlib.DEFLATED, _WITH_GZIP_HEADER)
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=False).compressobj()


def open_compressed(out: Sink, kind: str | None, level: int | None = None) -> Compressed:
    """A writer into `out`; `kind` is gzip, zstd or None (uncompressed)."""
    return Compressed(out, kind, level)
