cpdef int clone(int source, int target) except -1
cpdef bint never_clones(int code) noexcept
