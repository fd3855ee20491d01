"""The caller of a FUSE request (uid, gid, groups), as the engine takes it."""

from __future__ import annotations

from functools import lru_cache

from ..overlay.values import Caller


@lru_cache(maxsize=64)
def caller(uid: int, gid: int, pid: int, umask: int = 0) -> Caller:
    """The caller of a request without supplementary groups, as reading those takes several system calls."""
    return Caller(uid, gid, pid, umask)


def caller_with_groups(uid: int, gid: int, pid: int, umask: int = 0) -> Caller:
    """The caller of a request, with the supplementary groups as they are now."""
    return Caller(uid, gid, pid, umask, _supplementary_groups(pid))


def _supplementary_groups(pid: int) -> frozenset[int]:
    """From proc(5), status; none where the caller is gone, or out of sight in another pid namespace."""
    try:
        with open(f"/proc/{pid}/status", "rb") as lines:
            groups = next((line for line in lines if line.startswith(b"Groups:")), b"")
    except OSError:
        return frozenset()
    return frozenset(int(group) for group in groups.split()[1:])
