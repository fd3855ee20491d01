"""How do the kernel's FUSE messages look? No I/O.

Layouts and values are those of linux/fuse.h, protocol 7.x.
"""

from __future__ import annotations

import struct
from typing import Final

# struct fuse_out_header, then the start of struct fuse_init_out: major, minor, max_readahead, flags.
_INIT_FLAGS: Final = struct.Struct("<I")
_INIT_FLAGS_OFFSET: Final = 16 + 12

FUSE_ATOMIC_O_TRUNC: Final = 1 << 3
FUSE_DONT_MASK: Final = 1 << 6
FUSE_HANDLE_KILLPRIV: Final = 1 << 19
FUSE_CACHE_SYMLINKS: Final = 1 << 23

LONGEST_REQUEST: Final = (1 << 20) + 4096  # max_pages of data and one page of header


def edit_init_reply(reply: bytes, cleared: int, added: int) -> bytes:
    """An INIT reply with some flags changed; an error reply is left alone."""
    if len(reply) < _INIT_FLAGS_OFFSET + _INIT_FLAGS.size:
        return reply
    edited = bytearray(reply)
    (flags,) = _INIT_FLAGS.unpack_from(edited, _INIT_FLAGS_OFFSET)
    _INIT_FLAGS.pack_into(edited, _INIT_FLAGS_OFFSET, flags & ~cleared | added)
    return bytes(edited)
