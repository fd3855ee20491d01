from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "<linux/fuse.h>" nogil:
    struct fuse_attr:
        uint64_t ino
        uint64_t size
        uint64_t blocks  # of 512 bytes
        uint64_t atime  # signed, as ctime and mtime
        uint64_t mtime
        uint64_t ctime
        uint32_t atimensec
        uint32_t mtimensec
        uint32_t ctimensec
        uint32_t mode
        uint32_t nlink
        uint32_t uid
        uint32_t gid
        uint32_t rdev
        uint32_t blksize
        uint32_t flags

ctypedef fuse_attr Attr


cdef enum Asked:
    # which fields of AttributeChanges count: FATTR_* (linux/fuse.h)
    ASKED_MODE = 1
    ASKED_UID = 2
    ASKED_GID = 4
    ASKED_SIZE = 8
    ASKED_ATIME = 16
    ASKED_MTIME = 32
    ASKED_CTIME = 1024


cdef class Attributes:
    cdef Attr attr


cdef int put_time(uint64_t *seconds, uint32_t *rest, time_ns) except -1
cdef Attributes shown(const Attr *attr)
cdef bint may_move_when_read(const Attr *attr) noexcept
cdef uint32_t encoded_device(uint64_t device) noexcept


cdef class AttributeChanges:
    cdef uint32_t asked
    cdef uint32_t asked_mode
    cdef uint32_t asked_uid
    cdef uint32_t asked_gid
    cdef uint64_t asked_size
    cdef int64_t asked_atime
    cdef uint32_t asked_atimensec
    cdef int64_t asked_mtime
    cdef uint32_t asked_mtimensec
    cdef int64_t asked_ctime
    cdef uint32_t asked_ctimensec
    cdef readonly bint by_writing


cdef class Caller:
    cdef readonly uint32_t uid
    cdef readonly uint32_t gid
    cdef readonly uint32_t pid
    cdef readonly uint32_t umask
    cdef readonly frozenset groups
