cimport cython

from overlayfs.overlay cimport redirects
from overlayfs.tree cimport c_stat as stat, xattrs
from overlayfs.overlay.descriptors cimport OpenFile
from overlayfs.overlay.inodes cimport Inode
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat


cpdef location(State state, Inode inode)
@cython.locals(opened=OpenFile, fd=int)
cpdef OpenFile open_pooled(State state, Inode inode, bint writable)
@cython.locals(st=Stat)
cpdef Stat regular(int fd)
@cython.locals(dir_fd=int, flags=int, quietly=bint)
cdef int _open(State state, Inode inode, bint writable) except -1
@cython.locals(fd=int, dir_fd=int)
cdef int _open_lower(State state, Inode inode) except -1
@cython.locals(fd=int, is_there=bint)
cdef int _open_with_data(State state, Inode inode) except -2
@cython.locals(dir_fd=int)
cpdef int open_itself(State state, Inode inode) except -1
cpdef bint holds_data(State state, Inode inode, int fd) except -1
@cython.locals(names=tuple)
cpdef tuple xattr_names_of(State state, Inode inode, int fd)
cpdef bint is_at_hand(int fd, Py_ssize_t size) except -1
