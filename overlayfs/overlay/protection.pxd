from overlayfs.tree cimport c_stat as stat, xattrs
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State
from overlayfs.overlay.values cimport AttributeChanges


cpdef int flags_of(State state, Inode inode) except -1
cdef int _read(State state, Inode inode) except -1
cpdef refuse_open(State state, Inode inode, int flags)
cpdef refuse_write(State state, Inode inode, bint appends, bint opened_unasked)
cpdef refuse_allocation(State state, Inode inode, int mode)
cpdef refuse_change(State state, Inode inode)
cpdef refuse_attributes(State state, Inode inode, AttributeChanges changes)
cdef bint _is_of_writeback(Inode inode, AttributeChanges changes) except -1
cpdef refuse_new_name(State state, Directory parent)
cpdef refuse_removal(State state, Directory parent, Inode inode)
