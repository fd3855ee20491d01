cimport cython

from overlayfs.overlay cimport content
from overlayfs.tree cimport c_stat as stat
from overlayfs.overlay.descriptors cimport OpenFile
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat
from overlayfs.overlay.values cimport Attributes


@cython.locals(known=Attributes)
cpdef Attributes attributes_of(State state, Inode inode)
@cython.locals(found=Attributes)
cpdef Attributes remember(State state, Inode inode, Stat st, unsigned int fewest_links=*)
cpdef bint is_changed_unseen(State state, Inode inode) except -1
cpdef note_read(State state, Inode inode)
@cython.locals(opened=OpenFile, held=int)
cpdef Stat real_stat(State state, Inode inode)
cpdef owner_of(State state, Inode inode, Stat st)
cpdef group_on_disk(State state, Inode inode)
cdef _mapless_owner(State state, Inode inode, Stat st)
@cython.locals(directory=Directory)
cpdef layer_of(State state, Inode inode)
cdef unsigned int _link_count(State state, Inode inode, Stat st) except? 4294967295
cdef unsigned long long _blocks(State state, Inode inode, Stat st) except? 18446744073709551615
cdef bint _is_metacopy(State state, object location) except -1
cpdef refresh(State state, Inode inode, Attributes otherwise)
