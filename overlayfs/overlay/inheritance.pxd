from overlayfs.overlay cimport drafts
from overlayfs.tree cimport fileflags
from overlayfs.overlay.inodes cimport Directory
from overlayfs.overlay.state cimport State


cpdef int place_of_new(State state, Directory parent) except -1
cpdef int place_of_copy(State state, Directory parent) except -1
cpdef int place_for(State state, int dir_fd) except -1
cpdef object of(State state, Directory directory)
cdef object _read(State state, int dir_fd)
cdef int _place(State state, object wanted) except -1
cdef object _make_place(State state, int work_fd)
cpdef forget_place(State state)
