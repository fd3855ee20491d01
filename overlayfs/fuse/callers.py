"""Who asks, as the engine wants to know it."""

from __future__ import annotations

from functools import lru_cache

import pyfuse3

from ..overlay.inodes import Caller


@lru_cache(maxsize=64)
def caller(uid: int, gid: int, pid: int, umask: int = 0) -> Caller:
    """The caller of a request, for what does not depend on supplementary groups: reading those takes several system
    calls."""
    return Caller(uid, gid, pid, umask)


def caller_with_groups(uid: int, gid: int, pid: int, umask: int = 0) -> Caller:
    """The caller of a request, with the supplementary groups as they are now."""
    try:
        groups = frozenset(pyfuse3.get_sup_groups(pid))
    except (OSError, RuntimeError):  # the caller is gone, or out of sight in another pid namespace
        groups = frozenset()
    return Caller(uid, gid, pid, umask, groups)
