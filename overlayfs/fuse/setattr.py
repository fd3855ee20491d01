"""Does a SETATTR take setuid and setgid away?

With FUSE_HANDLE_KILLPRIV_V2 the kernel leaves it to us to take both from a file whose content or owner changes; taking
capabilities is done by the filesystem below.
"""

from __future__ import annotations

import stat

from overlayfs._typing import Final

from ..overlay.values import Attributes
from . import abi
from .callers import caller_with_groups

Asker = tuple[int, int, int]  # uid, gid, pid
SET_IDS: Final = stat.S_ISUID | stat.S_ISGID


def takes_privileges(valid: int, asker: Asker, before: Attributes) -> bool:
    """True where a SETATTR takes setuid and setgid away; `valid` are its FATTR_* bits.

    That is a change of the owner, and any change by who may not keep them. One that asks for nothing announces that the
    content is going to change, or is a chown of nothing, which anybody may try.
    """
    if not stat.S_ISREG(before.mode):
        return False
    if valid & (abi.FATTR_KILL_SUIDGID | abi.FATTR_UID | abi.FATTR_GID):
        return True
    may_write = asker[0] in (0, before.uid) or bool(before.mode & stat.S_IWOTH)
    return may_write and not valid & abi.FATTR_ALL


def unprivileged(before: Attributes, asker: Asker) -> int:
    """The mode that a regular file is left with then: the kernel's setattr_should_drop_suidgid."""
    mode = before.mode & ~stat.S_ISUID
    if mode & stat.S_ISGID:
        asks = caller_with_groups(*asker)
        in_group = asks.uid == 0 or before.gid == asks.gid or before.gid in asks.groups
        if mode & stat.S_IXGRP or not in_group:
            mode &= ~stat.S_ISGID
    return mode
