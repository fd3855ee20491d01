cimport cython

from overlayfs.overlay cimport (
    attributes, copyup, drafts, impure, indexing, inheritance, lookup, making, protection, whiteouts,
)
from overlayfs.tree cimport metadata, syscalls
from overlayfs.overlay.drafts cimport Draft
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State
from overlayfs.overlay.values cimport Attributes
from overlayfs.tree.syscalls cimport Stat, stat_of


@cython.locals(st=Stat, before=Attributes, dir_fd=int)
cpdef link(State state, Inode inode, Directory parent, bytes name)
@cython.locals(from_fd=int, source=bytes)
cdef _link_named(State state, Inode inode, Directory parent, int dir_fd, bytes name)
cdef _link_orphan(State state, Inode inode, Directory parent, int orphan, int dir_fd, bytes name)
cdef bint _is_hidden(State state, Directory parent, bytes name) except -1
cdef _replace_whiteout(State state, bytes draft, int dir_fd, bytes name)
@cython.locals(inode=Inode)
cpdef unlink(State state, Directory parent, bytes name)
@cython.locals(dir_fd=int, covered=bint, holds=bint)
cpdef hide(State state, Directory parent, bytes name, Inode inode)
cdef _remove(State state, int dir_fd, bytes name, Inode inode, bint covered)
cdef _remove_directory(State state, int dir_fd, bytes name)
cpdef remove_replaced(State state, int dir_fd, bytes name)
@cython.locals(upper=dict)
cpdef bint prepare_to_hide(State state, Directory parent, bytes name, Inode inode) except -1
cpdef note_hidden(State state, Inode inode)
@cython.locals(dir_fd=int, name=bytes)
cpdef bint hold(State state, Inode inode) except -1
cdef bint _may_lose_all_names(State state, Inode inode) except -1
cpdef forget_name(State state, Inode inode, Directory parent, bytes name)
@cython.locals(inode=Inode)
cpdef rmdir(State state, Directory parent, bytes name)
@cython.locals(found=Inode)
cpdef check_empty(State state, Directory directory)
@cython.locals(parent=Directory, name=bytes, dir_fd=int, place=int, draft=Draft, st=Stat)
cpdef replace_by_empty(State state, Directory directory)
@cython.locals(fd=int)
cdef bint _is_empty_on_disk(State state, Directory directory) except -1
cdef _hide_below(State state, Draft draft, Directory parent, bytes name)
