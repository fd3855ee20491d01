# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Which data do requests and replies carry: the caller, attribute changes, attributes?

Compiled, as the attributes of a file are the C struct that the kernel is sent.
"""

cimport cython
from libc.string cimport memcpy
from libc.time cimport time

import os

cdef enum:
    _DAY_S = 86400
cdef int64_t _S = 1000000000  # ns
cdef frozenset _NO_GROUPS = frozenset()


@cython.freelist(16)
@cython.final
cdef class Caller:
    """Who asks: the ids are those seen inside the mount. `groups` are the supplementary ones, and only filled in where
    they count."""

    def __init__(self, uint32_t uid, uint32_t gid, uint32_t pid=0, uint32_t umask=0, frozenset groups=_NO_GROUPS):
        self.uid, self.gid, self.pid, self.umask, self.groups = uid, gid, pid, umask, groups


@cython.freelist(16)
@cython.final
cdef class AttributeChanges:
    """The attribute changes of a setattr; None leaves a field alone. Times are in ns since the epoch, `size` is in
    bytes.

    `ctime_ns` cannot be set and is ignored. `by_writing` says that anybody who writes to the file may ask for it: the
    present as both times, or to lose setuid.
    """

    def __init__(
        self, mode=None, uid=None, gid=None, size=None, atime_ns=None, mtime_ns=None, ctime_ns=None,
        bint by_writing=False,
    ):
        if mode is not None:
            self.asked_mode, self.asked = mode, self.asked | ASKED_MODE
        if uid is not None:
            self.asked_uid, self.asked = uid, self.asked | ASKED_UID
        if gid is not None:
            self.asked_gid, self.asked = gid, self.asked | ASKED_GID
        if size is not None:
            self.asked_size, self.asked = size, self.asked | ASKED_SIZE
        if atime_ns is not None:
            put_time(<uint64_t *>&self.asked_atime, &self.asked_atimensec, atime_ns)
            self.asked |= ASKED_ATIME
        if mtime_ns is not None:
            put_time(<uint64_t *>&self.asked_mtime, &self.asked_mtimensec, mtime_ns)
            self.asked |= ASKED_MTIME
        if ctime_ns is not None:
            put_time(<uint64_t *>&self.asked_ctime, &self.asked_ctimensec, ctime_ns)
            self.asked |= ASKED_CTIME
        self.by_writing = by_writing

    @property
    def mode(self):
        return self.asked_mode if self.asked & ASKED_MODE else None

    @property
    def uid(self):
        return self.asked_uid if self.asked & ASKED_UID else None

    @property
    def gid(self):
        return self.asked_gid if self.asked & ASKED_GID else None

    @property
    def size(self):
        return self.asked_size if self.asked & ASKED_SIZE else None

    @property
    def atime_ns(self):
        return time_of(self.asked_atime, self.asked_atimensec) if self.asked & ASKED_ATIME else None

    @property
    def mtime_ns(self):
        return time_of(self.asked_mtime, self.asked_mtimensec) if self.asked & ASKED_MTIME else None

    @property
    def ctime_ns(self):
        return time_of(self.asked_ctime, self.asked_ctimensec) if self.asked & ASKED_CTIME else None

    @property
    def is_nothing(self):
        """Whether no field is to change."""
        return not self.asked

    def with_mode(self, uint32_t mode, bint by_writing):
        """The same with another mode."""
        return AttributeChanges(
            mode, self.uid, self.gid, self.size, self.atime_ns, self.mtime_ns, self.ctime_ns, by_writing
        )


def encode_device(device):
    """A device number in 32 bits, as the kernel's new_encode_dev."""
    return encoded_device(device)


cdef uint32_t encoded_device(uint64_t device) noexcept:
    cdef uint32_t major = (device >> 8 & 0xFFF) | (device >> 32 & 0xFFFFF000)  # gnu_dev_major(3)
    cdef uint32_t minor = (device & 0xFF) | (device >> 12 & 0xFFFFFF00)
    return minor & 0xFF | major << 8 | (minor & ~<uint32_t>0xFF) << 12


def decode_device(encoded):
    """The device number that `encode_device` gives these bits."""
    return os.makedev(encoded >> 8 & 0xFFF, encoded & 0xFF | encoded >> 12 & 0xFFF00)


cdef int put_time(uint64_t *seconds, uint32_t *rest, time_ns) except -1:
    """Split a time, which may be before 1970 or long after 2262, as the kernel does."""
    whole, part = divmod(time_ns, _S)
    seconds[0], rest[0] = <uint64_t><int64_t>whole, part
    return 0


cdef object time_of(int64_t seconds, uint32_t rest):
    """In ns since the epoch."""
    return seconds * <object>_S + rest


cdef Attributes shown(const Attr *attr):
    """A copy that stays as it is when the file changes."""
    cdef Attributes found = Attributes.__new__(Attributes)
    found.attr = attr[0]
    return found


cdef bint may_move_when_read(const Attr *attr) noexcept:
    """Whether a read moves the access time under relatime (mount(8)): it is no later than another, or a day old."""
    cdef int64_t accessed = attr.atime, modified = attr.mtime, changed = attr.ctime
    if accessed < modified or (accessed == modified and attr.atimensec <= attr.mtimensec):
        return True
    if accessed < changed or (accessed == changed and attr.atimensec <= attr.ctimensec):
        return True
    return accessed < time(NULL) - _DAY_S


@cython.freelist(64)
@cython.final
cdef class Attributes:
    """stat(2) of a file in the merged tree, as it was when it was asked for."""

    @staticmethod
    def pack(
        uint64_t ino, uint32_t mode, uint32_t nlink, uint32_t uid, uint32_t gid, uint64_t rdev=0, uint64_t size=0,
        uint64_t blocks=0, uint32_t blksize=4096, atime_ns=0, mtime_ns=0, ctime_ns=0,
    ):
        """Times in ns since the epoch, `size` in bytes, `blocks` of 512 bytes."""
        cdef Attributes made = Attributes.__new__(Attributes)
        cdef Attr *attr = &made.attr
        attr.ino, attr.size, attr.blocks, attr.blksize = ino, size, blocks, blksize
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev = mode, nlink, uid, gid, encoded_device(rdev)
        put_time(&attr.atime, &attr.atimensec, atime_ns)
        put_time(&attr.mtime, &attr.mtimensec, mtime_ns)
        put_time(&attr.ctime, &attr.ctimensec, ctime_ns)
        attr.flags = 0
        return made

    def changed(self, **fields):
        """With some of the arguments of `pack` different."""
        names = (
            "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blocks", "blksize", "atime_ns", "mtime_ns", "ctime_ns"
        )
        return Attributes.pack(**{name: getattr(self, name) for name in names} | fields)

    @property
    def packed(self):
        """The struct fuse_attr (linux/fuse.h), 88 bytes."""
        return (<char *>&self.attr)[:sizeof(Attr)]

    def __eq__(self, other):
        return isinstance(other, Attributes) and self.packed == (<Attributes>other).packed

    def __hash__(self):
        return hash(self.packed)

    def __repr__(self):
        return f"<Attributes of {self.attr.ino}: mode {self.attr.mode:o}, {self.attr.size} bytes>"

    @property
    def ino(self):
        return self.attr.ino

    @property
    def size(self):
        return self.attr.size

    @property
    def blocks(self):
        return self.attr.blocks

    @property
    def atime_ns(self):
        return time_of(self.attr.atime, self.attr.atimensec)

    @property
    def mtime_ns(self):
        return time_of(self.attr.mtime, self.attr.mtimensec)

    @property
    def ctime_ns(self):
        return time_of(self.attr.ctime, self.attr.ctimensec)

    @property
    def mode(self):
        return self.attr.mode

    @property
    def nlink(self):
        return self.attr.nlink

    @property
    def uid(self):
        return self.attr.uid

    @property
    def gid(self):
        return self.attr.gid

    @property
    def rdev(self):
        return decode_device(self.attr.rdev)

    @property
    def blksize(self):
        return self.attr.blksize

    @property
    def directory_type(self):
        """The d_type of readdir(3): the file type, S_IFMT shifted right by 12."""
        return self.attr.mode >> 12 & 0xF
