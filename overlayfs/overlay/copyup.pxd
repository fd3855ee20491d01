cimport cython

from overlayfs.overlay cimport attributes, drafts, indexing, lookup, protection
from overlayfs.tree cimport c_stat as stat, fileflags
from overlayfs.overlay.copyup_file cimport CopyUp
from overlayfs.overlay.inodes cimport Directory, Inode
from overlayfs.overlay.state cimport State
from overlayfs.tree.syscalls cimport Stat


cpdef bint is_whole_in_upper(Inode inode) noexcept
cpdef bint ensure_upper(State state, Inode inode, object need=*, object size=*) except -1
@cython.locals(work=CopyUp)
cpdef bint copy_up(State state, Inode inode, object need=*, object size=*) except -1
cpdef bytes_to_copy(State state, Inode inode, object need, object size=*)
cdef bint _metadata_only(State state, object need) except -1
@cython.locals(parent=Directory)
cpdef CopyUp begin(State state, Inode inode, object need, object size)
cpdef copy_up_name(State state, Inode inode, Directory parent, bytes name, object need)
