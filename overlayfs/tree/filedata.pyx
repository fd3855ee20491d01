# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""How is the data of a file copied into another, with its holes?

Callers own all descriptors; offsets stay. Callable from any thread. Compiled, as most files are small, and each is two
calls of the C library.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport (
    EINTR, EINVAL, EIO, ENOSYS, ENOTTY, ENXIO, EOPNOTSUPP, EPERM, ETXTBSY, EXDEV, errno,
)
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from .syscalls cimport fail, outcome, stat_of

cdef extern from "<linux/fs.h>" nogil:
    unsigned long FICLONE

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long command, ...)

cdef extern from "<unistd.h>" nogil:
    int SEEK_DATA, SEEK_HOLE
    int64_t lseek(int fd, int64_t offset, int whence)
    int ftruncate(int fd, int64_t size)
    ssize_t pread(int fd, void *room, size_t size, int64_t offset)
    ssize_t pwrite(int fd, const void *data, size_t size, int64_t offset)
    ssize_t copy_file_range(int source, int64_t *start, int target, int64_t *at, size_t size, unsigned int flags)

cdef enum:
    _SMALL = 16 << 10  # bytes; copying in the kernel costs more than it saves
    _COPY_CHUNK = 16 << 20
    _READ_CHUNK = 1 << 20


def copy_data(int source, int target, int64_t size, *, bint has_holes):
    """Copy the first `size` bytes of `source` into the empty file `target`, keeping holes where there are some.

    Callers own both descriptors; offsets stay. Raises EIO where the source is shorter.
    """
    cdef int64_t position = 0, start, end
    cdef int code
    if not has_holes:
        _copy_range(source, target, 0, size)
        return
    code = outcome(ftruncate(target, size))
    if code:
        fail(code, None)
    while position < size:
        _next_extent(source, position, size, &start, &end)
        _copy_range(source, target, start, end)
        position = end


cpdef int clone(int source, int target) except -1:
    """Let `target` share all data of `source` (ioctl_ficlone(2)); 0, or the errno where that cannot be."""
    cdef int code
    with nogil:
        code = outcome(ioctl(target, FICLONE, source))
    return code


cpdef bint never_clones(int code) noexcept:
    """True where an errno of `clone` says that no file of the one filesystem has its data shared by the other."""
    return code == EOPNOTSUPP or code == ENOTTY or code == EXDEV


cdef int _next_extent(int source, int64_t position, int64_t size, int64_t *start, int64_t *end) except -1:
    """Start and end of the next data extent; (size, size) if only a hole is left."""
    cdef int code = 0
    with nogil:
        start[0] = lseek(source, position, SEEK_DATA)
        if start[0] >= 0:
            end[0] = lseek(source, start[0], SEEK_HOLE)
        if start[0] < 0 or end[0] < 0:
            code = errno
    if code == ENXIO:
        if stat_of(source).st.st_size < size:
            raise OSError(EIO, "the file shrank while it was copied")
        start[0] = end[0] = size
    elif code == EINVAL:
        start[0], end[0] = position, size
    elif code:
        fail(code, None)
    start[0], end[0] = min(start[0], size), min(end[0], size)
    return 0


cdef int _copy_range(int source, int target, int64_t start, int64_t end) except -1:
    cdef ssize_t copied
    cdef int64_t read_from, write_to
    cdef int code
    while end - start > _SMALL:
        read_from = write_to = start
        with nogil:
            copied = copy_file_range(source, &read_from, target, &write_to, min(end - start, _COPY_CHUNK), 0)
            code = 0 if copied >= 0 else errno
        if code == EINTR:
            PyErr_CheckSignals()
        elif code in (EXDEV, EINVAL, EOPNOTSUPP, ENOSYS, EPERM, ETXTBSY) or copied == 0:
            break
        elif code:
            fail(code, None)
        else:
            start += copied
    return _copy_through_memory(source, target, start, end)


cdef int _copy_through_memory(int source, int target, int64_t start, int64_t end) except -1:
    cdef char small[_SMALL]
    cdef char *room = small
    cdef size_t size = _SMALL
    if end - start > _SMALL:
        size = _READ_CHUNK
        room = <char *>malloc(size)
        if room is NULL:
            raise MemoryError
    try:
        while start < end:
            start += _copy_chunk(source, target, room, min(end - start, <int64_t>size), start)
    finally:
        if room is not small:
            free(room)
    return 0


cdef ssize_t _copy_chunk(int source, int target, char *room, size_t size, int64_t offset) except -1:
    """Copy up to `size` bytes, for which `room` has place; how many."""
    cdef ssize_t count, written = 0, done = 0
    cdef int code
    while True:
        with nogil:
            count = pread(source, room, size, offset)
            code = 0 if count >= 0 else errno
        if not code:
            break
        if code != EINTR:
            fail(code, None)
        PyErr_CheckSignals()
    if not count:
        raise OSError(EIO, "the file shrank while it was copied")
    while done < count:
        with nogil:
            written = pwrite(target, room + done, count - done, offset + done)
            code = 0 if written > 0 else errno if written < 0 else EIO
        if not code:
            done += written
        elif code == EINTR:
            PyErr_CheckSignals()
        else:
            fail(code, None)
    return count
