from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from overlayfs.overlay.values cimport Attr
from overlayfs.tree.syscalls cimport Stat


cdef class Inode:
    cdef Attr attr  # `ino` always holds; the rest only while `known`
    cdef public Directory parent
    cdef public bytes name
    cdef public tuple xattr_names
    cdef Rare rare
    cdef public uint64_t nlookup
    cdef public int32_t opens
    cdef readonly uint32_t kind
    cdef readonly int32_t position  # of the layer in its parent's lowers that has it under its own name; _ELSEWHERE
    cdef unsigned char known
    cdef signed char protecting  # immutable, append-only; -1: not read yet
    cdef public unsigned char upper  # bool
    cdef public unsigned char metacopy  # bool
    cdef Rare _rare(self)
    cpdef show_as_on_disk(self, Stat found, uint32_t links, uint64_t blocks)
    cpdef provided_by(self, int32_t position)


cdef class Rare:
    cdef list aliases
    cdef object lower
    cdef bytes index_name
    cdef int64_t lost_links
    cdef list shared_as


cdef class Directory(Inode):
    cdef public tuple lowers
    cdef public bytes lower_path
    cdef public dict above
    cdef public dict below
    cdef public dict children
    cdef public object default_acl
    cdef public object inheritance
    cdef public bint impure
    cdef public Listing listing
    cdef public object seen
    cpdef forget_upper(self)


cdef class Listing:
    cdef public list names
    cdef public object offsets


cdef class InodeTable:
    cdef PyObject **_slots
    cdef Py_ssize_t _capacity  # a power of two
    cdef Py_ssize_t _count
    cpdef Inode get(self, uint64_t number)
    cpdef int add(self, Inode inode) except -1
    cpdef int discard(self, uint64_t number) except -1
    cdef Py_ssize_t _place(self, uint64_t number) noexcept
    cdef int _rebuild(self, Py_ssize_t room) except -1


cdef bint is_directory(Inode inode) noexcept
cpdef uint64_t stable_number(bytes identity, int64_t device, Stat found) except 0
cpdef bint is_shown_as_on_disk(Stat found) noexcept
cpdef Inode lower_file(uint64_t number, Directory parent, bytes name, int32_t position, Stat found)
