"""Where are bytes kept under their digest? In the `blobs` of an OCI image layout (image-layout.md).

A blob is published by a rename after its bytes were synced; readers check its size and digest. Any number of threads
and processes may write the same blob: the last rename wins, with the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from ..oci.digest import ALGORITHM, Digest, digest_from, digest_of, hex_of
from ..oci.documents import MAX_DOCUMENT, Descriptor
from ..oci.errors import DigestError, LimitError, NotFoundError
from .records import UNREADABLE
from .staging import Staging, sync_directory

OCTETS = "application/octet-stream"
_BUFFER = 1 << 20


class Blobs:
    """The blobs of one layout; new ones are staged on the same filesystem."""

    def __init__(self, layout: Path, staging: Staging) -> None:
        self._blobs = layout / "blobs" / ALGORITHM
        self._staging = staging

    def has_blob(self, digest: Digest) -> bool:
        return self.blob_path(digest).is_file()

    def blob_path(self, digest: Digest) -> Path:
        return self._blobs / hex_of(digest)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """The bytes of a small document, verified. Raises NotFoundError, DigestError, LimitError."""
        if descriptor.size > MAX_DOCUMENT:
            raise LimitError(f"{descriptor.digest} has {descriptor.size} bytes; a document has at most {MAX_DOCUMENT}")
        try:
            with self.open_blob(descriptor) as blob:
                return blob.read()
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            raise DigestError(f"{descriptor.digest} cannot be read: {error.strerror} (see overlayfs verify)") from None

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Open a blob, with the checks of `verified`; the caller closes it. Raises NotFoundError, DigestError."""
        try:
            raw = open(self.blob_path(descriptor.digest), "rb", buffering=0)  # noqa: SIM115 - the caller's
        except FileNotFoundError:
            raise NotFoundError(f"{descriptor.digest} is not in the store: load or pull its image again") from None
        size = os.fstat(raw.fileno()).st_size
        if size != descriptor.size:
            raw.close()
            raise DigestError(
                f"{descriptor.digest} has {size} bytes in the store instead of {descriptor.size} (see overlayfs verify)"
            )
        return verified(raw, descriptor)

    def new_blob(self, expected: Descriptor | None = None) -> BlobWriter:
        """A writer for a new blob. More bytes than `expected` are refused at once."""
        return BlobWriter(self._blobs, self._staging, expected)

    def add_blob(self, data: bytes, media_type: str) -> Descriptor:
        """Keep `data` as a blob, atomically."""
        with self.new_blob(Descriptor(media_type, digest_of(data), len(data))) as blob:
            blob.write(data)
            return blob.commit()

    def adopt_blob(self, staged: Path, digest: Digest) -> None:
        """Publish a staged file whose digest the caller has verified. Its bytes are synced when this returns."""
        fd = os.open(staged, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        staged.rename(self.blob_path(digest))
        sync_directory(self._blobs)


class BlobWriter:
    """Writes one blob; leaving the `with` without `commit` discards it. For one thread at a time."""

    def __init__(self, blobs: Path, staging: Staging, expected: Descriptor | None) -> None:
        self._blobs = blobs
        self._expected = expected
        self._path = staging.new_name()
        self._hash = hashlib.sha256()
        self._file = open(self._path, "xb", buffering=_BUFFER)  # noqa: SIM115 - closed by `discard` or `commit`
        self._is_committed = False
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append; DigestError as soon as there are more bytes than expected."""
        size = memoryview(data).nbytes
        self.size += size
        if self._expected is not None and self.size > self._expected.size:
            raise DigestError(f"{self._expected.digest} has more than its {self._expected.size} bytes")
        self._hash.update(data)
        self._file.write(data)
        return size

    def commit(self, expected: Descriptor | None = None, media_type: str = "") -> Descriptor:
        """Sync and publish the blob; its descriptor.

        DigestError if the blob is not the `expected` one (given here or to `new_blob`). The media type is that of the
        expected blob, or `media_type`.
        """
        expected = expected or self._expected
        written = Descriptor(media_type or OCTETS, digest_from(self._hash), self.size)
        if expected is not None:
            check_content(expected, written.digest, written.size)
            written = expected
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.rename(self._blobs / hex_of(written.digest))
        self._is_committed = True
        sync_directory(self._blobs)
        return written

    def discard(self) -> None:
        """Discard the written bytes, unless they were committed."""
        if self._is_committed:
            return
        self._path.unlink(missing_ok=True)
        with suppress(OSError):  # unflushed bytes are discarded; the file is closed all the same
            self._file.close()


def check_content(expected: Descriptor, digest: Digest, size: int) -> None:
    """Raises DigestError if digest or size differ from the expected ones."""
    if size != expected.size:
        raise DigestError(f"{expected.digest} has {size} bytes instead of {expected.size}")
    if digest != expected.digest:
        raise DigestError(f"{expected.digest} has other content: its digest is {digest}")


def verified(raw: io.RawIOBase | io.BufferedIOBase | BinaryIO, descriptor: Descriptor) -> BinaryIO:
    """A reader of `raw` that raises DigestError at the end if the bytes do not match `descriptor`.

    Closing it closes `raw`. A caller that stops before the end has verified nothing.
    """
    return cast("BinaryIO", _VerifiedReader(raw, descriptor))


class _VerifiedReader(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase | io.BufferedIOBase | BinaryIO, descriptor: Descriptor) -> None:
        self._raw = raw
        self._descriptor = descriptor
        self._hash = hashlib.sha256()
        self._size = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return self._read_all()
        data = self._raw.read(size) or b""
        if size:
            self._take(data)
        return data

    def _read_all(self) -> bytes:
        parts = []
        while part := self.read(_BUFFER):
            parts.append(part)
        return b"".join(parts)

    def readall(self) -> bytes:
        return self._read_all()

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _take(self, data: bytes) -> None:
        """Hash and count the next bytes; b"" means the end."""
        self._hash.update(data)
        self._size += len(data)
        if self._size > self._descriptor.size or not data:
            check_content(self._descriptor, digest_from(self._hash), self._size)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
