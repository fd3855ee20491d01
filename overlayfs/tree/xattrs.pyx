# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Which extended attributes does a file have, and what is in one of them?

Asked of a name in a directory, or of a descriptor (O_PATH is enough); never of what a symlink leads to. Files without
xattrs are by far the most, so an absent one costs no exception, and an empty list no object.

By name Linux 6.13 has system calls (listxattrat, getxattrat) that take a quarter of the time which a path through /proc
takes. They are used where they are there when this module is loaded. Thread-safe.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EACCES, EBADF, ENAMETOOLONG, ENODATA, EOPNOTSUPP, EPERM, ERANGE, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

from .access cimport getxattr, open_at
from .syscalls cimport (
    AT_SYMLINK_NOFOLLOW, DESCRIPTOR_PATH_SIZE, O_CLOEXEC, O_NOFOLLOW, O_PATH, c_lgetxattr, c_llistxattr, checked, close,
    fail, try_getxattr, try_listxattr, write_descriptor_path,
)

cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* The same on every architecture; older headers do not have them. */
    #ifndef SYS_getxattrat
    #define SYS_getxattrat 464
    #define SYS_listxattrat 465
    #endif

    struct overlayfs_xattr_args { uint64_t value; uint32_t size, flags; };

    static ssize_t overlayfs_getxattrat(int fd, const char *name, int flags, const char *xattr, void *value, size_t size)
    {
        struct overlayfs_xattr_args args = { (uint64_t)(uintptr_t)value, (uint32_t)size, 0 };
        return syscall(SYS_getxattrat, fd, name, flags, xattr, &args, sizeof args);
    }

    static ssize_t overlayfs_listxattrat(int fd, const char *name, int flags, char *names, size_t size)
    {
        return syscall(SYS_listxattrat, fd, name, flags, names, size);
    }
    """
    ssize_t overlayfs_getxattrat(int fd, const char *name, int flags, const char *xattr, void *value, size_t size) nogil
    ssize_t overlayfs_listxattrat(int fd, const char *name, int flags, char *names, size_t size) nogil

cdef enum:
    _LONGEST = 64 << 10  # of a list or a value: XATTR_LIST_MAX, XATTR_SIZE_MAX (linux/limits.h)
    _LONGEST_PATH = 4096
    _PATH_SIZE = 4096 + 32 + 2
cdef int _NODE = O_PATH | O_NOFOLLOW | O_CLOEXEC

# Of no directory: any other error says that the calls are missing, or that a sandbox does not know them.
cdef bint _has_calls_by_name = overlayfs_listxattrat(-1, b"name", 0, NULL, 0) < 0 and errno == EBADF


# -- as the kernel gives them


cdef int try_list(int dir_fd, const char *name, char *names, size_t size, ssize_t *length) noexcept nogil:
    """The names of all xattrs of `name` in a directory, each with its NUL byte."""
    cdef char path[_PATH_SIZE]
    if _has_calls_by_name:
        length[0] = overlayfs_listxattrat(dir_fd, name, AT_SYMLINK_NOFOLLOW, names, size)
    elif not _write_entry_path(path, dir_fd, name):
        return ENAMETOOLONG
    else:
        length[0] = c_llistxattr(path, names, size)
    return 0 if length[0] >= 0 else errno


cdef int try_read(
    int dir_fd, const char *name, const char *xattr, void *value, size_t size, ssize_t *length
) noexcept nogil:
    """One xattr of `name` in a directory."""
    cdef char path[_PATH_SIZE]
    if _has_calls_by_name:
        length[0] = overlayfs_getxattrat(dir_fd, name, AT_SYMLINK_NOFOLLOW, xattr, value, size)
    elif not _write_entry_path(path, dir_fd, name):
        return ENAMETOOLONG
    else:
        length[0] = c_lgetxattr(path, xattr, value, size)
    return 0 if length[0] >= 0 else errno


cdef bint _write_entry_path(char *path, int dir_fd, const char *name) noexcept nogil:
    """The path of a name through /proc, in _PATH_SIZE bytes; False where it has no room."""
    cdef size_t size = strlen(name)
    cdef int start
    if size >= _LONGEST_PATH:
        return False
    start = write_descriptor_path(path, dir_fd)  # shorter than DESCRIPTOR_PATH_SIZE
    path[start] = b"/"
    memcpy(path + start + 1, name, size + 1)
    return True


# -- as Python objects


cpdef tuple list_xattrs(int dir_fd, bytes name):
    """The xattr names of `name` itself; empty where the filesystem has none."""
    cdef char room[XATTRS_SIZE]
    cdef const char *text
    cdef ssize_t length
    checked(&text, name)
    cdef int code = try_list(dir_fd, text, room, XATTRS_SIZE, &length)
    if not code:
        return _split(room, length)
    if code == EOPNOTSUPP or code == EPERM:
        return ()
    if code != EACCES and code != ERANGE:
        fail(code, name)
    cdef int fd = open_at(dir_fd, name, _NODE)
    try:
        return list_xattrs_of_descriptor(fd)
    finally:
        close(fd)


cpdef tuple list_xattrs_of_descriptor(int fd):
    """As `list_xattrs`, of what the descriptor refers to."""
    cdef char room[XATTRS_SIZE]
    cdef char *large
    cdef ssize_t length
    cdef int code = try_listxattr(fd, room, XATTRS_SIZE, &length)
    if code == ERANGE:
        large = <char *>malloc(_LONGEST)
        if large == NULL:
            raise MemoryError
        try:
            code = try_listxattr(fd, large, _LONGEST, &length)
            if not code:
                return _split(large, length)
        finally:
            free(large)
    if code == EOPNOTSUPP or code == EPERM:
        return ()
    if code:
        fail(code, None)
    return _split(room, length)


cdef tuple _split(const char *names, ssize_t length):
    """The names in a list as the kernel gives it: each ends with a NUL byte."""
    cdef ssize_t start = 0
    cdef size_t size
    if not length:
        return ()
    cdef list found = []
    while start < length:
        size = strlen(names + start)
        found.append(PyBytes_FromStringAndSize(names + start, size))
        start += size + 1
    return tuple(found)


cpdef bytes read_xattr(int dir_fd, bytes name, bytes xattr):
    """One xattr of `name` itself, None where it is absent or out of reach."""
    cdef char room[XATTRS_SIZE]
    cdef const char *text
    cdef const char *key
    cdef ssize_t length
    checked(&text, name)
    checked(&key, xattr)
    cdef int code = try_read(dir_fd, text, key, room, XATTRS_SIZE, &length)
    if not code:
        return PyBytes_FromStringAndSize(room, length)
    if code == ENODATA or code == EOPNOTSUPP or code == EPERM:
        return None
    if code != EACCES and code != ERANGE:
        fail(code, name)
    cdef int fd = open_at(dir_fd, name, _NODE)
    try:
        return read_xattr_of_descriptor(fd, xattr)
    finally:
        close(fd)


cpdef bytes read_xattr_of_descriptor(int fd, bytes xattr):
    """As `read_xattr`, of what the descriptor refers to."""
    cdef char room[XATTRS_SIZE]
    cdef const char *key
    cdef ssize_t length
    checked(&key, xattr)
    cdef int code = try_getxattr(fd, key, room, XATTRS_SIZE, &length)
    if not code:
        return PyBytes_FromStringAndSize(room, length)
    if code == ENODATA or code == EOPNOTSUPP or code == EPERM:
        return None
    try:
        return getxattr(fd, xattr)  # with more room, or by the deputy
    except OSError as error:
        if error.errno in (ENODATA, EOPNOTSUPP, EPERM, EACCES):
            return None
        raise
