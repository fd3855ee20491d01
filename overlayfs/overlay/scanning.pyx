# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Which names does one directory of one layer have, and what does the layer say of each?

Compiled, as it looks at every name of every directory that is listed. Neighbour: merge, which puts several such
directories together. Thread-safe.
"""

from cpython.bytes cimport PyBytes_FromString
from libc.string cimport memcmp

from ..tree.access cimport DT_DIR, DT_LNK, DT_REG, Listing, scan as list_directory, stat_at

from ..tree import marks
from .merge import Kind, Names

cdef object _FILE = Kind.FILE
cdef object _DIRECTORY = Kind.DIRECTORY
cdef object _OPAQUE_DIRECTORY = Kind.OPAQUE_DIRECTORY
cdef object _WHITEOUT = Kind.WHITEOUT
cdef bytes _PREFIX = marks.WHITEOUT_PREFIX
cdef const char *_prefix = _PREFIX
cdef size_t _prefix_size = len(_PREFIX)


cpdef object scan(int dir_fd, object opacity, object spelled, bint quietly=False):
    """Read a directory of a layer, `quietly` without moving its access time where we may. Raises what reading it
    raises: an unreadable layer is never a smaller listing."""
    cdef dict kinds = {}
    cdef list hidden = []
    cdef bint opaque = opacity is marks.Opacity.OPAQUE
    cdef bint xattr_whiteouts = opacity is marks.Opacity.XATTR_WHITEOUTS
    cdef Listing listing = list_directory(dir_fd, quietly)
    cdef bytes name
    while listing.advance():
        name = PyBytes_FromString(listing.name)
        if <size_t>len(name) >= _prefix_size and memcmp(listing.name, _prefix, _prefix_size) == 0:
            opaque = opaque or name == marks.OPAQUE_NAME
            deleted = marks.whited_out_name(name)
            if deleted is not None:
                hidden.append(deleted)
        elif listing.kind == DT_DIR:
            kinds[name] = _DIRECTORY
        elif listing.kind == DT_LNK or (listing.kind == DT_REG and not xattr_whiteouts):
            kinds[name] = _FILE
        elif marks.is_whiteout(dir_fd, name, stat_at(dir_fd, name), spelled):
            kinds[name] = _WHITEOUT
        else:
            kinds[name] = _FILE
    for name in hidden:
        here = kinds.get(name)
        if here is None:
            kinds[name] = _WHITEOUT
        elif here is _DIRECTORY:
            kinds[name] = _OPAQUE_DIRECTORY
    return Names(kinds, opaque)
