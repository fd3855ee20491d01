cimport cython
from libc.stdint cimport int64_t

from overlayfs.overlay cimport attributes, content, protection
from overlayfs.tree cimport c_stat as stat, marks, syscalls, xattrs
from overlayfs.overlay.descriptors cimport OpenFile
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat


cdef class Source:
    cdef readonly OpenFile opened
    cdef readonly int fd
    cdef readonly Stat st
    cdef readonly bint has_data
    cdef readonly tuple xattrs


@cython.locals(opened=OpenFile, st=Stat, is_readable=bint)
cpdef Source source_of(State state, Inode inode)
@cython.locals(pooled=OpenFile)
cdef tuple _opened(State state, Inode inode)
@cython.locals(opened=OpenFile, fd=int)
cpdef OpenFile readable(State state, Inode inode)
cpdef owner_on_disk(State state, Inode inode, Stat st)
cpdef list mark_xattrs(State state, Inode inode, int source, bint metacopy)
