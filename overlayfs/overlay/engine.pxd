cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from overlayfs.overlay cimport (
    attributes, changing, copyup, files, inheritance, listing, making, names, protection, xattrs,
)
from overlayfs.tree cimport c_stat as stat, syscalls
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.listing cimport Sink
from overlayfs.overlay.readahead cimport ReadAhead
from overlayfs.overlay.state cimport State
from overlayfs.overlay.values cimport AttributeChanges, Attributes, Caller


cdef class Overlay:
    cdef public State state
    cdef readonly object options
    cdef readonly set written_unseen
    cdef readonly bint writes_at_once
    cdef unsigned long long _forgotten
    cdef ReadAhead _ahead
    cdef long _changing

    cdef Inode _inode(self, uint64_t ino)
    cdef Directory _directory(self, uint64_t ino)
    @cython.locals(found=Attributes)
    cdef Attributes _taken(self, Inode inode)
    @cython.locals(directory=Directory, inode=Inode)
    cpdef Attributes find(self, uint64_t parent, bytes name)
    @cython.locals(inode=Inode)
    cpdef forget(self, uint64_t ino, uint64_t count)
    @cython.locals(inode=Inode)
    cpdef Attributes getattr(self, uint64_t ino)
    @cython.locals(inode=Inode, before=Attributes)
    cpdef Attributes setattr(self, uint64_t ino, AttributeChanges changes, Caller caller)
    @cython.locals(inode=Inode)
    cpdef bytes readlink(self, uint64_t ino)
    cpdef Attributes symlink(self, uint64_t parent, bytes name, bytes target, Caller caller)
    @cython.locals(inode=Inode, directory=Directory)
    cpdef Attributes link(self, uint64_t ino, uint64_t parent, bytes name)
    cpdef Attributes mknod(self, uint64_t parent, bytes name, uint32_t mode, uint64_t rdev, Caller caller)
    cpdef Attributes mkdir(self, uint64_t parent, bytes name, uint32_t mode, Caller caller)
    cpdef unlink(self, uint64_t parent, bytes name)
    cpdef rmdir(self, uint64_t parent, bytes name)
    cpdef rename(self, uint64_t parent, bytes name, uint64_t new_parent, bytes new_name, int flags=*)
    @cython.locals(inode=Inode)
    cpdef Attributes create(self, uint64_t parent, bytes name, uint32_t mode, int flags, Caller caller)
    @cython.locals(inode=Inode)
    cpdef Attributes tmpfile(self, uint64_t parent, uint32_t mode, int flags, Caller caller)
    cpdef open_file(self, uint64_t ino, int flags)
    @cython.locals(inode=Inode)
    cpdef release(self, uint64_t ino)
    cpdef bytes read(self, uint64_t ino, int64_t offset, Py_ssize_t size)
    cpdef object read_into(self, uint64_t ino, int64_t offset, object buffer)
    @cython.locals(inode=Inode)
    cpdef note_changed(self, uint64_t ino)
    @cython.locals(inode=Inode)
    cpdef refuse_write(self, uint64_t ino, object appended_at, bint opened_unasked)
    cpdef Py_ssize_t write(self, uint64_t ino, int64_t offset, object data) except -1
    @cython.locals(directory=Directory)
    cpdef fill(self, uint64_t ino, uint64_t offset, Sink sink)
    cpdef bint read_ahead(self) except -1
    cpdef bytes find_xattr(self, uint64_t ino, bytes name)
