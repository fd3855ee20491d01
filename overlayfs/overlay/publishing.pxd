cimport cython

from overlayfs.overlay cimport drafts, impure, lookup
from overlayfs.overlay.drafts cimport Draft
from overlayfs.overlay.inodes cimport Directory
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat, stat_of


@cython.locals(dir_fd=int, before=Stat)
cpdef publish_name(State state, Draft draft, Directory parent, bytes name)
cpdef replace_unseen(Draft draft, int dir_fd, bytes name)
