"""The system calls that other compiled modules make without a Python object between: structs, and calls that return an
errno instead of raising.

A `try_*` function returns 0 or an errno, EINTR included, and never looks at signals. Its names end with a NUL byte.
"""

from libc.errno cimport EBADF, ENOENT, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen
from posix.time cimport timespec

cdef extern from "<sys/stat.h>" nogil:
    struct stat_t "stat":
        uint64_t st_dev
        uint64_t st_ino
        uint32_t st_mode
        uint64_t st_nlink
        uint32_t st_uid
        uint32_t st_gid
        uint64_t st_rdev
        int64_t st_size
        int64_t st_blksize
        int64_t st_blocks
        timespec st_atim
        timespec st_mtim
        timespec st_ctim

    int fstat(int fd, stat_t *out)
    int fstatat(int dir_fd, const char *name, stat_t *out, int flags)
    int fchmod(int fd, uint32_t mode)
    int chmod(const char *path, uint32_t mode)
    int mknodat(int dir_fd, const char *name, uint32_t mode, uint64_t device)
    int futimens(int fd, const timespec *times)
    int utimensat(int dir_fd, const char *name, const timespec *times, int flags)
    long UTIME_OMIT

cdef extern from "<fcntl.h>" nogil:
    int AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_REMOVEDIR
    int O_RDONLY, O_DIRECTORY, O_NOFOLLOW, O_CLOEXEC, O_PATH, O_NOATIME
    int openat(int dir_fd, const char *name, int flags, ...)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t write(int fd, const void *data, size_t size)
    int fchownat(int dir_fd, const char *name, uint32_t uid, uint32_t gid, int flags)
    int linkat(int src_dir_fd, const char *src, int dst_dir_fd, const char *dst, int flags)
    int unlinkat(int dir_fd, const char *name, int flags)
    uint32_t geteuid()

cdef extern from "<stdio.h>" nogil:
    int renameat(int src_dir_fd, const char *src, int dst_dir_fd, const char *dst)
    int c_renameat2 "renameat2"(int src_dir_fd, const char *src, int dst_dir_fd, const char *dst, unsigned int flags)

cdef extern from "<sys/xattr.h>" nogil:
    ssize_t fgetxattr(int fd, const char *name, void *value, size_t size)
    ssize_t flistxattr(int fd, char *names, size_t size)
    int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags)
    int fremovexattr(int fd, const char *name)
    ssize_t c_getxattr "getxattr"(const char *path, const char *name, void *value, size_t size)
    ssize_t c_lgetxattr "lgetxattr"(const char *path, const char *name, void *value, size_t size)
    ssize_t c_listxattr "listxattr"(const char *path, char *names, size_t size)
    ssize_t c_llistxattr "llistxattr"(const char *path, char *names, size_t size)
    int c_setxattr "setxattr"(const char *path, const char *name, const void *value, size_t size, int flags)
    int c_removexattr "removexattr"(const char *path, const char *name)

cdef enum:
    DESCRIPTOR_PATH_SIZE = 32  # room for a path of /proc/self/fd


cdef class Stat:
    cdef stat_t st


cdef int fail(int code, bytes name) except -1
cdef int checked(const char **text, bytes name) except -1
cdef Stat new_stat(const stat_t *st)
cpdef Stat stat_of(int fd)
cpdef file_attributes(int dir_fd, bytes name)
cpdef file_handle(int fd)
cpdef bytes descriptor_path(int fd)
cpdef bytes entry_path(int dir_fd, bytes name)
cpdef int open_beneath(int root_fd, bytes path, int flags) except -1
cpdef bytes control(int fd, unsigned long command, bytes argument)
cpdef set_owner(int fd, object uid, object gid)
cpdef set_mode(int fd, uint32_t mode)
cpdef set_times(int fd, object atime_ns, object mtime_ns)
cpdef copy_times(int fd, Stat st)


cdef inline int write_descriptor_path(char *out, int fd) noexcept nogil:
    """Write the path that names what `fd` refers to into DESCRIPTOR_PATH_SIZE bytes; its length."""
    cdef char digits[12]
    cdef unsigned int left = <unsigned int>fd if fd >= 0 else 0xFFFFFFFF  # no descriptor: a path that does not exist
    cdef int first = 12
    cdef int length = 14
    while True:
        first -= 1
        digits[first] = <char>(48 + left % 10)
        left //= 10
        if not left:
            break
    memcpy(out, b"/proc/self/fd/", length)
    memcpy(out + length, digits + first, 12 - first)
    length += 12 - first
    out[length] = 0
    return length


cdef inline int outcome(int result) noexcept nogil:
    return 0 if result == 0 else errno


cdef inline int try_stat(int dir_fd, const char *name, stat_t *out) noexcept nogil:
    """fstatat(2), never through a symlink."""
    return outcome(fstatat(dir_fd, name, out, AT_SYMLINK_NOFOLLOW))


cdef inline int try_stat_of(int fd, stat_t *out) noexcept nogil:
    return outcome(fstat(fd, out))


cdef inline int try_open(int dir_fd, const char *name, int flags, uint32_t mode, int *fd) noexcept nogil:
    fd[0] = openat(dir_fd, name, flags | O_CLOEXEC, mode)
    return 0 if fd[0] >= 0 else errno


cdef inline int try_unlink(int dir_fd, const char *name) noexcept nogil:
    return outcome(unlinkat(dir_fd, name, 0))


cdef inline int try_rmdir(int dir_fd, const char *name) noexcept nogil:
    return outcome(unlinkat(dir_fd, name, AT_REMOVEDIR))


cdef inline int try_rename(
    int src_dir_fd, const char *src, int dst_dir_fd, const char *dst, unsigned int flags
) noexcept nogil:
    if flags:
        return outcome(c_renameat2(src_dir_fd, src, dst_dir_fd, dst, flags))
    return outcome(renameat(src_dir_fd, src, dst_dir_fd, dst))  # every filesystem knows this one


cdef inline int try_link_descriptor(int fd, int dst_dir_fd, const char *dst) noexcept nogil:
    """Linux links a descriptor itself only with CAP_DAC_READ_SEARCH, and says ENOENT without; then by its path."""
    if linkat(fd, b"", dst_dir_fd, dst, AT_EMPTY_PATH) == 0:
        return 0
    if errno != ENOENT:
        return errno
    cdef char path[DESCRIPTOR_PATH_SIZE]
    if linkat(fd, b"", dst_dir_fd, dst, AT_EMPTY_PATH) == 0:
        return 0
    if errno != ENOENT:  # without CAP_DAC_READ_SEARCH
        return errno
    write_descriptor_path(path, fd)
    return outcome(linkat(AT_FDCWD, path, dst_dir_fd, dst, AT_SYMLINK_FOLLOW))


cdef inline int try_set_owner(int fd, uint32_t uid, uint32_t gid) noexcept nogil:
    return outcome(fchownat(fd, b"", uid, gid, AT_EMPTY_PATH))


# Of what `fd` (O_PATH is enough) refers to. The calls that take a descriptor take no O_PATH, but a path through /proc
# costs ten times as much as their refusal.
cdef int try_set_mode(int fd, uint32_t mode) noexcept nogil
cdef int try_set_times(int fd, const timespec *times) noexcept nogil
cdef int try_getxattr(int fd, const char *name, void *value, size_t size, ssize_t *length) noexcept nogil
cdef int try_listxattr(int fd, char *names, size_t size, ssize_t *length) noexcept nogil
cdef int try_setxattr(int fd, const char *name, const void *value, size_t size, int flags) noexcept nogil
cdef int try_removexattr(int fd, const char *name) noexcept nogil
