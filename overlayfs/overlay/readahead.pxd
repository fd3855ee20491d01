cimport cython

from overlayfs.overlay cimport attributes
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.lookup cimport Finder
from overlayfs.overlay.state cimport State


cdef class ReadAhead:
    cdef State _state
    cdef list _waiting
    cdef Directory _current
    cdef list _names
    cdef Finder _finder
    cdef dict _read
    cdef Py_ssize_t _ahead

    @cython.locals(child=Inode)
    cpdef note_listed(self, Directory directory)
    @cython.locals(names=list, finder=Finder)
    cpdef bint step(self) except -1
    @cython.locals(directory=Directory, names=list)
    cdef bint _begin(self) except -1
    cdef bint _is_known(self, Directory directory) except -1
    @cython.locals(inode=Inode)
    cdef _describe(self, Finder finder, bytes name)
    cdef _make_room(self)
    cpdef drop_all(self)
    cdef _count_out(self, Directory directory)
    @cython.locals(inode=Inode)
    cdef _drop(self, Directory directory)


cdef bint _is_unread(Directory directory) except -1
