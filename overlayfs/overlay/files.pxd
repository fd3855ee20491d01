cimport cython
from libc.stdint cimport int64_t

from overlayfs.overlay cimport changing, copyup, protection
from overlayfs.tree cimport c_stat as stat, syscalls
from overlayfs.overlay.descriptors cimport OpenFile
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State


@cython.locals(writes=bint)
cpdef open_file(State state, Inode inode, int flags)
@cython.locals(opened=OpenFile)
cpdef note_created(State state, Inode inode)
@cython.locals(created=OpenFile)
cpdef release(State state, Inode inode)
@cython.locals(opened=OpenFile)
cpdef fetch(State state, Inode inode, int64_t offset, Py_ssize_t size)
cpdef OpenFile pass_through(State state, Inode inode)
cpdef note_written_unseen(State state, Inode inode)
@cython.locals(opened=OpenFile)
cpdef allocate(State state, Inode inode, int mode, int64_t offset, int64_t length)
@cython.locals(opened=OpenFile)
cpdef seek(State state, Inode inode, int64_t offset, int whence)
cpdef OpenFile descriptor_to_sync(State state, Inode inode)
cdef OpenFile _open_metacopy(State state, Inode inode)
cpdef bint is_name_synced(State state, Inode inode) except -1
cpdef note_sync(State state, Inode inode, OpenFile opened, object failure)
cdef _refuse_if_failed(State state, Inode inode)
@cython.locals(opened=OpenFile)
cpdef fsync(State state, Inode inode, bint datasync)
cpdef object open_to_sync(State state, Directory directory)
