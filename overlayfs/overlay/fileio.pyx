# cython: language_level=3, boundscheck=False, wraparound=False
"""How are a file's bytes read into memory, and written from it?

I/O is by inode, not by open file: who opened a file before it was copied up reads what is written later. All on the
thread that owns the `State`. Compiled, as the bytes come and go by pointers into the messages of the kernel.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, EOPNOTSUPP, errno
from libc.stdint cimport int64_t
from posix.stat cimport S_IFDIR, S_IFREG

from overlayfs.overlay.content cimport open_pooled
from overlayfs.overlay.copyup cimport ensure_upper
from overlayfs.overlay.descriptors cimport OpenFile
from overlayfs.overlay.inodes cimport Inode
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport fail

import errno as errnos
import os

from overlayfs.overlay import attributes
from overlayfs.tree import syscalls

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

    int RWF_NOWAIT
    ssize_t preadv2(int fd, const iovec *parts, int count, int64_t offset, int flags)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *room, size_t size, int64_t offset)
    ssize_t pwrite(int fd, const void *data, size_t size, int64_t offset)

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cpdef OpenFile pooled(State state, Inode inode, bint writable):
    """The descriptor of a file's data; pin it to use it beyond this operation."""
    if inode.kind == S_IFREG:
        return open_pooled(state, inode, writable)
    code = errnos.EISDIR if inode.kind == S_IFDIR else errnos.EINVAL
    raise OSError(code, os.strerror(code))


# -- reading


def read(State state, Inode inode, int64_t offset, Py_ssize_t size):
    """What there is of `size` bytes, even where a disk must be waited for."""
    cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
    cdef Py_ssize_t count = _pread(pooled(state, inode, False).fd, PyBytes_AS_STRING(data), size, offset)
    _note_read(state, inode)
    return data if count == size else data[:count]


def read_into(State state, Inode inode, int64_t offset, char[::1] buffer not None):
    """Fill the buffer without waiting; how much there was, None where the data would have to come from a disk."""
    cdef Py_ssize_t size = buffer.shape[0]
    cdef Py_ssize_t count = read_at(state, inode, offset, &buffer[0] if size else NULL, size)
    return None if count == ON_A_DISK else count


cdef Py_ssize_t read_at(State state, Inode inode, int64_t offset, char *room, Py_ssize_t size) except -1:
    """Read what there is of `size` bytes into `room`, which has place for so many, without waiting; ON_A_DISK where the
    data would have to come from a disk."""
    cdef Py_ssize_t count = _read_now(state, inode, pooled(state, inode, False), offset, room, size)
    _note_read(state, inode)
    return count


cdef int _note_read(State state, Inode inode) except -1:
    if inode.upper and inode.known:  # else no access time is known that may have moved
        attributes.note_read(state, inode)
    return 0


cdef Py_ssize_t _read_now(
    State state, Inode inode, OpenFile opened, int64_t offset, char *room, Py_ssize_t size
) except -1:
    cdef iovec part
    cdef Py_ssize_t count = -1
    cdef int fd = opened.fd, code = EINTR
    if not opened.may_wait:
        return _pread(fd, room, size, offset)
    part.iov_base, part.iov_len = room, size
    while code == EINTR:
        with nogil:
            count = preadv2(fd, &part, 1, offset, RWF_NOWAIT)
            code = 0 if count >= 0 else errno
        if code == EINTR:
            PyErr_CheckSignals()
    if code == EAGAIN:
        return ON_A_DISK
    if code == EOPNOTSUPP:
        return _read_where_it_cannot_say(state, opened, offset, room, size)
    if code:
        fail(code, None)
    if count < size and offset + count < <int64_t>_size(state, inode):
        return ON_A_DISK  # a part is in memory, the rest is not
    return count


cdef Py_ssize_t _read_where_it_cannot_say(
    State state, OpenFile opened, int64_t offset, char *room, Py_ssize_t size
) except -1:
    """As `_read_now`, on a filesystem that knows no RWF_NOWAIT: what is no disk makes nobody wait."""
    if not syscalls.is_in_memory(opened.fd):
        return ON_A_DISK
    opened.may_wait = False
    state.in_memory.add(syscalls.stat_of(opened.fd).st_dev)
    return _pread(opened.fd, room, size, offset)


cdef Py_ssize_t _size(State state, Inode inode) except -1:
    if not inode.known:
        return attributes.attributes_of(state, inode).size
    return inode.attr.size


cdef Py_ssize_t _pread(int fd, char *room, Py_ssize_t size, int64_t offset) except -1:
    cdef Py_ssize_t count
    while True:
        with nogil:
            count = pread(fd, room, size, offset)
        if count >= 0:
            return count
        if errno != EINTR:
            fail(errno, None)
        PyErr_CheckSignals()


# -- writing


def write(State state, Inode inode, int64_t offset, const unsigned char[::1] data not None):
    """Write what fits; raises only where nothing was written. Copies up."""
    cdef Py_ssize_t size = data.shape[0]
    return write_at(state, inode, offset, <const char *>&data[0] if size else NULL, size)


cdef Py_ssize_t write_at(State state, Inode inode, int64_t offset, const char *data, Py_ssize_t size) except -1:
    """As `write`, of the `size` bytes at `data`."""
    cdef Py_ssize_t done = 0, count
    cdef int code
    ensure_upper(state, inode)
    cdef OpenFile opened = pooled(state, inode, True)
    cdef int fd = opened.fd
    inode.note_lost_privileges()
    while done < size:
        with nogil:
            count = pwrite(fd, data + done, size - done, offset + done)
            code = 0 if count >= 0 else errno
        if code == EINTR:
            PyErr_CheckSignals()
        elif code and not done:
            fail(code, None)
        elif code or not count:
            break
        else:
            done += count
    return done
