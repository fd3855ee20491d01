"""What does a SETATTR ask for, and does it take setuid and setgid away?

With FUSE_HANDLE_KILLPRIV_V2 the kernel leaves it to us to take both from a file whose content or owner changes; taking
capabilities is done by the filesystem below.
"""

from __future__ import annotations

import stat
import time

from overlayfs._typing import Final

from ..overlay.values import AttributeChanges, Attributes
from . import abi
from .callers import caller_with_groups

Asker = tuple[int, int, int]  # uid, gid, pid
SET_IDS: Final = stat.S_ISUID | stat.S_ISGID


def touches_privileges(changes: AttributeChanges) -> bool:
    """False for a SETATTR of times alone."""
    return (changes.uid, changes.gid, changes.mode, changes.size) != (None, None, None, None) or changes.is_nothing


def takes_privileges(body: memoryview, asker: Asker, before: Attributes) -> bool:
    """True where a SETATTR takes setuid and setgid away.

    That is a change of the owner, and any change by who may not keep them. One that asks for nothing announces that the
    content is going to change, or is a chown of nothing, which anybody may try.
    """
    if not stat.S_ISREG(before.mode):
        return False
    valid = abi.SETATTR_IN.unpack_from(body)[0]
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


def changes_of(body: memoryview) -> AttributeChanges:
    """What a SETATTR asks for.

    utimes(2) without times asks for both as of now; with writeback=1 the kernel sends its own mtime, and a ctime.
    """
    (valid, _, _fh, size, _owner, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, _, uid, gid, _) = (
        abi.SETATTR_IN.unpack_from(body)
    )
    return AttributeChanges(
        mode if valid & abi.FATTR_MODE else None,
        uid if valid & abi.FATTR_UID else None,
        gid if valid & abi.FATTR_GID else None,
        size if valid & abi.FATTR_SIZE else None,
        _when(valid & abi.FATTR_ATIME_NOW, atime, atime_ns) if valid & abi.FATTR_ATIME else None,
        _when(valid & abi.FATTR_MTIME_NOW, mtime, mtime_ns) if valid & abi.FATTR_MTIME else None,
        _when(0, ctime, ctime_ns) if valid & abi.FATTR_CTIME else None,
        by_writing=bool(valid & abi.FATTR_ATIME_NOW and valid & (abi.FATTR_MTIME_NOW | abi.FATTR_CTIME)),
    )


def _when(is_now: int, seconds: int, nanoseconds: int) -> int:
    return time.time_ns() if is_now else seconds * 1_000_000_000 + nanoseconds
