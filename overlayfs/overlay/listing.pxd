cimport cython
from libc.stdint cimport uint64_t

from overlayfs.overlay cimport attributes, lookup
from overlayfs.tree cimport c_stat as stat
from overlayfs.overlay.inodes cimport Directory, Inode, Listing
from overlayfs.overlay.lookup cimport Finder
from overlayfs.overlay.state cimport State
from overlayfs.overlay.values cimport Attributes


cdef class Sink:
    cdef readonly bint takes
    cpdef bint put(self, bytes name, uint64_t offset, Attributes found, bint can_be_taken) except -1


cdef Listing _refreshed(State state, Directory directory)
@cython.locals(names=list, index=Py_ssize_t, first=Py_ssize_t, listing=Listing, own=Attributes, of_parent=Attributes, above=Directory)
cpdef bint fill(State state, Directory directory, uint64_t offset, Sink sink) except -1
@cython.locals(inode=Inode, found=Attributes, taken=bint)
cdef bint _put(State state, Directory directory, Finder finder, bytes name, uint64_t offset, Sink sink) except -1
cdef Attributes _unreadable(State state, Directory directory, bytes name)
