from overlayfs.overlay cimport xattrs
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State


cpdef mark(State state, Directory directory)
cpdef mark_for(State state, Directory directory, Inode inode)
cdef bint _came_from_below(State state, Inode inode) except -1
