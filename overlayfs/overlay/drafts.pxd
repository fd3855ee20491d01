cimport cython

from overlayfs.tree cimport c_stat as stat, syscalls
from overlayfs.overlay.inodes cimport Directory
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat, stat_of

cdef unsigned int _FORMAT, _DIRECTORY, _LINK, _REGULAR, _PERMISSIONS
cdef int _EXCLUSIVE, _UNNAMED


cpdef note_left_over(object error)


cdef class Afterwards:
    pass


cpdef Afterwards afterwards()


cdef class Unseen:
    cdef int _dir_fd
    cdef Stat _before


cpdef restore_times(int dir_fd, Stat before)
cpdef Unseen unseen(int dir_fd)


cdef class Draft:
    cdef State _state
    cdef int _place
    cdef bytes _name
    cdef readonly int fd
    cdef readonly bint is_directory
    cpdef close(self)
    cpdef int keep_descriptor(self) except -2
    cdef bytes _give_name(self)
    cpdef publish(self, int dir_fd, bytes name)
    @cython.locals(own_name=bytes)
    cpdef replace(self, int dir_fd, bytes name)


@cython.locals(where=int, name=bytes)
cpdef Draft draft_file(State state, int place=*, int bits=*, bint named=*)


cdef class Maker:
    cdef readonly unsigned int kind
    cdef unsigned long long _rdev
    cdef bytes _target
    cpdef make(self, int dir_fd, bytes name, int bits)


cpdef Maker maker(unsigned int kind, unsigned long long rdev=*, bytes target=*)
@cython.locals(where=int)
cpdef Draft draft_directory(State state, int place=*)
@cython.locals(name=bytes, fd=int)
cpdef Draft draft_node(State state, Maker make, int place, int bits=*)
cpdef int work_fd_of(State state) except -1
cpdef bint removed_from_work(int work_fd, bytes name) except -1
cpdef remove(int dir_fd, bytes name)
cpdef remove_directory(int dir_fd, bytes name)
cpdef remove_content(int fd)
cdef int _flatten(int fd, bytes name, int serial) except -1
cdef int _move_up(int below, bytes entry, int fd, int serial) except -1
cpdef note_changed(State state, Directory directory)
@cython.locals(directory=Directory)
cpdef sync_changed(State state)
cpdef object written_owner(State state, int fd, object owner)
@cython.locals(fd=int, is_done=bint)
cpdef Stat fill(State state, Draft draft, unsigned int uid, unsigned int gid, unsigned int mode, tuple acls)
