# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Which system calls do we need that the standard library does not have, or that are made for every request?

All functions take directory descriptors and names, so that callers never resolve a path outside a layer's root.
Thread-safe: no state. The GIL is let go where a call may wait for a disk.

Compiled, as C structs and calls of the C library are its substance. syscalls.pxd has the same calls for compiled
modules, without exceptions.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_AsStringAndSize, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EBADF, EEXIST, EINTR, EINVAL, ENOSYS, EOPNOTSUPP, EOVERFLOW, EPERM
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import errno as errors
import os

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long command, ...)

cdef extern from "Python.h":
    object PyErr_SetFromErrnoWithFilenameObject(object kind, object name)

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/aio_abi.h>
    #include <malloc.h>
    #include <sched.h>
    #include <signal.h>
    #include <sys/mount.h>
    #include <sys/prctl.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/vfs.h>
    #include <unistd.h>

    /* The same on every architecture; older headers do not have them. */
    #ifndef SYS_open_tree
    #define SYS_open_tree 428
    #endif
    #ifndef SYS_openat2
    #define SYS_openat2 437
    #endif
    #ifndef SYS_mount_setattr
    #define SYS_mount_setattr 442
    #endif

    struct overlayfs_open_how { uint64_t flags, mode, resolve; };

    static int overlayfs_openat2(int dir_fd, const char *path, int flags, uint64_t resolve)
    {
        struct overlayfs_open_how how = { (uint64_t)(unsigned int)flags, 0, resolve };
        return (int)syscall(SYS_openat2, dir_fd, path, &how, sizeof how);
    }

    static int overlayfs_open_tree(const char *path, unsigned int flags)
    {
        return (int)syscall(SYS_open_tree, AT_FDCWD, path, flags);
    }

    static int overlayfs_mount_setattr(int fd, const void *attributes, size_t size)
    {
        return (int)syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, attributes, size);
    }

    static void overlayfs_trim_memory(void)
    {
    #ifdef __GLIBC__
        malloc_trim(0);
    #endif
    }

    static int overlayfs_io_setup(unsigned int most, aio_context_t *context)
    {
        return (int)syscall(SYS_io_setup, most, context);
    }

    static int overlayfs_io_destroy(aio_context_t context)
    {
        return (int)syscall(SYS_io_destroy, context);
    }

    static int overlayfs_io_submit(aio_context_t context, struct iocb *block)
    {
        return (int)syscall(SYS_io_submit, context, 1L, &block);
    }

    /* Only where a timespec of the system call is that of the C library: on 64 bits, which is where it is used. */
    static int overlayfs_io_getevents(aio_context_t context, long least, long most, struct io_event *events, long wait_ns)
    {
        struct timespec wait = { 0, wait_ns };
        return (int)syscall(SYS_io_getevents, context, least, most, events, &wait);
    }
    """
    struct file_handle_t "file_handle":
        unsigned int handle_bytes
        int handle_type
        unsigned char f_handle[0]
    struct statx_timestamp:
        int64_t tv_sec
        uint32_t tv_nsec
    struct statx_t "statx":
        uint32_t stx_mask
        uint64_t stx_attributes
        statx_timestamp stx_btime
    struct statfs_t "statfs":
        long f_type
    ctypedef unsigned long aio_context_t
    struct iocb:
        uint64_t aio_data
        unsigned short aio_lio_opcode
        uint32_t aio_fildes
        uint32_t aio_flags
        uint32_t aio_resfd
    struct io_event:
        uint64_t data
        int64_t res
    enum:
        STATX_BTIME, PR_SET_DUMPABLE, PR_SET_PDEATHSIG, SIGKILL, MNT_DETACH, UMOUNT_NOFOLLOW
        IOCB_CMD_FSYNC, IOCB_CMD_FDSYNC, IOCB_FLAG_RESFD

    int overlayfs_openat2(int dir_fd, const char *path, int flags, uint64_t resolve) nogil
    int overlayfs_open_tree(const char *path, unsigned int flags) nogil
    int overlayfs_mount_setattr(int fd, const void *attributes, size_t size) nogil
    void overlayfs_trim_memory() nogil
    int overlayfs_io_setup(unsigned int most, aio_context_t *context) nogil
    int overlayfs_io_destroy(aio_context_t context) nogil
    int overlayfs_io_submit(aio_context_t context, iocb *block) nogil
    int overlayfs_io_getevents(aio_context_t context, long least, long most, io_event *events, long wait_ns) nogil
    int name_to_handle_at(int dir_fd, const char *name, file_handle_t *handle, int *mount_id, int flags) nogil
    int c_statx "statx"(int dir_fd, const char *name, int flags, unsigned int mask, statx_t *out) nogil
    int fstatfs(int fd, statfs_t *out) nogil
    int c_mount "mount"(const char *source, const char *target, const char *kind, unsigned long flags, const void *data) nogil
    int umount2(const char *target, int flags) nogil
    int c_unshare "unshare"(int flags) nogil
    int c_setns "setns"(int fd, int kind) nogil
    int prctl(int option, ...) nogil
    int fallocate(int fd, int mode, int64_t offset, int64_t length) nogil
    int syncfs(int fd) nogil

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

# A descriptor that names a directory and nothing else, never through a symlink.
OPEN_DIRECTORY = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
# A descriptor that names any file, the symlink itself included.
OPEN_NODE = O_PATH | O_NOFOLLOW | O_CLOEXEC

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x0002_0000, 0x1000_0000, 0x2000_0000

cdef struct mount_attributes:  # struct mount_attr
    uint64_t set
    uint64_t clear
    uint64_t propagation
    uint64_t userns_fd

cdef bytes _mount_attributes(uint64_t set, uint64_t clear, uint64_t propagation):
    cdef mount_attributes attributes = mount_attributes(set, clear, propagation, 0)
    return PyBytes_FromStringAndSize(<char *>&attributes, sizeof(attributes))

cdef bytes _MAKE_PRIVATE = _mount_attributes(0, 0, 1 << 18)
MOUNT_READ_ONLY = _mount_attributes(0x01, 0, 0)
MOUNT_NOATIME = _mount_attributes(0x10, 0x70, 0)  # an access time policy takes the place of another

cdef enum:
    _OPEN_TREE_CLONE = 1
    _NO_MAGICLINKS = 0x02  # RESOLVE_*, linux/openat2.h
    _NO_SYMLINKS = 0x04
    _BENEATH = 0x08
    _IN_ROOT = 0x10
    _TMPFS_MAGIC = 0x01021994
    _MAX_HANDLE_SIZE = 128
    _LONGEST_PATH = 4000  # below PATH_MAX, with room for the terminating NUL
    _SECOND_NS = 1_000_000_000
    _MOST_SYNCS = 64  # at once
cdef int64_t _RAMFS_MAGIC = 0x858458F6
cdef int64_t _LAST_SECOND = 9_000_000_000  # whose nanoseconds are sure to fit into 64 bits


# -- for this module and access


cdef int fail(int code, bytes name) except -1:
    """Raise the OSError of an errno."""
    global errno
    errno = code
    PyErr_SetFromErrnoWithFilenameObject(OSError, name)
    return -1


cdef int checked(const char **text, bytes name) except -1:
    """A name as C wants it; ValueError where a NUL byte would cut it short, TypeError where it is not bytes."""
    PyBytes_AsStringAndSize(name, <char **>text, NULL)
    return 0


# -- what a file is


@cython.final
@cython.freelist(32)
cdef class Stat:
    """The stat(2) of a file, with the attribute names of os.stat_result."""

    def is_same_file(self, Stat other not None):
        """As os.path.samestat."""
        return self.st.st_ino == other.st.st_ino and self.st.st_dev == other.st.st_dev

    @property
    def st_mode(self): return self.st.st_mode

    @property
    def st_ino(self): return self.st.st_ino

    @property
    def st_dev(self): return self.st.st_dev

    @property
    def st_nlink(self): return self.st.st_nlink

    @property
    def st_uid(self): return self.st.st_uid

    @property
    def st_gid(self): return self.st.st_gid

    @property
    def st_rdev(self): return self.st.st_rdev

    @property
    def st_size(self): return self.st.st_size

    @property
    def st_blksize(self): return self.st.st_blksize

    @property
    def st_blocks(self): return self.st.st_blocks

    @property
    def st_atime_ns(self): return _nanoseconds(&self.st.st_atim)

    @property
    def st_mtime_ns(self): return _nanoseconds(&self.st.st_mtim)

    @property
    def st_ctime_ns(self): return _nanoseconds(&self.st.st_ctim)

    @property
    def st_atime(self): return self.st.st_atim.tv_sec + 1e-9 * self.st.st_atim.tv_nsec

    @property
    def st_mtime(self): return self.st.st_mtim.tv_sec + 1e-9 * self.st.st_mtim.tv_nsec

    @property
    def st_ctime(self): return self.st.st_ctim.tv_sec + 1e-9 * self.st.st_ctim.tv_nsec


cdef object _nanoseconds(const timespec *time):
    if -_LAST_SECOND < time.tv_sec < _LAST_SECOND:
        return <int64_t>time.tv_sec * _SECOND_NS + time.tv_nsec
    return int(time.tv_sec) * 1_000_000_000 + time.tv_nsec


cdef Stat new_stat(const stat_t *st):
    cdef Stat found = Stat.__new__(Stat)
    found.st = st[0]
    return found


cpdef Stat stat_of(int fd):
    """fstat(2)."""
    cdef stat_t st
    cdef int code = try_stat_of(fd, &st)
    if code:
        fail(code, None)
    return new_stat(&st)


def birth_time(int fd):
    """When the file was made, in ns since the epoch; None where the filesystem does not tell (statx(2))."""
    cdef statx_t found
    if c_statx(fd, b"", AT_EMPTY_PATH, STATX_BTIME, &found) != 0:
        fail(errno, b"")
    if not found.stx_mask & STATX_BTIME:
        return None
    return int(found.stx_btime.tv_sec) * 1_000_000_000 + found.stx_btime.tv_nsec


cpdef file_attributes(int dir_fd, bytes name):
    """The STATX_ATTR_* bits of `name` in `dir_fd`, never of what a symlink leads to (statx(2))."""
    cdef statx_t found
    cdef const char *text
    checked(&text, name)
    if c_statx(dir_fd, text, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH, 0, &found) != 0:
        fail(errno, name)
    return found.stx_attributes


def is_in_memory(int fd):
    """True for tmpfs and ramfs (by statfs(2)), where no I/O ever waits for a disk."""
    cdef statfs_t found
    return fstatfs(fd, &found) == 0 and (found.f_type == _TMPFS_MAGIC or found.f_type == _RAMFS_MAGIC)


@cython.final
cdef class FileHandle:
    """The file handle of name_to_handle_at(2): stable as long as the filesystem exists."""

    cdef readonly int type
    cdef readonly bytes bytes
    cdef readonly int mount_id


cpdef file_handle(int fd):
    """The handle of the file that `fd` refers to, None where the filesystem has no handles."""
    cdef uint32_t room[34]  # the struct's two integers, and _MAX_HANDLE_SIZE bytes
    cdef file_handle_t *handle = <file_handle_t *>room
    cdef FileHandle found
    cdef int mount_id
    handle.handle_bytes = _MAX_HANDLE_SIZE
    if name_to_handle_at(fd, b"", handle, &mount_id, AT_EMPTY_PATH) != 0:
        if errno in (EOPNOTSUPP, EOVERFLOW, ENOSYS, EPERM):
            return None
        fail(errno, b"")
    found = FileHandle.__new__(FileHandle)
    found.type = handle.handle_type
    found.bytes = PyBytes_FromStringAndSize(<char *>handle.f_handle, handle.handle_bytes)
    found.mount_id = mount_id
    return found


# -- paths, and what is opened by them


cpdef bytes descriptor_path(int fd):
    """A path that names what `fd` refers to, for calls that take no descriptor (xattrs, scandir, chmod of O_PATH)."""
    cdef char path[DESCRIPTOR_PATH_SIZE]
    return PyBytes_FromStringAndSize(path, write_descriptor_path(path, fd))


cpdef bytes entry_path(int dir_fd, bytes name):
    """A path of `name` in the directory `dir_fd`; safe with calls that do not follow a final symlink."""
    return descriptor_path(dir_fd) + b"/" + name


cpdef int open_beneath(int root_fd, bytes path, int flags) except -1:
    """Open `path` below `root_fd` without following any symlink; an empty path is the root itself.

    Raises ELOOP or ENOTDIR where a component is a symlink, EXDEV where the path would lead out. Paths longer than
    PATH_MAX are walked in pieces. The caller owns the descriptor.
    """
    cdef int fd
    if not path:
        path = b"."
    if len(path) <= _LONGEST_PATH:
        return _openat2(root_fd, path, flags | O_CLOEXEC)
    head, tail = _cut(path)
    fd = _openat2(root_fd, head, OPEN_DIRECTORY)
    try:
        return open_beneath(fd, tail, flags)
    finally:
        close(fd)


cdef tuple _cut(bytes path):
    slash = path.rfind(b"/", 0, _LONGEST_PATH)
    if slash <= 0:
        raise OSError(errors.ENAMETOOLONG, os.strerror(errors.ENAMETOOLONG), path)
    return path[:slash], path[slash + 1 :]


def open_in_root(int root_fd, bytes path not None, int flags):
    """Open `path` as a process would whose root directory is `root_fd`: no symlink and no `..` leads out.

    Needs Linux 5.6, ENOSYS without. The caller owns the descriptor.
    """
    cdef int fd
    cdef int code = _resolve(root_fd, path, flags | O_CLOEXEC, _NO_MAGICLINKS | _IN_ROOT, &fd)
    if code:
        fail(code, path)
    return fd


cdef int _openat2(int dir_fd, bytes path, int flags) except -1:
    cdef int fd
    cdef int code = _resolve(dir_fd, path, flags, _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH, &fd)
    if code == ENOSYS:
        return _walk_open(dir_fd, path, flags)
    if code:
        fail(code, path)
    return fd


cdef int _resolve(int dir_fd, bytes path, int flags, uint64_t resolve, int *fd) except -1:
    """openat2(2), as a `try_*` function."""
    cdef const char *text
    cdef int code
    checked(&text, path)
    while True:
        with nogil:
            fd[0] = overlayfs_openat2(dir_fd, text, flags, resolve)
            code = errno
        if fd[0] >= 0:
            return 0
        if code != EAGAIN and code != EINTR:  # EAGAIN: a concurrent rename, try again (openat2(2))
            return code
        PyErr_CheckSignals()


def _walk_open(int dir_fd, bytes path, int flags):
    """openat2 for kernels and sandboxes without it: one component at a time, never through a symlink."""
    *parents, last = [part for part in path.split(b"/") if part] or [b"."]
    if b".." in (*parents, last):
        raise OSError(errors.EXDEV, os.strerror(errors.EXDEV), path)
    here = os.dup(dir_fd)
    try:
        for part in parents:
            below = os.open(part, OPEN_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        return os.open(last, flags | O_NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)


# -- names, owner, mode, times and room of files


def renameat2(int src_dir_fd, bytes src not None, int dst_dir_fd, bytes dst not None, unsigned int flags=0):
    """renameat2(2) with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    cdef const char *old
    cdef const char *new
    cdef int code
    checked(&old, src)
    checked(&new, dst)
    with nogil:
        code = try_rename(src_dir_fd, old, dst_dir_fd, new, flags)
    if code:
        fail(code, src)


def link_descriptor(int fd, int dst_dir_fd, bytes dst not None):
    """Give the file of `fd` (O_TMPFILE, or any node with a link left) the name `dst`; EEXIST where it is taken."""
    cdef const char *new
    cdef int code
    checked(&new, dst)
    with nogil:
        code = try_link_descriptor(fd, dst_dir_fd, new)
    if code:
        fail(code, dst)


cpdef set_owner(int fd, object uid, object gid):
    """chown(2) of the node that `fd` (O_PATH is enough) refers to; -1 leaves one as it is."""
    cdef uint32_t user = 0xFFFFFFFF if uid == -1 else uid
    cdef uint32_t group = 0xFFFFFFFF if gid == -1 else gid
    cdef int code
    with nogil:
        code = try_set_owner(fd, user, group)
    if code:
        fail(code, None)


cpdef set_mode(int fd, uint32_t mode):
    """Permission bits of the node that `fd` (O_PATH is enough) refers to, which is no symlink."""
    cdef int code
    with nogil:
        code = try_set_mode(fd, mode)
    if code:
        fail(code, None)


cdef int try_set_mode(int fd, uint32_t mode) noexcept nogil:
    cdef char path[DESCRIPTOR_PATH_SIZE]
    if fchmod(fd, mode & 0o7777) == 0:
        return 0
    if errno != EBADF:
        return errno
    write_descriptor_path(path, fd)
    return outcome(chmod(path, mode & 0o7777))


cpdef set_times(int fd, object atime_ns, object mtime_ns):
    """Set one or both times, in ns since the epoch, of the node that `fd` (O_PATH is enough) refers to."""
    cdef timespec times[2]
    cdef int code
    _to_timespec(&times[0], atime_ns)
    _to_timespec(&times[1], mtime_ns)
    with nogil:
        code = try_set_times(fd, times)
    if code:
        fail(code, None)


cpdef copy_times(int fd, Stat st):
    """Set both times of the node that `fd` (O_PATH is enough) refers to as `st` tells them."""
    cdef timespec times[2]
    cdef int code
    if st is None:
        raise TypeError("no stat")
    times[0], times[1] = st.st.st_atim, st.st.st_mtim
    with nogil:
        code = try_set_times(fd, times)
    if code:
        fail(code, None)


cdef int _to_timespec(timespec *time, object time_ns) except -1:
    if time_ns is None:
        time.tv_sec, time.tv_nsec = 0, UTIME_OMIT
    else:
        time.tv_sec, time.tv_nsec = divmod(time_ns, 1_000_000_000)
    return 0


cdef int try_set_times(int fd, const timespec *times) noexcept nogil:
    cdef char path[DESCRIPTOR_PATH_SIZE]
    if utimensat(fd, b"", times, AT_EMPTY_PATH) == 0:
        return 0
    if errno != EINVAL:  # before Linux 5.8
        return errno
    write_descriptor_path(path, fd)
    return outcome(utimensat(AT_FDCWD, path, times, 0))


cdef int try_getxattr(int fd, const char *name, void *value, size_t size, ssize_t *length) noexcept nogil:
    cdef char path[DESCRIPTOR_PATH_SIZE]
    length[0] = fgetxattr(fd, name, value, size)
    if length[0] < 0 and errno == EBADF:
        write_descriptor_path(path, fd)
        length[0] = c_getxattr(path, name, value, size)
    return 0 if length[0] >= 0 else errno


cdef int try_listxattr(int fd, char *names, size_t size, ssize_t *length) noexcept nogil:
    cdef char path[DESCRIPTOR_PATH_SIZE]
    length[0] = flistxattr(fd, names, size)
    if length[0] < 0 and errno == EBADF:
        write_descriptor_path(path, fd)
        length[0] = c_listxattr(path, names, size)
    return 0 if length[0] >= 0 else errno


cdef int try_setxattr(int fd, const char *name, const void *value, size_t size, int flags) noexcept nogil:
    cdef char path[DESCRIPTOR_PATH_SIZE]
    cdef int code = outcome(fsetxattr(fd, name, value, size, flags))
    if code == EBADF:
        write_descriptor_path(path, fd)
        code = outcome(c_setxattr(path, name, value, size, flags))
    return code


cdef int try_removexattr(int fd, const char *name) noexcept nogil:
    cdef char path[DESCRIPTOR_PATH_SIZE]
    cdef int code = outcome(fremovexattr(fd, name))
    if code == EBADF:
        write_descriptor_path(path, fd)
        code = outcome(c_removexattr(path, name))
    return code


def allocate(int fd, int mode, int64_t offset, int64_t length):
    """fallocate(2) with any mode."""
    cdef int code
    with nogil:
        code = outcome(fallocate(fd, mode, offset, length))
    if code:
        fail(code, b"")


def sync_filesystem(int fd):
    """syncfs(2): write out everything of the filesystem that `fd` lies on."""
    cdef int code
    with nogil:
        code = outcome(syncfs(fd))
    if code:
        fail(code, b"")


# -- mounts and namespaces


cpdef bytes control(int fd, unsigned long command, bytes argument):
    """ioctl(2) with a small struct as its argument; what the kernel leaves in it."""
    cdef char room[64]  # with space behind the argument: kernels before 5.10 write 8 bytes for FS_IOC_GETFLAGS
    cdef Py_ssize_t size = len(argument)
    cdef int code
    if size > 32:
        raise ValueError("an argument of at most 32 bytes")
    memcpy(room, PyBytes_AS_STRING(argument), size)
    with nogil:
        code = errno if ioctl(fd, command, room) < 0 else 0
    if code:
        fail(code, None)
    return PyBytes_FromStringAndSize(room, size)


def close_all(list descriptors not None):
    """close(2) of many descriptors, all of which are let go. Returns the errno of the last that failed, else 0."""
    cdef int failed = 0
    cdef Py_ssize_t at, count = len(descriptors)
    cdef int *numbers = <int *>malloc((count + 1) * sizeof(int))
    if numbers == NULL:
        raise MemoryError
    try:
        for at in range(count):
            numbers[at] = descriptors[at]
        with nogil:
            for at in range(count):
                if close(numbers[at]):
                    failed = errno
    finally:
        free(numbers)
    return failed


def write_each(int fd, list messages not None):
    """write(2) of each message, one after the other; returns the errnos of those that failed."""
    cdef Py_ssize_t at, count = len(messages)
    cdef char **texts = <char **>malloc((count + 1) * sizeof(char *))
    cdef Py_ssize_t *sizes = <Py_ssize_t *>malloc((count + 1) * sizeof(Py_ssize_t))
    try:
        if texts == NULL or sizes == NULL:
            raise MemoryError
        for at in range(count):
            PyBytes_AsStringAndSize(messages[at], &texts[at], &sizes[at])
        with nogil:
            for at in range(count):
                sizes[at] = errno if write(fd, texts[at], sizes[at]) < 0 else 0
        return [sizes[at] for at in range(count) if sizes[at]]
    finally:
        free(texts)
        free(sizes)


def open_apart(bytes path not None):
    """Open the directory `path` in a private copy of its mount: what is mounted over or in it is not seen there, now
    or later. Needs CAP_SYS_ADMIN and Linux 5.12; raises OSError without. The caller owns the descriptor (O_PATH)."""
    cdef const char *text
    checked(&text, path)
    cdef int fd = overlayfs_open_tree(text, _OPEN_TREE_CLONE | O_CLOEXEC)
    if fd < 0:
        fail(errno, path)
    try:  # else what is mounted in the original later would be propagated
        change_mount(fd, _MAKE_PRIVATE)
    except OSError:
        close(fd)
        raise
    return fd


cpdef change_mount(int fd, bytes attributes):
    """mount_setattr(2) of the mount whose root `fd` is: MOUNT_READ_ONLY or MOUNT_NOATIME. In a user namespace EPERM
    where a mount of its parent gets another access time policy."""
    if overlayfs_mount_setattr(fd, <const char *>attributes, len(attributes)) != 0:
        fail(errno, b"")


def unmount(bytes path not None, bint lazy=False):
    """umount2(2), never through a final symlink; `lazy` detaches a busy mount at once."""
    cdef const char *text
    cdef int code
    checked(&text, path)
    with nogil:
        code = outcome(umount2(text, UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)))
    if code:
        fail(code, path)


def mount(bytes source not None, bytes target not None, bytes kind not None, unsigned long flags, bytes data not None):
    """mount(2)."""
    cdef const char *from_
    cdef const char *to
    cdef const char *type_
    cdef const char *options
    cdef int code
    checked(&from_, source)
    checked(&to, target)
    checked(&type_, kind)
    checked(&options, data)
    with nogil:
        code = outcome(c_mount(from_, to, type_, flags, options))
    if code:
        fail(code, target)


def unshare(int namespaces):
    """unshare(2) with CLONE_NEW* flags; a new pid namespace is for the children to come. No threads may run."""
    if c_unshare(namespaces) != 0:
        fail(errno, b"")


def setns(int fd, int kind):
    """setns(2): enter the namespace of a descriptor, which is of that CLONE_NEW* kind. No threads may run."""
    if c_setns(fd, kind) != 0:
        fail(errno, b"")


def let_be_inspected():
    """Let those who may trace this process use its files in /proc again, which a change of its ids had taken from them:
    prctl(2), PR_SET_DUMPABLE."""
    if prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 0:
        fail(errno, b"")


def die_with_parent():
    """Let the kernel kill this process when the thread that forked it has ended, also if it executes another program; a
    change of ids undoes that: prctl(2), PR_SET_PDEATHSIG."""
    if prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0:
        fail(errno, b"")


def trim_memory():
    """Give free memory of the C heap back to the system (glibc's malloc_trim(3); nothing elsewhere)."""
    overlayfs_trim_memory()


# -- fsync without a thread


class SyncQueue:
    """fsync(2) by the kernel's own threads: io_submit(2) and its kin. `event_fd` is readable when one has ended.

    The AIO context is made for the first fsync, as a process that has one needs some 20 ms to end.
    """

    def __init__(self):
        self._context = 0
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def _open(self):
        """The AIO context; OSError where the machine or the sandbox has none."""
        cdef aio_context_t context = self._context
        if context:
            return context
        if sizeof(void *) != 8:  # io_getevents(2) has another timespec there than the C library
            fail(ENOSYS, b"")
        if overlayfs_io_setup(_MOST_SYNCS, &context) != 0:
            fail(errno, b"")
        self._context = context
        return context

    def submit(self, int fd, bint data_only, uint64_t token):
        """Begin an fsync, or an fdatasync; EAGAIN where too many are under way. `fd` may be closed at once."""
        cdef aio_context_t context = self._open()
        cdef int code
        cdef iocb block
        memset(&block, 0, sizeof(block))
        block.aio_data = token
        block.aio_lio_opcode = IOCB_CMD_FDSYNC if data_only else IOCB_CMD_FSYNC
        block.aio_fildes = fd
        block.aio_flags = IOCB_FLAG_RESFD
        block.aio_resfd = self.event_fd
        with nogil:
            code = 0 if overlayfs_io_submit(context, &block) >= 0 else errno
        if code:
            fail(code, b"")

    def ended(self, long wait_ns=0):
        """The completed fsyncs, each as its token and an errno or 0; waits up to the given time for the first."""
        if not self._context:
            return []
        ended = _take(self._context, wait_ns)
        if ended or not wait_ns:
            try:
                os.eventfd_read(self.event_fd)
            except BlockingIOError:
                pass
            while more := _take(self._context, 0):  # what ended before that would not make it readable again
                ended += more
        return ended

    def close(self):
        """Destroy the AIO context (io_destroy(2)); waits for the fsyncs in progress."""
        cdef aio_context_t context = self._context
        cdef int code = 0
        with nogil:
            if context:
                code = outcome(overlayfs_io_destroy(context))
        if code:
            fail(code, b"")
        os.close(self.event_fd)


cdef list _take(aio_context_t context, long wait_ns):
    cdef io_event[_MOST_SYNCS] events
    cdef int count, code
    with nogil:
        count = overlayfs_io_getevents(context, 1 if wait_ns else 0, _MOST_SYNCS, events, wait_ns)
        code = errno
    if count < 0 and code == EINTR:
        PyErr_CheckSignals()
        count = 0
    if count < 0:
        fail(code, b"")
    return [(events[at].data, -events[at].res) for at in range(count)]
