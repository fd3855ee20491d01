"""Requests as no kernel sends them: valid ones of each opcode, most of them damaged in one way or another.

All that is random comes from one seed. A pool of bodies is made first, as that is slow, and messages are put together
from it: a body, an opcode that mostly fits it, a node.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from overlayfs.fuse import abi
from overlayfs.fuse.abi import Opcode
from overlayfs.tree.fileflags import FLAG_COMMANDS

POOL: Final = 2048  # bodies; a power of two
_PLAIN: Final = (b"file", b"large", b"link", b"d", b"new", b"new2", b"e", b"entry0", b"entry1", b"pipe", b"hard")
_STRANGE: Final = (
    b"", b".", b"..", b"/", b"a/b", b"../outside/secret", b"../../outside/new", b"/etc/hostname", b"d/entry0",
    b"n" * 255, b"n" * 256, b"n" * 5000, b"\xff\xfe", b"\n", b".wh.file", b".wh..wh..opq", b"#1", b"a\0b", b"file\0",
)  # fmt: skip
_XATTRS: Final = (
    b"user.a", b"user.b", b"trusted.a", b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"security.capability",
    b"system.posix_acl_access", b"system.posix_acl_default", b"user.overlayfs.status", b"user.overlayfs.status.1",
    b"user.", b"", b"nonsense", b"user." + b"x" * 300,
)  # fmt: skip
_NUMBERS: Final = (
    0, 1, 2, 7, 8, 15, 16, 100, 4095, 4096, 4097, 1 << 16, 600_000, 1 << 20, (1 << 20) + 4080, (1 << 20) + 4096,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1,
)  # fmt: skip
_SMALL: Final = (0, 1, 8, 24, 160, 200, 512, 4096)
_U32: Final = 0xFFFF_FFFF
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
# Where a body names a second node.
_NODE_AT: Final = {Opcode.LINK: 0, Opcode.RENAME: 0, Opcode.RENAME2: 0, Opcode.COPY_FILE_RANGE: 16}
_IN_DIRECTORIES: Final = {
    Opcode.LOOKUP, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME,
    Opcode.RENAME2, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE, Opcode.READDIR, Opcode.READDIRPLUS, Opcode.OPENDIR,
    Opcode.RELEASEDIR, Opcode.FSYNCDIR,
}  # fmt: skip
# What fills the tree comes more often than what empties it.
_OFTEN: Final = (Opcode.LOOKUP, Opcode.LOOKUP, Opcode.LOOKUP, Opcode.CREATE, Opcode.MKDIR, Opcode.WRITE)


class Nodes:
    """Those that have been heard of lately; there is always one of each kind."""

    _KEPT: Final = 64

    def __init__(self) -> None:
        self.directories = [1]
        self.files = [1]
        self._heard = 0

    def note(self, node: int, mode: int) -> None:
        kind = self.directories if stat.S_ISDIR(mode) else self.files
        self._heard += 1
        if len(kind) < self._KEPT:
            kind.append(node)
        else:
            kind[1 + self._heard % (self._KEPT - 1)] = node


class Bodies:
    """What may follow a header, valid: a method `_<opcode>` for each kind of body."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def of(self, opcode: Opcode) -> bytes:
        make: Callable[[], bytes] = getattr(self, f"_{opcode.name.lower()}", self._nothing)
        return make()

    def _pick(self, values: Sequence[int]) -> int:
        return self._random.choice(values)

    def _number(self) -> int:
        return self._pick(_SMALL) if self._random.random() < 0.7 else self._pick(_NUMBERS)

    def _word(self) -> int:
        return self._number() & _U32

    def _mode(self) -> int:
        return self._random.getrandbits(12)

    def _name(self) -> bytes:
        if self._random.random() < 0.8:
            return self._random.choice(_PLAIN) + b"\0"
        return self._random.choice(_STRANGE) + b"\0"

    def _nothing(self) -> bytes:
        return bytes(self._pick((0, 8, 16, 40)))

    _lookup = _unlink = _rmdir = _name

    def _symlink(self) -> bytes:
        return self._name() + self._random.choice((b"file\0", b"../outside/secret\0", b"t" * 4096 + b"\0", b"\0"))

    def _mknod(self) -> bytes:
        kind = self._pick((stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, 0, 0xF000))
        return abi.MKNOD_IN.pack(kind | self._mode(), self._word(), self._mode(), 0) + self._name()

    def _mkdir(self) -> bytes:
        return struct.pack("<II", self._mode(), self._mode()) + self._name()

    def _create(self) -> bytes:
        return abi.CREATE_IN.pack(self._word(), stat.S_IFREG | self._mode(), self._mode(), 0) + self._name()

    _tmpfile = _create

    def _forget(self) -> bytes:
        return struct.pack("<Q", self._pick((1, 1, 1, 2, 0, 1 << 40, _U64)))

    def _batch_forget(self) -> bytes:
        count = self._pick((0, 1, 2, 5))
        said = count if self._random.random() < 0.7 else self._word()
        pairs = (struct.pack("<QQ", self._number(), self._number()) for _ in range(count))
        return struct.pack("<II", said, 0) + b"".join(pairs)

    def _interrupt(self) -> bytes:
        return struct.pack("<Q", self._number())

    def _getattr(self) -> bytes:
        return struct.pack("<IIQ", self._pick((0, 1)), 0, self._number())

    def _setattr(self) -> bytes:
        valid = self._random.getrandbits(12) & ~(abi.FATTR_UID if self._random.random() < 0.5 else 0)
        times = [self._random.getrandbits(64) - (1 << 63) if self._random.random() < 0.1 else 1 for _ in range(3)]
        rest = [self._word() for _ in range(3)]
        size = self._number()
        return abi.SETATTR_IN.pack(valid, 0, 0, size, 0, *times, *rest, self._mode(), 0, self._word(), 0, 0)

    def _statx(self) -> bytes:
        return struct.pack("<IIQII", 0, 0, 0, 0, self._word())

    def _rename(self) -> bytes:
        return abi.RENAME_IN.pack(1) + self._name() + self._name()

    def _rename2(self) -> bytes:
        return abi.RENAME2_IN.pack(1, self._pick((0, 0, 1, 2, 3, 4, _U32)), 0) + self._name() + self._name()

    def _link(self) -> bytes:
        return abi.LINK_IN.pack(1) + self._name()

    def _open(self) -> bytes:
        return abi.OPEN_IN.pack(self._pick((os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC, _U32)), 0)

    _opendir = _open

    def _release(self) -> bytes:
        return struct.pack("<QIIQ", self._number(), 0, 0, 0)

    _releasedir = _flush = _release

    def _read(self) -> bytes:
        return abi.READ_IN.pack(self._number(), self._number(), self._word(), 0, 0, self._word(), 0)

    _readdir = _readdirplus = _read

    def _write(self) -> bytes:
        data = b"w" * self._pick((0, 1, 5, 100, 100, 5000))
        said = len(data) if self._random.random() < 0.8 else self._word()
        flags = self._pick((0, 0, abi.FUSE_WRITE_CACHE, abi.FUSE_WRITE_KILL_SUIDGID, _U32))
        return abi.WRITE_IN.pack(0, self._number(), said, flags, 0, self._word(), 0) + data

    def _fsync(self) -> bytes:
        return abi.FSYNC_IN.pack(0, self._pick((0, 1, _U32)), 0)

    _fsyncdir = _fsync

    def _xattr(self) -> bytes:
        return self._random.choice(_XATTRS if self._random.random() < 0.5 else _XATTRS[:2]) + b"\0"

    def _setxattr(self) -> bytes:
        value = b"v" * self._pick((0, 1, 20, 300))
        said = len(value) if self._random.random() < 0.8 else self._word()
        return abi.SETXATTR_IN.pack(said, self._pick((0, 0, 0, 1, 2, _U32))) + self._xattr() + value

    def _getxattr(self) -> bytes:
        return abi.GETXATTR_IN.pack(self._word(), 0) + self._xattr()

    def _listxattr(self) -> bytes:
        return abi.GETXATTR_IN.pack(self._word(), 0)

    _removexattr = _xattr

    def _ioctl(self) -> bytes:
        command = self._pick((*FLAG_COMMANDS, 0x5401))
        data = bytes(self._random.choices((0, 0x10, 0x20, 0x40), k=self._pick((0, 4, 28))))
        said = len(data) if self._random.random() < 0.8 else self._word()
        return abi.IOCTL_IN.pack(0, 0, command, 0, said, self._pick((0, 4, 28, 100, _U32))) + data

    def _fallocate(self) -> bytes:
        mode = self._pick((0, 1, 3, 8, 16, 0x20, 0x40, _U32))
        return abi.FALLOCATE_IN.pack(0, self._number(), self._number(), mode, 0)

    def _lseek(self) -> bytes:
        offset = self._number()
        return struct.pack("<QQII", 0, offset, self._pick((0, 1, 2, os.SEEK_DATA, os.SEEK_HOLE, 99, _U32)), 0)

    def _copy_file_range(self) -> bytes:
        return abi.COPY_FILE_RANGE_IN.pack(0, self._number(), 1, 0, self._number(), self._number(), 0)

    _copy_file_range_64 = _copy_file_range

    def _init(self) -> bytes:
        return abi.INIT_IN.pack(7, 31, 1 << 20, _U32, _U32) + bytes(44)


_WITH_BODY: Final = tuple(opcode for opcode in Opcode if hasattr(Bodies, f"_{opcode.name.lower()}"))
_OPCODES: Final = (*Opcode, *_WITH_BODY * 3, *_OFTEN * 2)


class Messages:
    """An endless row of messages to `nodes`, which whoever sends them keeps up to date."""

    def __init__(self, seed: int, nodes: Nodes) -> None:
        self._random = Random(seed)
        self._nodes = nodes
        self._unique = 0
        bodies = Bodies(self._random)
        opcodes = self._random.choices(_OPCODES, k=POOL)
        self._pool = [(opcode, self._damaged(bodies.of(opcode))) for opcode in opcodes]

    def next(self) -> bytes:
        """One message: mostly a whole header and a body from the pool."""
        bits = self._random.getrandbits(64)
        opcode, body = self._pool[bits % POOL]
        self._unique += 2
        at = _NODE_AT.get(opcode)
        if at is not None and len(body) >= at + 8:
            wants_directory = opcode in (Opcode.RENAME, Opcode.RENAME2)
            body = body[:at] + self._node(bits >> 48, wants_directory).to_bytes(8, "little") + body[at + 8 :]
        node = self._node(bits >> 32, opcode in _IN_DIRECTORIES)
        if not bits >> 16 & 0x3F:
            return self._strange(opcode, node, body)
        return abi.IN_HEADER.pack(abi.IN_HEADER.size + len(body), opcode, self._unique, node, 0, 0, 1, 0, 0) + body

    def _node(self, bits: int, wants_directory: bool) -> int:
        """Mostly one of the kind that is wanted, sometimes of another, and sometimes one that there cannot be."""
        luck, bits = bits & 0x1F, bits >> 5 & 0x7FF
        if not luck:
            return _NUMBERS[bits % len(_NUMBERS)]
        kind = self._nodes.directories if wants_directory is (luck > 3) else self._nodes.files
        return kind[bits % len(kind)]

    def _strange(self, opcode: int, node: int, body: bytes) -> bytes:
        """A header that lies, ends early or asks for something else; or no message at all."""
        random = self._random
        kind = random.randrange(6)
        if kind == 0:
            return random.randbytes(random.randrange(1, 200))
        if kind < 3:
            opcode = random.choice((random.randrange(70), 4096, _U32))
        length = random.choice((0, 40, 1 << 20, _U32)) if kind > 3 else abi.IN_HEADER.size + len(body)
        ids = random.getrandbits(32), random.getrandbits(32), random.getrandbits(32)
        message = abi.IN_HEADER.pack(length, opcode, self._unique, node, *ids, random.getrandbits(16), 0) + body
        return message[: random.randrange(1, abi.IN_HEADER.size + 8)] if kind == 4 else message

    def _damaged(self, body: bytes) -> bytes:
        """Three of five bodies stay as they are."""
        random = self._random
        if random.random() < 0.6:
            return body
        kind = random.randrange(6)
        at = random.randrange(len(body) + 1)
        if kind == 0:
            return body[:at]
        if kind == 1:
            return body + random.randbytes(random.choice((1, 8, 100)))
        if kind == 2:
            return body[:-1]
        if kind == 3:
            return body[:at] + random.randbytes(4) + body[at + 4 :]
        if kind == 4:
            return body[:at] + b"\0" + body[at + 1 :]
        place = at & ~7
        return body[:place] + random.choice(_NUMBERS).to_bytes(8, "little") + body[place + 8 :]
