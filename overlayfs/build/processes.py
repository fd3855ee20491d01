"""How many processes may a RUN have at once? A cgroup of the step says so: cgroups(7), version 1 or 2.

The process of the step joins the cgroup before it starts the command; the daemon of its mount is not in it. Who started
the step removes the cgroup. For root, as nobody else may make cgroups here.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..container.spec.fields import may_limit
from ..image.oci.errors import InvalidError

_CGROUPS: Final = Path("/sys/fs/cgroup")


def check_limit(count: int | None) -> None:
    """Raises InvalidError where processes cannot be limited."""
    if count is not None and not may_limit("pids"):
        raise InvalidError("--pids-limit needs the cgroup controller pids, which you may not use here")


def join_limit(name: str, count: int) -> None:
    """Limit this process and its children, which are one now, to so many. Raises OSError."""
    group = _group(name)
    group.mkdir(exist_ok=True)
    (group / "pids.max").write_text(str(count + 1))  # this process counts
    (group / "cgroup.procs").write_text(str(os.getpid()))


def remove_limit(name: str) -> None:
    """Remove the cgroup, which no process is in any more, if it is there."""
    with suppress(OSError):
        _group(name).rmdir()


def _group(name: str) -> Path:
    version1 = _CGROUPS / "pids"
    return (version1 if version1.is_dir() else _CGROUPS) / f"overlayfs-build-{name}"
