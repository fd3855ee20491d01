# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""How does the daemon access its own user's files that the permission bits deny to it?

The kernel checks the callers of a mount (default_permissions), so the daemon must carry out every request that it gets.
Root's daemon can. An ordinary user's daemon gets EACCES on disk where root does not: when it makes a file's copy in a
directory of mode 0555, or reads a file of mode 0200 to copy it up. Each function here is the system call of its name;
if that fails with EACCES, a deputy makes the call. Calls that succeed cost nothing more. If there can be no deputy
(user namespaces are switched off), or where it is refused as well (the file is another user's, or has another group
than the user's primary one), the error stays EACCES.

Callable from any thread. Compiled, as each function is one call of the C library.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EACCES, EINTR, ENOENT, EOPNOTSUPP, EPERM, ERANGE, errno
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc

from .syscalls cimport (
    AT_FDCWD, DESCRIPTOR_PATH_SIZE, O_CLOEXEC, O_DIRECTORY, O_NOATIME, O_NOFOLLOW, O_PATH, O_RDONLY, Stat, checked, close,
    descriptor_path, fail, geteuid, linkat, mknodat, new_stat, outcome, stat_of, stat_t, try_getxattr,
    try_link_descriptor, try_open, try_removexattr, try_rename, try_rmdir, try_setxattr, try_stat, try_unlink,
    write_descriptor_path,
)
from .syscalls cimport open_beneath as open_unless_refused

from contextlib import contextmanager

from . import deputies

cdef extern from *:
    """
    #include <stddef.h>
    #include <sys/syscall.h>

    /* As the kernel writes it (getdents64(2)). */
    struct overlayfs_dirent {
        uint64_t d_ino;
        int64_t d_off;
        unsigned short d_reclen;
        unsigned char d_type;
        char d_name[];
    };

    static long overlayfs_getdents64(int fd, void *buffer, size_t size)
    {
        return syscall(SYS_getdents64, fd, buffer, size);
    }
    """
    struct overlayfs_dirent:
        unsigned short d_reclen
        unsigned char d_type
        char d_name[0]
    long overlayfs_getdents64(int fd, void *buffer, size_t size) nogil

DIRECTORY, REGULAR, SYMLINK = DT_DIR, DT_REG, DT_LNK

cdef enum:
    _LISTED = 32 << 10  # bytes of a directory that are read at once
    _XATTR = 256  # most values are shorter
    _LONGEST_XATTR = 64 << 10
cdef int _READ_DIRECTORY = O_RDONLY | O_DIRECTORY | O_CLOEXEC
cdef int _NODE = O_PATH | O_NOFOLLOW | O_CLOEXEC


cdef object _by_deputy(int code, bytes name, str call, tuple fds, tuple arguments):
    """Repeat a failed system call by the deputy and return its result; raises the errno if no deputy can make the
    call."""
    if code != EACCES or geteuid() == 0:
        fail(code, name)
    return deputies.ask(call, fds, arguments, name)


# -- opening and reading


# Reading `quietly` moves no access time where we may ask for that: of our own files, or with CAP_FOWNER. Where we may
# not, it moves as the mount says.


cpdef int open_at(int dir_fd, bytes name, int flags, int mode=0o777, bint quietly=False) except -1:
    """openat(2). The caller owns the descriptor."""
    if quietly:
        try:
            return open_at(dir_fd, name, flags | O_NOATIME, mode)
        except PermissionError:
            pass
    cdef const char *text
    cdef int fd
    checked(&text, name)
    cdef int code = _open(dir_fd, text, flags, mode, &fd)
    if code:
        return _by_deputy(code, name, "open", (dir_fd,), (name, flags | O_CLOEXEC, mode))
    return fd


cdef int _open(int dir_fd, const char *name, int flags, uint32_t mode, int *fd) except -1:
    """As `try_open`, again where a signal came between."""
    cdef int code
    while True:
        with nogil:
            code = try_open(dir_fd, name, flags, mode, fd)
        if code != EINTR:
            return code
        PyErr_CheckSignals()


cpdef int reopen(int fd, int flags, bint quietly=False) except -1:
    """Open what `fd` (O_PATH is enough) refers to once more. The caller owns the descriptor."""
    if quietly:
        try:
            return reopen(fd, flags | O_NOATIME)
        except PermissionError:
            pass
    cdef char path[DESCRIPTOR_PATH_SIZE]
    cdef int opened
    write_descriptor_path(path, fd)
    cdef int code = _open(AT_FDCWD, path, flags, 0, &opened)
    if code:
        return _by_deputy(code, path, "reopen", (fd,), (flags | O_CLOEXEC,))
    return opened


cpdef int open_directory(bytes path) except -1:
    """Open a directory for reading, through symlinks. The caller owns the descriptor."""
    cdef const char *text
    cdef int fd
    checked(&text, path)
    cdef int code = _open(AT_FDCWD, text, _READ_DIRECTORY, 0, &fd)
    if code == EACCES or code == EPERM:  # the deputy is asked only if the path can be searched
        code = _open(AT_FDCWD, text, _READ_DIRECTORY | O_PATH, 0, &fd)
        if not code:
            try:
                return reopen(fd, _READ_DIRECTORY)
            finally:
                close(fd)
    if code:
        fail(code, path)
    return fd


cpdef int open_beneath(int root_fd, bytes path, int flags) except -1:
    """As `syscalls.open_beneath`."""
    try:
        return open_unless_refused(root_fd, path, flags)
    except PermissionError as error:
        return _by_deputy(error.errno, path, "open_beneath", (root_fd,), (path, flags))


cpdef Stat stat_at(int dir_fd, bytes name):
    """fstatat(2), never through a symlink."""
    cdef const char *text
    cdef stat_t st
    checked(&text, name)
    cdef int code = try_stat(dir_fd, text, &st)
    if not code:
        return new_stat(&st)
    cdef int fd = _by_deputy(code, name, "open", (dir_fd,), (name, _NODE, 0))
    try:  # a stat of the deputy's would show the ids of its namespace
        return stat_of(fd)
    finally:
        close(fd)


@contextmanager
def node(int dir_fd, bytes name):
    """A descriptor of `name` itself (O_PATH) for the length of a `with` block."""
    fd = open_at(dir_fd, name, _NODE)
    try:
        yield fd
    finally:
        close(fd)


@cython.final
cdef class Listing:
    """The entries of a directory, but `.` and `..`, once: each as its name and its kind (DT_*, never DT_UNKNOWN but for
    what has gone meanwhile). Reading raises what getdents64(2) raises: never is a listing shorter than the directory."""

    def __cinit__(self):
        self._fd = -1
        self._buffer = NULL
        self._at = self._end = 0

    def __dealloc__(self):
        self._close()

    cdef int _close(self) except -1:
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1
        free(self._buffer)
        self._buffer = NULL
        return 0

    def __iter__(self):
        return self

    def __next__(self):
        if not self.advance():
            raise StopIteration
        return PyBytes_FromString(self.name), self.kind

    cdef bint advance(self) except -1:
        """Go to the next entry: its `name`, until the next call, and `kind`; False at the end."""
        cdef overlayfs_dirent *entry
        while True:
            if self._at >= self._end and not self._fill():
                self._close()
                return False
            entry = <overlayfs_dirent *>(self._buffer + self._at)
            self._at += entry.d_reclen
            self.name = entry.d_name
            if self.name[0] == b"." and (not self.name[1] or (self.name[1] == b"." and not self.name[2])):
                continue
            self.kind = entry.d_type
            if self.kind == DT_UNKNOWN:
                self._find_kind()
            return True

    cdef bint _fill(self) except -1:
        cdef long length
        cdef int code
        if self._fd < 0:
            return False
        with nogil:
            length = overlayfs_getdents64(self._fd, self._buffer, _LISTED)
            code = errno
        if length < 0:
            if code == ENOENT:  # the directory itself is deleted, and so it is empty
                return False
            fail(code, None)
        self._at, self._end = 0, length
        return length > 0

    cdef int _find_kind(self) except -1:
        """Stat the entry, as some filesystems leave DT_UNKNOWN in a listing."""
        try:
            self.kind = stat_at(self._fd, PyBytes_FromString(self.name)).st.st_mode >> 12
        except FileNotFoundError:
            pass
        return 0


cpdef Listing scan(int dir_fd, bint quietly=False):
    """The entries of a directory of which `dir_fd` (O_PATH) is a descriptor."""
    cdef Listing listing = Listing.__new__(Listing)
    listing._buffer = <char *>malloc(_LISTED)
    if listing._buffer == NULL:
        raise MemoryError
    listing._fd = reopen(dir_fd, _READ_DIRECTORY, quietly)
    return listing


def list_names(int dir_fd):
    """The names in a directory of which `dir_fd` (O_PATH) is a descriptor."""
    return [name for name, _ in scan(dir_fd)]


# -- names


cpdef unlink(int dir_fd, bytes name):
    cdef const char *text
    cdef int code
    checked(&text, name)
    with nogil:
        code = try_unlink(dir_fd, text)
    if code:
        _by_deputy(code, name, "unlink", (dir_fd,), (name,))


cpdef rmdir(int dir_fd, bytes name):
    cdef const char *text
    cdef int code
    checked(&text, name)
    with nogil:
        code = try_rmdir(dir_fd, text)
    if code:
        _by_deputy(code, name, "rmdir", (dir_fd,), (name,))


cpdef mknod(int dir_fd, bytes name, unsigned int mode, unsigned long long device=0):
    cdef const char *text
    cdef int code
    checked(&text, name)
    with nogil:
        code = outcome(mknodat(dir_fd, text, mode, device))
    if code:
        _by_deputy(code, name, "mknod", (dir_fd,), (name, mode, device))


cpdef link(int src_dir_fd, bytes src, int dst_dir_fd, bytes dst):
    """linkat(2), never through a symlink."""
    cdef const char *old
    cdef const char *new
    cdef int code
    checked(&old, src)
    checked(&new, dst)
    with nogil:
        code = outcome(linkat(src_dir_fd, old, dst_dir_fd, new, 0))
    if code:
        _by_deputy(code, src, "link", (src_dir_fd, dst_dir_fd), (src, dst))


cpdef link_descriptor(int fd, int dst_dir_fd, bytes dst):
    """As `syscalls.link_descriptor`."""
    cdef const char *new
    cdef int code
    checked(&new, dst)
    with nogil:
        code = try_link_descriptor(fd, dst_dir_fd, new)
    if code:
        _by_deputy(code, dst, "link_descriptor", (fd, dst_dir_fd), (dst,))


cpdef rename(int src_dir_fd, bytes src, int dst_dir_fd, bytes dst, unsigned int flags=0):
    """renameat2(2)."""
    cdef const char *old
    cdef const char *new
    cdef int code
    checked(&old, src)
    checked(&new, dst)
    with nogil:
        code = try_rename(src_dir_fd, old, dst_dir_fd, new, flags)
    if code:
        _by_deputy(code, src, "rename", (src_dir_fd, dst_dir_fd), (src, dst, flags))


# -- extended attributes of what a descriptor (O_PATH is enough) refers to


cpdef bytes getxattr(int fd, bytes name):
    cdef char room[_XATTR]
    cdef const char *text
    cdef ssize_t length
    cdef bytes value
    checked(&text, name)
    cdef int code = try_getxattr(fd, text, room, _XATTR, &length)
    if not code:
        return PyBytes_FromStringAndSize(room, length)
    if code == ERANGE:
        value = PyBytes_FromStringAndSize(NULL, _LONGEST_XATTR)
        code = try_getxattr(fd, text, PyBytes_AS_STRING(value), _LONGEST_XATTR, &length)
        if not code:
            return value[:length]
    return _by_deputy(code, descriptor_path(fd), "getxattr", (fd,), (name,))


cpdef setxattr(int fd, bytes name, object value, int flags=0):
    cdef const char *text
    cdef bytes content = bytes(value)
    cdef const char *start = content
    cdef Py_ssize_t size = len(content)
    cdef int code
    checked(&text, name)
    with nogil:
        code = try_setxattr(fd, text, start, size, flags)
    if code:
        _by_deputy(code, descriptor_path(fd), "setxattr", (fd,), (name, content, flags))


cpdef removexattr(int fd, bytes name):
    cdef const char *text
    cdef int code
    checked(&text, name)
    with nogil:
        code = try_removexattr(fd, text)
    if code:
        _by_deputy(code, descriptor_path(fd), "removexattr", (fd,), (name,))
