cimport cython

from overlayfs.overlay cimport drafts, impure, lookup
from overlayfs.overlay.inodes cimport Directory
from overlayfs.overlay.state cimport State


@cython.locals(dir_fd=int)
cpdef publish_name(State state, object draft, Directory parent, bytes name)
cpdef replace_unseen(object draft, int dir_fd, bytes name)
