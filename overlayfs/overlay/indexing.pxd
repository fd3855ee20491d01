cimport cython

from overlayfs.overlay cimport attributes, copyup_directory, impure, lookup, publishing
from overlayfs.tree cimport c_stat as stat, syscalls
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat


@cython.locals(named=bint, names_left=long, is_linked=bint)
cpdef publish(State state, Inode inode, object draft, Stat st)
@cython.locals(index_fd=int, fd=int, made=Stat, remaining=long)
cdef _publish_in_index(State state, Inode inode, object draft, bytes index_name, Stat st)
cdef _forget_number(State state, object draft)
@cython.locals(parent=Directory, other_parent=Directory)
cdef _publish_under_known_names(State state, Inode inode, object draft)
cpdef bint has_one_name(State state, Inode inode) except -1
cdef bint _can_index(State state, Inode inode) except -1
@cython.locals(to_fd=int)
cdef _link_name(State state, int dir_fd, bytes source, Directory parent, bytes name)
@cython.locals(fd=int)
cpdef link_lower_name(State state, Inode inode, Directory parent, bytes name)
@cython.locals(parent=Directory)
cpdef link_known_names(State state, Inode inode)
@cython.locals(fd=int)
cpdef before_linking(State state, Inode inode)
cpdef remove(State state, Inode inode)
cpdef about_to_delete_name(State state, Inode inode, Directory directory, bytes name)
cpdef deleted_name(State state, Inode inode)
