"""Reading and writing a file's bytes by pointer, for other compiled modules."""

from libc.stdint cimport int64_t

from overlayfs.overlay.descriptors cimport OpenFile
from overlayfs.overlay.inodes cimport Inode
from overlayfs.overlay.state cimport State

cdef enum:
    ON_A_DISK = -2  # what `read_at` gives where the data is not in memory

cpdef OpenFile pooled(State state, Inode inode, bint writable)
cdef Py_ssize_t read_at(State state, Inode inode, int64_t offset, char *room, Py_ssize_t size) except -1
cdef Py_ssize_t write_at(State state, Inode inode, int64_t offset, const char *data, Py_ssize_t size) except -1
