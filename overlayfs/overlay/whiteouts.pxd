from overlayfs.overlay cimport drafts, inheritance
from overlayfs.tree cimport c_stat as stat, syscalls, xattrs
from overlayfs.overlay.drafts cimport Draft
from overlayfs.overlay.state cimport State

cdef unsigned int _MODE


cpdef whiteout(State state, int dir_fd, bytes name)
cpdef bint replace_by_whiteout(State state, int dir_fd, bytes name) except -1
cpdef remove_whiteout(int dir_fd, bytes name)
cpdef remove_oci_whiteout(int dir_fd, bytes name)
cpdef make_opaque(State state, int fd)
cpdef bint oci_whiteout(int dir_fd, bytes name) except -1


cdef class WhiteoutBeside:
    cdef int _dir_fd
    cdef bytes _name
    cdef bint _made


cpdef WhiteoutBeside oci_whiteout_beside(int dir_fd, bytes name)
cdef bint _make_mark(int dir_fd, bytes name) except -1
cpdef Draft draft_xattr_whiteout(State state, int dir_fd)
cpdef announce(State state, int dir_fd)
