"""How is a container's cgroup removed that runc does not know? It was killed before it had noted the state."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from .spec.fields import CGROUPS

_NAME: Final = re.compile(r"overlayfs-[0-9a-f]{64}", re.ASCII)
_PATIENCE_S: Final = 2.0
_LOOK_AGAIN_S: Final = 0.01


def remove_cgroups(specification: Path) -> None:
    """Kill all processes in the cgroups that a config.json names, and remove these, in each hierarchy (cgroups(7))."""
    try:
        name = json.loads(specification.read_bytes())["linux"]["cgroupsPath"].lstrip("/")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # none was asked for, or it is damaged
    if _NAME.fullmatch(name) is None:
        return  # everything in it would be killed
    for hierarchy in (CGROUPS, *CGROUPS.iterdir()):
        _remove(hierarchy / name, time.monotonic() + _PATIENCE_S)


def _remove(cgroup: Path, deadline: float) -> None:
    while time.monotonic() < deadline:
        try:
            cgroup.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                return  # it is not there
        else:
            return
        _kill_members(cgroup)
        time.sleep(_LOOK_AGAIN_S)  # nobody tells when a killed process has left


def _kill_members(cgroup: Path) -> None:
    """By the kernel where it can (cgroup.kill, version 2 since Linux 5.14), else one by one."""
    with suppress(OSError):
        (cgroup / "cgroup.kill").write_text("1")
        return
    with suppress(OSError):
        for pid in map(int, (cgroup / "cgroup.procs").read_text().split()):
            if pid > 0:  # 0 is a process of another pid namespace
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
