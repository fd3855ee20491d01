cimport cython
from libc.stdint cimport int64_t, uint64_t

from overlayfs.overlay cimport attributes, content, copyup_plan, drafts, indexing, inheritance, publishing
from overlayfs.tree cimport c_stat as stat, filedata, fileflags, metadata, syscalls, xattrs
from overlayfs.overlay.copyup_plan cimport Source
from overlayfs.overlay.descriptors cimport OpenFile
from overlayfs.overlay.drafts cimport Draft
from overlayfs.overlay.inodes cimport Inode
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat


cdef class CopyUp:
    cdef State _state
    cdef Inode _inode
    cdef readonly bint truncates
    cdef int _data_fd
    cdef Stat _data
    cdef int _target
    cdef list _pinned
    cdef Draft _draft
    cdef _set_up(self, State state, Inode inode, bint truncates)
    cdef bint _must_sync(self) except -1
    cpdef begin(self)
    @cython.locals(opened=OpenFile, draft=Draft, pinned=list)
    cpdef end(self)
    cdef int _pin(self, OpenFile opened) except -1
    cpdef _prepare(self)
    cdef _open_data(self)
    cpdef transfer(self)
    cpdef fill(self)
    cpdef publish(self)


cdef class Copy(CopyUp):
    cdef int64_t _new_size
    cdef int64_t _size
    cdef bint _was_upper
    cdef bint _was_metacopy
    cdef bint _metacopy
    cdef Source _source
    cdef object _owner
    cdef object _spelling
    cdef list _xattrs
    @cython.locals(source=Source, state=State, inode=Inode, st=Stat)
    cpdef _prepare(self)
    @cython.locals(source=Source, st=Stat, fd=int, is_file=bint)
    cpdef fill(self)
    @cython.locals(size=int64_t)
    cdef _fill_data(self, int fd)
    @cython.locals(state=State, inode=Inode, dir_fd=int, opened=OpenFile, draft=Draft, number=uint64_t)
    cpdef publish(self)


cdef class Completion(CopyUp):
    cdef Stat _st
    @cython.locals(state=State, inode=Inode)
    cpdef _prepare(self)
    @cython.locals(st=Stat, fd=int)
    cpdef fill(self)
    cpdef publish(self)


@cython.locals(may_have_holes=bint, refused=int)
cdef _copy_data(State state, int source, Stat st, int target, int64_t size)
cdef _note_copied(State state, Inode inode)
cdef _draft_like(State state, Inode inode, Source source)
