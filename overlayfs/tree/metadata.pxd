cimport cython

from overlayfs.tree cimport c_stat as stat, marks, syscalls, xattrs
from overlayfs.tree.syscalls cimport Stat


cpdef set_owner(int fd, object uid, object gid)
cpdef set_mode(int fd, unsigned int mode)
cpdef copy_metadata(
    int source,
    int target,
    object uid,
    object gid,
    unsigned int mode,
    Stat st,
    object spelled,
    bytes without=*,
    object present=*,
)
@cython.locals(name=bytes)
cpdef copy_xattrs(int source, int target, object spelled, bytes without, object present)
