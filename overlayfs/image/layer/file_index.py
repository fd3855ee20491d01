"""What does a layer hold? The file index: one record for each member, with a hash of each file's content.

The index is written when a layer is unpacked. It answers all questions about an image that need no file content (the
changes of a layer, waste, the difference of two images), and `verify` compares the tree with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from ..oci.digest import Digest
from ..oci.errors import InvalidError

VERSION: Final = 1


class Record(Struct, frozen=True, array_like=True, gc=False):
    """One path of a layer, relative and without a leading slash; b"" is the root.

    `kind` is a letter: `f` file, `h` hard link to `target` (another path of this layer, or of one below), `l` symlink,
    `d` directory, `p` fifo, `c` and `b` devices, `w` whiteout of `path`. `mode` are permission bits (07777). `content`
    is the xxh3-128 of a file's bytes, 16 bytes. `xattrs` are those visible in the image. An opaque directory hides
    its contents in the layers below.
    """

    path: bytes
    kind: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    target: bytes = b""
    content: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = {}
    is_opaque: bool = False


class LayerIndex(Struct, frozen=True):
    """The records of one layer in byte order of their paths; `size` is the sum of the files' sizes in bytes."""

    version: int
    diff_id: Digest
    size: int
    records: Sequence[Record]


def dump_index(index: LayerIndex) -> bytes:
    import zstandard  # few commands read or write an index

    return zstandard.ZstdCompressor(level=3).compress(msgspec.msgpack.encode(index))


def parse_index(data: bytes, what: str) -> LayerIndex:
    """Decode an index. Raises InvalidError, in which `what` names the index."""
    import zstandard

    try:
        index = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data), type=LayerIndex)
    except (msgspec.MsgspecError, zstandard.ZstdError) as error:
        raise InvalidError(f"{what}: the file index is damaged: {error}") from None
    if index.version != VERSION:
        raise InvalidError(f"{what}: the file index is of another version of overlayfs")
    return index
