"""What other compiled modules call of access."""

from .syscalls cimport Stat


cdef extern from "<dirent.h>":
    enum:
        DT_UNKNOWN, DT_DIR, DT_REG, DT_LNK


cpdef int open_at(int dir_fd, bytes name, int flags, int mode=*, bint quietly=*) except -1
cpdef int reopen(int fd, int flags, bint quietly=*) except -1
cpdef int open_directory(bytes path) except -1
cpdef int open_beneath(int root_fd, bytes path, int flags) except -1
cpdef Stat stat_at(int dir_fd, bytes name)
cpdef unlink(int dir_fd, bytes name)
cpdef rmdir(int dir_fd, bytes name)
cpdef mknod(int dir_fd, bytes name, unsigned int mode, unsigned long long device=*)
cpdef link(int src_dir_fd, bytes src, int dst_dir_fd, bytes dst)
cpdef link_descriptor(int fd, int dst_dir_fd, bytes dst)
cpdef rename(int src_dir_fd, bytes src, int dst_dir_fd, bytes dst, unsigned int flags=*)
cpdef bytes getxattr(int fd, bytes name)
cpdef setxattr(int fd, bytes name, object value, int flags=*)
cpdef removexattr(int fd, bytes name)


cdef class Listing:
    cdef int _fd
    cdef char *_buffer
    cdef Py_ssize_t _at, _end
    cdef const char *name  # of the entry that `advance` came to, and its DT_*
    cdef unsigned char kind

    cdef bint advance(self) except -1
    cdef bint _fill(self) except -1
    cdef int _find_kind(self) except -1
    cdef int _close(self) except -1


cpdef Listing scan(int dir_fd, bint quietly=*)
