cimport cython
from libc.stdint cimport uint64_t

from overlayfs.tree cimport syscalls
from overlayfs.overlay.descriptors cimport Descriptors, OpenFile
from overlayfs.overlay.inodes cimport Directory, Inode, InodeTable


cdef class State:
    cdef readonly object options
    cdef public list layers
    cdef public tuple stack
    cdef public object upper
    cdef public tuple frozen
    cdef public list frozen_indexes
    cdef readonly dict copied_from
    cdef readonly Py_ssize_t data_start
    cdef readonly Py_ssize_t data_end
    cdef public object history
    cdef public object former
    cdef readonly object ownership
    cdef readonly Descriptors descriptors
    cdef public InodeTable inodes
    cdef public dict by_real
    cdef readonly dict orphans
    cdef readonly dict sync_errors
    cdef readonly set synced_names
    cdef readonly list unsynced
    cdef readonly set cannot_clone
    cdef readonly set in_memory
    cdef readonly dict created
    cdef readonly set passed_through
    cdef readonly set written_unseen
    cdef public object draft_place
    cdef public object work_inheritance
    cdef public object claim
    cdef public object work_fd
    cdef public object workdir_fd
    cdef public object index_fd
    cdef public set index_names
    cdef readonly set names_to_link
    cdef public object links_fd
    cdef public dict lost_links
    cdef public bytes prefix
    cdef public object whiteout
    cdef public bint xattrs_work
    cdef public bint tmpfiles_work
    cdef readonly dict uuids
    cdef readonly bint follows_redirects
    cdef readonly bint revalidates
    cdef readonly Directory root
    cdef unsigned long long _draft_count

    cpdef Inode inode(self, uint64_t number)
    cpdef add(self, Inode inode)
    cpdef Directory directory(self, uint64_t number)
    cpdef uint64_t free_number(self, uint64_t wanted)
    @cython.locals(parent=Directory)
    cpdef drop_if_unused(self, Inode inode)
    cpdef discard(self, Inode inode)
    @cython.locals(before=OpenFile)
    cpdef pin_created(self, uint64_t number, OpenFile opened)
    cdef _forget_child(self, Directory parent, bytes name, Inode inode)
    cpdef drop_orphan(self, Inode inode)
    cpdef unshare(self, Inode inode)
    @cython.locals(fd=int, held=int, start=int, root_fd=int)
    cpdef int lower_fd(self, object location) except -1
    @cython.locals(fd=int)
    cpdef int upper_fd(self, Directory directory) except -1
    @cython.locals(fd=int, here=Directory)
    cdef tuple _nearest_held(self, Directory directory)
    cdef int _held_upper_fd(self, Directory directory) except -2
    cdef int _root_upper_fd(self) except -1
    cpdef tuple place(self, Inode inode)
    cpdef OpenFile node(self, Inode inode)
    cpdef OpenFile upper_node(self, Inode inode)
    cpdef bytes draft_name(self)
