cimport cython

from overlayfs.overlay cimport attributes, copyup, drafts, inheritance, lookup, protection, whiteouts, xattrs
from overlayfs.tree cimport c_stat as stat
from overlayfs.overlay.drafts cimport Draft, Maker
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat, stat_of
from overlayfs.overlay.values cimport Caller

cdef unsigned int _FORMAT, _DIRECTORY, _REGULAR, _LINK, _SETGID, _PERMISSIONS
cdef int _CREATE_FLAGS


@cython.locals(made=Inode, draft=Draft, bits=cython.uint, place=int)
cpdef Inode create(State state, Directory parent, bytes name, unsigned int mode, Caller caller)
@cython.locals(fd=int, dir_fd=int, is_right=bint, inode=Inode)
cdef Inode _create_in_place(State state, Directory parent, bytes name, unsigned int wanted)
cdef bint _is_plain_there(State state, Directory parent, bytes name, Caller caller) except -1
@cython.locals(mode=cython.uint)
cdef bint _is_right(State state, Directory parent, Stat st, unsigned int wanted) except -1
cpdef Inode mkdir(State state, Directory parent, bytes name, unsigned int mode, Caller caller)
cpdef Inode symlink(State state, Directory parent, bytes name, bytes target, Caller caller)
cpdef Inode mknod(State state, Directory parent, bytes name, unsigned int mode, unsigned long long rdev, Caller caller)
@cython.locals(made=Inode, draft=Draft, granted=cython.uint)
cdef Inode _make_node(State state, Directory parent, bytes name, unsigned int bits, Caller caller, Maker make)
@cython.locals(dir_fd=int, is_right=bint, inode=Inode)
cdef Inode _make_in_place(State state, Directory parent, bytes name, unsigned int bits, Maker make)
@cython.locals(kind=cython.uint, inode=Inode)
cdef Inode _publish_new(State state, Draft draft, Directory parent, bytes name, unsigned int mode, Caller caller)
cdef _sync_new(State state, Inode inode)
cpdef prepare_new_name(State state, Directory parent, bytes name)
cpdef check_new_name(State state, Directory parent, bytes name)
cpdef check_alive(State state, Directory parent)
cdef Stat _fill(State state, Draft draft, Directory parent, unsigned int mode, Caller caller)
@cython.locals(dir_fd=int, hidden=bint)
cpdef publish(State state, Draft draft, Directory parent, bytes name)
cdef bint _is_hidden(State state, Directory parent, bytes name) except -1
@cython.locals(inode=Inode)
cdef Inode _adopt(State state, Directory parent, bytes name, Stat st)
cdef Stat _stat_or(int fd, Stat before)
cpdef note_new_name(Inode inode, Directory parent, bytes name)
@cython.locals(inode=Inode, draft=Draft)
cpdef Inode tmpfile(State state, Directory parent, unsigned int mode, Caller caller)
