"""Is a program paused, and how does it go on? By the freezer of its cgroup, which stops it between two instructions.

The switch is `freezer.state` in version 1 (Linux, cgroup-v1/freezer-subsystem.rst), and `cgroup.freeze` in version 2
(cgroup-v2.rst). runc uses version 1 where it is mounted.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..spec.fields import CGROUPS

_V1, _V2 = "freezer.state", "cgroup.freeze"
_GOES_ON: Final = {_V1: "THAWED", _V2: "0"}


def is_paused(pid: int) -> bool:
    try:
        switch = _switch_of(pid)
        return switch is not None and _is_on(switch)
    except OSError:  # it has ended, or is in the topmost cgroup, which has no switch
        return False


def resume(pid: int) -> None:
    """Let a program go on that is paused; nothing to do for others."""
    with suppress(OSError):  # it may end, and its cgroup go, at any moment
        switch = _switch_of(pid)
        if switch is not None and _is_on(switch):
            switch.write_text(_GOES_ON[switch.name])


def _is_on(switch: Path) -> bool:
    return switch.read_text().strip() != _GOES_ON[switch.name]


def _switch_of(pid: int) -> Path | None:
    return _switch_in(Path(f"/proc/{pid}/cgroup").read_bytes())


def _switch_in(lines: bytes) -> Path | None:
    """The switch of a process, from its /proc/pid/cgroup (cgroups(7)); a path has any bytes but a newline."""
    found = None
    for line in lines.split(b"\n")[:-1]:
        _, controllers, path = line.split(b":", 2)
        inner = os.fsdecode(path.lstrip(b"/"))
        if b"freezer" in controllers.split(b","):
            return CGROUPS / "freezer" / inner / _V1
        if not controllers:
            found = CGROUPS / inner / _V2
    return found
