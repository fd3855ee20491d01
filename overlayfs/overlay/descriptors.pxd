cimport cython

from overlayfs.tree cimport syscalls


cdef class OpenFile:
    cdef readonly int fd
    cdef readonly bint writable
    cdef public bint may_wait
    cdef public int pins
    cdef readonly bint stale
    cpdef unpin(self)
    cpdef retire(self)


cpdef OpenFile unpooled(int fd)
cpdef OpenFile borrowed(int fd)


cdef class HeldDirectory:
    cdef int fd
    cdef unsigned long long operation
    cdef bint used


cdef class Descriptors:
    cdef Py_ssize_t _directory_limit
    cdef Py_ssize_t _file_limit
    cdef dict _directories
    cdef dict _files
    cdef readonly unsigned long long operation
    cdef public object last_resort
    cpdef begin(self)
    @cython.locals(found=HeldDirectory)
    cpdef int cached_directory(self, object key) except -2
    cpdef int open_directory(self, object key, int start_fd, bytes path) except -1
    @cython.locals(found=HeldDirectory)
    cpdef drop_directory(self, object key)
    @cython.locals(found=HeldDirectory)
    cdef bint _evict_directory(self) except -1
    @cython.locals(found=HeldDirectory)
    cdef bint _evict_oldest_directory(self) except -1
    @cython.locals(found=OpenFile)
    cpdef OpenFile file(self, unsigned long long number)
    cpdef OpenFile add_file(self, unsigned long long number, int fd, bint writable)
    @cython.locals(opened=OpenFile)
    cpdef drop_file(self, unsigned long long number)
    @cython.locals(opened=OpenFile)
    cdef bint _evict_file(self) except -1
    cpdef bint may_try_again(self, object error) except -1
    @cython.locals(opened=OpenFile)
    cpdef freeze(self, object unnamed)
    @cython.locals(found=HeldDirectory, opened=OpenFile)
    cpdef drop(self, object unchanged)
    cpdef close_dropped(self)
    @cython.locals(found=HeldDirectory, opened=OpenFile)
    cpdef close(self)
    cpdef int open_at(self, int dir_fd, bytes name, int flags, int mode=*, bint quietly=*) except -1
    cpdef int open_beneath(self, int root_fd, bytes path) except -1
    cpdef int reopen(self, int fd, int flags, bint quietly=*) except -1
