cimport cython
from libc.stdint cimport uint64_t

from overlayfs.overlay cimport attributes, redirects
from overlayfs.tree cimport c_stat as stat, xattrs
from overlayfs.overlay.inodes cimport Directory, Inode, is_shown_as_on_disk, lower_file, stable_number
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat


cpdef dict above(State state, Directory directory)
cpdef dict below(State state, Directory directory)
cdef _scan(State state, object layer, int dir_fd)
cpdef note(Directory parent, bytes name, object kind)
cpdef list names(State state, Directory directory)
cpdef bint in_lower(State state, Directory directory, bytes name) except -1
@cython.locals(found=Inode)
cpdef Inode child(State state, Directory parent, bytes name)
@cython.locals(found=Inode)
cpdef Inode existing_child(State state, Directory parent, bytes name)


cdef class Finder:
    cdef State state
    cdef Directory parent
    cdef dict visible
    cdef dict upper
    cdef list sources
    cdef bint begun
    cdef unsigned long long operation
    cdef _begin(self)
    @cython.locals(state=State, parent=Directory, found=Inode, number=uint64_t, dir_fd=int, source=tuple, st=Stat)
    cpdef Inode find(self, bytes name)


@cython.locals(known=dict)
cdef Inode _resolve(State state, Directory parent, bytes name)
cdef Stat _stat(int dir_fd, bytes name)
@cython.locals(inode=Inode, dir_fd=int)
cdef Inode _lower_file(State state, Directory parent, bytes name, Py_ssize_t position)
@cython.locals(known=Inode, inode=Inode, dir_fd=int)
cdef Inode _linked_lower_file(State state, Directory parent, bytes name, Py_ssize_t position, Stat st)
@cython.locals(directory=Directory)
cdef Directory _lower_directory(State state, Directory parent, bytes name, tuple positions)
cdef _frozen_marks(object layer, int dir_fd, bytes name)
@cython.locals(known=Inode, inode=Inode, dir_fd=int)
cdef Inode _from_upper(State state, Directory parent, bytes name, object kind)
cdef _share_upper(State state, Inode inode, int dir_fd, Stat st, object found)
cdef _lower_links(State state, Directory parent, bytes name)
@cython.locals(known=Inode)
cdef Inode _from_index(State state, object location, Stat st)
@cython.locals(directory=Directory)
cdef Directory _upper_directory(
    State state, Directory parent, bytes name, Stat st, object found, uint64_t number, object kind
)
cdef Inode _known(State state, Inode inode, Stat st)
@cython.locals(inode=Inode)
cdef Inode _new_inode(State state, Directory parent, bytes name, Stat st, uint64_t number)
@cython.locals(directory=Directory)
cdef Directory _new_directory(State state, Directory parent, bytes name, uint64_t number)
@cython.locals(inode=Inode, directory=Directory)
cpdef Inode adopt(State state, Directory parent, bytes name, uint64_t number, Stat st)
cpdef forget_changed(State state, Directory directory)
@cython.locals(known=Inode, fresh=Inode)
cdef _revalidate(State state, Directory parent, bytes name)
cdef _keep_or_replace(State state, Directory parent, bytes name, Inode known, Inode fresh)
@cython.locals(child=Inode)
cdef _take_lowers(Directory known, Directory fresh)
