"""How is a tar read that docker would unpack? Whatever its compression: besides those of layers bzip2 and xz."""

from __future__ import annotations

import bz2
import lzma
from io import BufferedReader
from typing import Any, Final

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
            return opener(raw)
    return open_decompressed(raw, limits, what)
