cimport cython

from overlayfs.tree cimport metadata
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State


cpdef list listxattr(State state, Inode inode)
cpdef tuple stored_names(State state, Inode inode)
cdef tuple _list(State state, Inode inode)
cpdef bytes find_xattr(State state, Inode inode, bytes name)
cpdef bint allowed(State state, bytes name) except -1
cpdef default_acl(State state, Directory directory)
