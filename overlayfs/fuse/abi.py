"""How do the kernel's FUSE messages look? No I/O.

Layouts, numbers and flags are those of linux/fuse.h, protocol 7.x, little-endian; each `Struct` is named after the C
struct that it is.
"""

from __future__ import annotations

import errno
import struct
from enum import IntEnum

from overlayfs._typing import Final


class Opcode(IntEnum):
    """The operation that a request asks for (enum fuse_opcode)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


OPCODE_LIMIT: Final = 64  # above every opcode there is
WITHOUT_REPLY: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY})

# -- INIT flags

FUSE_ASYNC_READ: Final = 1 << 0
FUSE_ATOMIC_O_TRUNC: Final = 1 << 3
FUSE_EXPORT_SUPPORT: Final = 1 << 4
FUSE_BIG_WRITES: Final = 1 << 5
FUSE_DONT_MASK: Final = 1 << 6
FUSE_AUTO_INVAL_DATA: Final = 1 << 12
FUSE_DO_READDIRPLUS: Final = 1 << 13
FUSE_ASYNC_DIO: Final = 1 << 15
FUSE_WRITEBACK_CACHE: Final = 1 << 16
FUSE_HANDLE_KILLPRIV: Final = 1 << 19
FUSE_POSIX_ACL: Final = 1 << 20
FUSE_MAX_PAGES: Final = 1 << 22
FUSE_CACHE_SYMLINKS: Final = 1 << 23
FUSE_HANDLE_KILLPRIV_V2: Final = 1 << 28
FUSE_INIT_EXT: Final = 1 << 30
FUSE_PASSTHROUGH: Final = 1 << 37

# -- flags of other messages

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11
FATTR_ALL: Final = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PASSTHROUGH: Final = 1 << 7
FUSE_FSYNC_FDATASYNC: Final = 1 << 0
FUSE_WRITE_CACHE: Final = 1 << 0
FUSE_WRITE_KILL_SUIDGID: Final = 1 << 2

# -- messages

MAJOR, MINOR = 7, 31  # the protocol that we speak; what is newer is asked for by flags
MAX_BACKGROUND: Final = 64  # readahead and write-back requests that the kernel has under way at once
MAX_PAGES: Final = 256  # of data in one request
LONGEST_REQUEST: Final = (1 << 20) + 4096  # max_pages of data and one page of header

IN_HEADER: Final = struct.Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
OUT_HEADER: Final = struct.Struct("<IiQ")  # len, error (a negative errno), unique
# What stands between nodeid and attributes in fuse_entry_out: generation, entry_valid, attr_valid, and their ns.
NODE: Final = struct.Struct("<Q")
ENTRY_TIMES: Final = struct.Struct("<QQQII")
ENTRY_SIZE: Final = 8 + ENTRY_TIMES.size + 88
ATTR_TIMES: Final = struct.Struct("<QII")  # the start of fuse_attr_out: attr_valid, its ns, dummy
# valid, padding, fh, size, lock_owner, atime, mtime, ctime, their ns, mode, unused, uid, gid, unused
SETATTR_IN: Final = struct.Struct("<IIQQQqqqIIIIIIII")
MKNOD_IN: Final = struct.Struct("<IIII")  # mode, rdev, umask, padding
LINK_IN: Final = struct.Struct("<Q")  # oldnodeid
RENAME_IN: Final = struct.Struct("<Q")  # newdir
RENAME2_IN: Final = struct.Struct("<QII")  # newdir, flags, padding
OPEN_IN: Final = struct.Struct("<II")  # flags, open_flags
OPEN_OUT: Final = struct.Struct("<QIi")  # fh, open_flags, backing_id
CREATE_IN: Final = struct.Struct("<IIII")  # flags, mode, umask, open_flags
READ_IN: Final = struct.Struct("<QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
WRITE_IN: Final = struct.Struct("<QQIIQII")  # fh, offset, size, write_flags, lock_owner, flags, padding
WRITE_OUT: Final = struct.Struct("<II")  # size, padding
FSYNC_IN: Final = struct.Struct("<QII")  # fh, fsync_flags, padding
SETXATTR_IN: Final = struct.Struct("<II")  # size, flags; then the name with its NUL, and the value
GETXATTR_IN: Final = struct.Struct("<II")  # size, padding
GETXATTR_OUT: Final = struct.Struct("<II")  # size, padding
# blocks, bfree, bavail, files, ffree; bsize, namelen, frsize, padding; spare
STATFS_OUT: Final = struct.Struct("<QQQQQIIII24x")
DIRENT: Final = struct.Struct("<QII")  # off, namelen, type; after the inode number, before the name padded to 8
DIRENT_SIZE: Final = 8 + DIRENT.size
FALLOCATE_IN: Final = struct.Struct("<QQQII")  # fh, offset, length, mode, padding
LSEEK_IN: Final = struct.Struct("<QqII")  # fh, offset, whence, padding
LSEEK_OUT: Final = struct.Struct("<Q")  # offset
COPY_FILE_RANGE_IN: Final = struct.Struct("<QQQQQQQ")  # fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
COPY_FILE_RANGE_OUT: Final = struct.Struct("<Q")  # bytes copied
IOCTL_IN: Final = struct.Struct("<QIIQII")  # fh, flags, cmd, arg, in_size, out_size
IOCTL_OUT: Final = struct.Struct("<iIII")  # result, flags, in_iovs, out_iovs
FUSE_NOTIFY_INVAL_INODE: Final = 2  # in the place of an errno, for the request 0
NOTIFY_INVAL_INODE_OUT: Final = struct.Struct("<Qqq")  # ino; offset, negative: attributes alone; length
# fuse_statx_out: attr_valid, its ns, flags; then fuse_statx: mask, blksize, attributes, nlink, uid, gid, mode, ino,
# size, blocks, attributes_mask; seconds and ns of atime, btime, ctime, mtime; device numbers of the node and the mount
STATX_OUT: Final = struct.Struct("<QII16xIIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIII112x")
STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800

# fuse_init_in: major, minor, max_readahead, flags, flags2.
INIT_IN: Final = struct.Struct("<IIIII")
# fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, max_stack_depth.
INIT_OUT: Final = struct.Struct("<IIIIHHIIHHII")
INIT_OUT_SIZE: Final = 64  # with what is reserved
_STACK_DEPTH: Final = 1  # filesystems under ours: files on another overlay cannot be passed through
_FLAGS, _MAX_BACKGROUND, _CONGESTION_THRESHOLD, _FLAGS2, _MAX_STACK_DEPTH = 3, 4, 5, 10, 11

BACKING_MAP: Final = struct.Struct("<iIQ")  # fd, flags, padding
FUSE_DEV_IOC_BACKING_OPEN: Final = 0x4010E501
FUSE_DEV_IOC_BACKING_CLOSE: Final = 0x4004E502


# enum fuse_notify_code
_NOTIFY_INVAL_INODE: Final = 2
_NOTIFY_INVAL_ENTRY: Final = 3
_NOTIFY_INC_EPOCH: Final = 8  # Linux 6.16
_NOTIFY_INVAL_INODE_MESSAGE: Final = struct.Struct("<IiQQqq")  # the header, then ino, off, len
_NOTIFY_INVAL_ENTRY_OUT: Final = struct.Struct("<QII")  # parent, namelen, flags; then the name with its NUL


def texts(body: memoryview, count: int) -> list[bytes]:
    """The strings that a message ends with, each with its NUL; OSError with EIO where they are not so many."""
    *found, after = bytes(body).split(b"\0")
    if len(found) != count or after:
        raise OSError(errno.EIO, "a message ends without a name")
    return found


def names(body: memoryview, count: int) -> list[bytes]:
    """As `texts`, for names of directory entries: EIO for a path."""
    found = texts(body, count)
    for name in found:
        refuse_path(name)
    return found


def refuse_path(name: bytes) -> None:
    """A path would lead out of the layer."""
    if not name or b"/" in name:
        raise OSError(errno.EIO, "a message with a path for a name")


def invalidation(node: int) -> bytes:
    """FUSE_NOTIFY_INVAL_INODE: the kernel writes back a file's dirty pages and drops its page cache."""
    return _NOTIFY_INVAL_INODE_MESSAGE.pack(_NOTIFY_INVAL_INODE_MESSAGE.size, _NOTIFY_INVAL_INODE, 0, node, 0, 0)


def entry_invalidation(parent: int, name: bytes) -> bytes:
    """FUSE_NOTIFY_INVAL_ENTRY: the kernel drops a name, also one that it knows to be absent."""
    body = _NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), _NOTIFY_INVAL_ENTRY, 0) + body


def new_epoch() -> bytes:
    """FUSE_NOTIFY_INC_EPOCH: the kernel looks every name up anew. EINVAL where it does not know this."""
    return OUT_HEADER.pack(OUT_HEADER.size, _NOTIFY_INC_EPOCH, 0)


def init_flags(request: bytes) -> int:
    """What the kernel offers in its INIT request: flags, with flags2 above them."""
    _major, _minor, _readahead, low, high = INIT_IN.unpack_from(request, IN_HEADER.size)
    return int(low | high << 32 if low & FUSE_INIT_EXT else low)


def offered_readahead(request: bytes) -> int:
    """The longest readahead, in bytes, that the kernel offers in its INIT request."""
    return int(INIT_IN.unpack_from(request, IN_HEADER.size)[2])


def init_reply(request: bytes, wanted: int) -> bytes:
    """The whole answer to an INIT request: of the flags `wanted`, those that the kernel offers."""
    flags = init_flags(request) & wanted
    if flags >> 32:
        flags |= FUSE_INIT_EXT
    body = INIT_OUT.pack(
        MAJOR, MINOR, offered_readahead(request), flags & 0xFFFF_FFFF,
        MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4, MAX_PAGES << 12, 1, MAX_PAGES, 0, flags >> 32,
        _STACK_DEPTH if flags & FUSE_PASSTHROUGH else 0,
    )  # fmt: skip
    unique = IN_HEADER.unpack_from(request)[2]
    body += bytes(INIT_OUT_SIZE - len(body))
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def edit_init_reply(reply: bytes, cleared: int, added: int) -> bytes:
    """An INIT reply with some flags changed and more requests at once allowed; an error reply is left alone."""
    if len(reply) < OUT_HEADER.size + INIT_OUT.size:
        return reply
    fields = list(INIT_OUT.unpack_from(reply, OUT_HEADER.size))
    flags = (fields[_FLAGS] | fields[_FLAGS2] << 32) & ~cleared | added
    if flags >> 32:
        flags |= FUSE_INIT_EXT
    fields[_FLAGS], fields[_FLAGS2] = flags & 0xFFFF_FFFF, flags >> 32
    fields[_MAX_BACKGROUND], fields[_CONGESTION_THRESHOLD] = MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4
    if flags & FUSE_PASSTHROUGH:
        fields[_MAX_STACK_DEPTH] = _STACK_DEPTH
    return reply[: OUT_HEADER.size] + INIT_OUT.pack(*fields) + reply[OUT_HEADER.size + INIT_OUT.size :]
