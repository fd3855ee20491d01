from overlayfs.tree cimport syscalls


cpdef bytes control(int fd, unsigned long command, bytes argument)
cpdef int protecting_flags(int dir_fd, bytes name) except -1
cpdef bint copy_flags(int source, int target) except -1
cdef bytes _control_node(int fd, unsigned long command, bytes argument)
cpdef int open_to_control(int fd) except -1
