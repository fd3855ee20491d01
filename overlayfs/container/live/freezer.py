"""Is a program paused, and how does it go on? By the freezer of its cgroup, which stops it between two instructions.

The switch is `freezer.state` in version 1 (Linux, cgroup-v1/freezer-subsystem.rst), and `cgroup.freeze` in version 2
(cgroup-v2.rst). runc uses version 1 where it is mounted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..spec.fields import CGROUPS

_V1, _V2 = "freezer.state", "cgroup.freeze"
_GOES_ON: Final = {_V1: "THAWED", _V2: "0"}


def is_paused(pid: int) -> bool:
    try:
        switch = _switch_of(pid)
        return switch is not None and switch.read_text().strip() != _GOES_ON[switch.name]
    except OSError:  # it has ended, or is in the topmost cgroup, which has no switch
        return False


def resume(pid: int) -> None:
    """Let a program go on that is paused; nothing to do for others."""
    if is_paused(pid):
        switch = _switch_of(pid)
        assert switch is not None
        switch.write_text(_GOES_ON[switch.name])


def _switch_of(pid: int) -> Path | None:
    found = None
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():  # cgroups(7)
        _, controllers, path = line.split(":", 2)
        if "freezer" in controllers.split(","):
            return CGROUPS / "freezer" / path.lstrip("/") / _V1
        if not controllers:
            found = CGROUPS / path.lstrip("/") / _V2
    return found
