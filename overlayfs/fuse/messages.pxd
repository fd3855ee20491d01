"""The kernel's FUSE messages as C structs: those that the lane reads and writes itself (linux/fuse.h)."""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

from overlayfs.overlay.values cimport fuse_attr


cdef extern from "<linux/fuse.h>" nogil:
    cdef enum:
        FUSE_LOOKUP, FUSE_FORGET, FUSE_GETATTR, FUSE_SETATTR, FUSE_READLINK, FUSE_MKDIR, FUSE_UNLINK, FUSE_RMDIR
        FUSE_READ, FUSE_WRITE, FUSE_GETXATTR, FUSE_LISTXATTR, FUSE_READDIR, FUSE_READDIRPLUS, FUSE_CREATE
        FUSE_SYMLINK, FATTR_ATIME_NOW, FATTR_MTIME_NOW, FATTR_CTIME
        FUSE_BATCH_FORGET, FUSE_INTERRUPT, FUSE_NOTIFY_REPLY, FUSE_WRITE_KILL_SUIDGID, FUSE_WRITE_CACHE
        FUSE_NOTIFY_INVAL_INODE

    struct fuse_entry_out:
        uint64_t nodeid
        uint64_t generation
        uint64_t entry_valid
        uint64_t attr_valid
        uint32_t entry_valid_nsec
        uint32_t attr_valid_nsec
        fuse_attr attr

    struct fuse_attr_out:
        uint64_t attr_valid
        uint32_t attr_valid_nsec
        uint32_t dummy
        fuse_attr attr

    struct fuse_in_header:
        uint32_t len
        uint32_t opcode
        uint64_t unique
        uint64_t nodeid
        uint32_t uid
        uint32_t gid
        uint32_t pid

    struct fuse_out_header:
        uint32_t len
        int32_t error
        uint64_t unique

    struct fuse_notify_inval_inode_out:
        uint64_t ino
        int64_t off
        int64_t len

    struct fuse_forget_in:
        uint64_t nlookup

    struct fuse_forget_one:
        uint64_t nodeid
        uint64_t nlookup

    struct fuse_batch_forget_in:
        uint32_t count

    struct fuse_mkdir_in:
        uint32_t mode
        uint32_t umask

    struct fuse_create_in:
        uint32_t flags
        uint32_t mode
        uint32_t umask
        uint32_t open_flags

    struct fuse_open_out:
        uint64_t fh
        uint32_t open_flags

    struct fuse_read_in:
        uint64_t fh
        uint64_t offset
        uint32_t size

    struct fuse_write_in:
        uint64_t fh
        uint64_t offset
        uint32_t size
        uint32_t write_flags
        uint64_t lock_owner
        uint32_t flags

    struct fuse_write_out:
        uint32_t size
        uint32_t padding

    struct fuse_setattr_in:
        uint32_t valid
        uint64_t size
        uint64_t atime
        uint64_t mtime
        uint64_t ctime
        uint32_t atimensec
        uint32_t mtimensec
        uint32_t ctimensec
        uint32_t mode
        uint32_t uid
        uint32_t gid

    struct fuse_getxattr_in:
        uint32_t size

    struct fuse_getxattr_out:
        uint32_t size
        uint32_t padding

    struct fuse_dirent:
        uint64_t ino
        uint64_t off
        uint32_t namelen
        uint32_t type
        char name[0]

    struct fuse_direntplus:
        fuse_entry_out entry_out
        fuse_dirent dirent
