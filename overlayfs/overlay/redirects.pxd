cimport cython

from overlayfs.tree cimport c_stat as stat
from overlayfs.overlay.inodes cimport Directory
from overlayfs.overlay.state cimport State


cpdef bytes join(bytes parent, bytes name)
cpdef bint is_opaque(int dir_fd, bytes name, object found) except -1
@cython.locals(found=list, dir_fd=int)
cpdef tuple stack_of(State state, Directory parent, bytes name, tuple positions)
cdef tuple _redirected(State state, Directory parent, Py_ssize_t position, bytes redirect)
cpdef tuple locate(State state, Py_ssize_t first_layer, bytes path)
cpdef data_below(State state, Directory parent, bytes name, bytes redirect)
cpdef data_below_lower(State state, object location)
