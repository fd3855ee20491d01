from libc.stdint cimport uint64_t

from overlayfs.tree cimport c_stat as stat


cpdef shown_xattr(bytes stored, object spelled)
cpdef stored_xattr(bytes shown, object spelled)
cdef bint _is_reserved(bytes name, object spelled) except -1
cpdef bytes integer_value(uint64_t number)
cpdef bytes origin_value(object handle, bytes filesystem_uuid)
