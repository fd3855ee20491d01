cimport cython

from overlayfs.overlay cimport content, copyup, protection, xattrs
from overlayfs.tree cimport c_stat as stat, metadata, syscalls
from overlayfs.overlay.attributes cimport attributes_of
from overlayfs.overlay.descriptors cimport OpenFile
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State
from overlayfs.overlay.values cimport AttributeChanges, Attributes, Caller


@cython.locals(before=Attributes)
cdef AttributeChanges _with_lost_setgid(State state, Inode inode, AttributeChanges changes, Caller caller)
@cython.locals(opened=OpenFile, truncated=bint)
cpdef change(State state, Inode inode, AttributeChanges changes, Caller caller)
cdef _truncate(int fd, object size)
cpdef Attributes after_change(State state, Inode inode, Attributes before, AttributeChanges changes)
cdef _set_owner_and_mode(State state, Inode inode, int fd, AttributeChanges changes)
@cython.locals(before=Attributes)
cpdef setxattr(State state, Inode inode, bytes name, bytes value, int flags, Caller caller)
cdef bint _loses_setgid(Attributes before, Caller caller) except -1
cpdef removexattr(State state, Inode inode, bytes name)
cdef bytes _stored_for_change(State state, bytes name)
cdef _forget_cached(Inode inode, bytes name)
