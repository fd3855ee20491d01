"""How is a tar read that docker would unpack? Whatever its compression: besides those of layers bzip2 and xz."""

from __future__ import annotations

import bz2
import lzma
from io import BufferedReader
from typing import Any, Final

from ...image.oci.errors import InvalidError
from ...image.oci.limits import Limits
from ...image.tar.compression import GZIP_MAGIC, ZSTD_MAGIC, open_decompressed

_OTHERS: Final[tuple[tuple[bytes, Any], ...]] = ((b"BZh", bz2.BZ2File), (b"\xfd7zXZ\0", lzma.LZMAFile))
_COMPRESSED: Final = (GZIP_MAGIC, ZSTD_MAGIC, *(magic for magic, _ in _OTHERS))
_USTAR: Final = slice(257, 262)


def is_archive(raw: BufferedReader) -> bool:
    """Whether the stream, which is at its start, is compressed or a tar. Nothing is read from it."""
    head = raw.peek(512)
    return head.startswith(_COMPRESSED) or is_tar(head)


def is_tar(head: bytes) -> bool:
    return head[_USTAR] == b"ustar"


def decompressed(raw: BufferedReader, limits: Limits, what: str) -> Any:
    """A stream of the content. Raises InvalidError, here and when it is read."""
    head = raw.peek(6)
    for magic, opener in _OTHERS:
        if head.startswith(magic):
            return _Checked(opener(raw), what)
    return open_decompressed(raw, limits, what)


class _Checked:
    """A stream whose damage is an InvalidError."""

    def __init__(self, stream: Any, what: str) -> None:
        self._stream, self._what = stream, what

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except (EOFError, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's
            raise InvalidError(f"{self._what} is damaged: {error}") from None
        return data
