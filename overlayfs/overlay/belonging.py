"""Was an upper first mounted on the same topmost lower layer?

The kernel's overlayfs with index=on remembers on the upper's root which directory the topmost lower layer was
(fs/overlayfs/super.c, ovl_get_indexdir), and refuses the upper with any other (ESTALE): what is copied up and indexed
would be taken for copies of other files. We do so where index=on is asked for. Without that, as container engines
mount, layers may be unpacked anew or moved elsewhere.
"""

from __future__ import annotations

import errno
import os

from ..tree import access, marks, syscalls, xattrs
from .options import MountError
from .state import State


def verify_origin(state: State) -> None:
    """MountError where the upper was first mounted on another lower layer; remembers this one where it is the first."""
    if not state.options.verifies_origin or not state.xattrs_work or state.upper is None:
        return
    lower = state.layers[0]
    origin = marks.origin_value(syscalls.file_handle(lower.root_fd), state.uuid(lower))
    if not origin:  # its filesystem has no file handles
        return
    root_fd, name = state.upper.root_fd, state.prefix + marks.ORIGIN
    known = xattrs.read_xattr_of_descriptor(root_fd, name)
    if not known:
        _remember(root_fd, name, origin)
    elif not marks.is_same_origin(known, origin):
        raise MountError(
            f"upperdir: {os.fsdecode(state.upper.path)} was first mounted on another lower layer than"
            f" {os.fsdecode(lower.path)} (leave index=on out to mount it all the same)"
        )


def _remember(root_fd: int, name: bytes, origin: bytes) -> None:
    try:
        access.setxattr(root_fd, name, origin)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full filesystem must still be mounted to be made free
            raise
