"""How does an empty upper get a root like that of the topmost lower, which is then the mount's?"""

from __future__ import annotations

import os

from ..tree import metadata, syscalls
from .layer import open_layer


def be_like(lower: bytes, upper: bytes) -> None:
    """Copy owner, mode, xattrs and times of the lower's root to the upper's."""
    layer = open_layer(0, lower)
    target = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        st = syscalls.stat_of(layer.root_fd)
        if layer.override is not None:
            value = os.getxattr(syscalls.descriptor_path(layer.root_fd), layer.override)
            os.setxattr(syscalls.descriptor_path(target), layer.override, value)
        uid, gid = (st.st_uid, st.st_gid) if layer.override is None else (os.geteuid(), os.getegid())
        metadata.copy_metadata(layer.root_fd, target, uid, gid, st.st_mode, st, layer.spelling)
    finally:
        os.close(target)
        os.close(layer.root_fd)
