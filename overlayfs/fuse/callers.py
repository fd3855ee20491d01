"""Who asks, as the engine wants to know it."""

from __future__ import annotations

import pyfuse3

from ..overlay.inodes import Caller


def caller(uid: int, gid: int, pid: int, umask: int = 0, *, with_groups: bool = False) -> Caller:
    """The caller of a request; reading its supplementary groups takes several system calls."""
    groups: frozenset[int] = frozenset()
    if with_groups:
        try:
            groups = frozenset(pyfuse3.get_sup_groups(pid))
        except (OSError, RuntimeError):  # the caller is gone, or out of sight in another pid namespace
            groups = frozenset()
    return Caller(uid, gid, pid, umask, groups)
