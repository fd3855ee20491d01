cimport cython

from overlayfs.overlay cimport attributes, copyup_plan, drafts, inheritance, publishing
from overlayfs.tree cimport fileflags, metadata
from overlayfs.overlay.inodes cimport Directory
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat


@cython.locals(here=Directory, found=Directory)
cpdef ensure_upper_directory(State state, Directory directory)
@cython.locals(parent=Directory, st=Stat, source=int)
cdef _copy_up_directory(State state, Directory directory)
