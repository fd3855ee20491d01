"""What other compiled modules call of xattrs. A `try_*` function is as in syscalls.pxd, and leaves a length."""

cdef enum:
    XATTRS_SIZE = 1024  # room that most lists and values fit into; ERANGE where one does not


cdef int try_list(int dir_fd, const char *name, char *names, size_t size, ssize_t *length) noexcept nogil
cdef int try_read(
    int dir_fd, const char *name, const char *xattr, void *value, size_t size, ssize_t *length
) noexcept nogil
cpdef tuple list_xattrs(int dir_fd, bytes name)
cpdef tuple list_xattrs_of_descriptor(int fd)
cpdef bytes read_xattr(int dir_fd, bytes name, bytes xattr)
cpdef bytes read_xattr_of_descriptor(int fd, bytes xattr)
