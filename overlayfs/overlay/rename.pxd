cimport cython

from overlayfs.overlay cimport copyup, drafts, impure, lookup, making, names, protection, whiteouts
from overlayfs.tree cimport syscalls
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State


cdef class _Side:
    cdef readonly Directory parent
    cdef readonly bytes name
    cdef readonly Inode inode


@cython.locals(source=_Side, target=_Side)
cpdef rename(State state, Directory parent, bytes name, Directory new_parent, bytes new_name, unsigned int flags)
cdef _keep(Inode inode)
cdef _let_go(State state, Inode inode)
cdef _check(State state, _Side source, _Side target, unsigned int flags)
cdef _check_replacement(State state, _Side source, _Side target)
@cython.locals(side=_Side)
cdef _refuse_protected(State state, _Side source, _Side target)
cdef bint _is_below(Directory directory, Inode ancestor) except -1
cdef _copy_up(State state, _Side side)
cdef _prepare_to_move(State state, Inode inode, Directory new_parent, bytes new_name)
@cython.locals(directory=Directory)
cpdef bint needs_whole_copy(State state, Inode inode) except -1
cdef _write_redirect(State state, Inode inode, bytes target)
@cython.locals(inode=Inode, replaced=Inode, covered=bint, left=bint)
cdef _move(State state, _Side source, _Side target)
@cython.locals(holds=bint, left=bint)
cdef bint _rename_over(State state, _Side source, _Side target, Inode replaced, bint covered) except -1
cdef _reassign(_Side source, _Side target, Inode inode)
@cython.locals(from_fd=int, to_fd=int, hidden=bint, left=bint)
cdef bint _rename_on_disk(State state, _Side source, _Side target, bint covered) except -1
cdef bint _rename_with_whiteout(
    _Side source, _Side target, int from_fd, int to_fd, bint hidden, bint covered
) except -1
cdef bint _replace(_Side source, _Side target, int from_fd, int to_fd) except -1
cdef bint _removed(int dir_fd, bytes name) except -1
cdef _rename_and_xattr_whiteout(State state, _Side source, _Side target, int from_fd, int to_fd, bint hidden)
cdef bint _exists(int dir_fd, bytes name) except -1
@cython.locals(first=Inode, second=Inode, from_fd=int, to_fd=int, inode=Inode, old=_Side, new=_Side)
cdef _exchange(State state, _Side source, _Side target)
