"""What engines must not leave when their containers are gone."""

from __future__ import annotations

import os
import select
from pathlib import Path

from tests.snapshotter.service import PATIENCE_S, mounts_below

_DAEMON = b"overlayfs.cli.mount_program"
_PROGRAMS = (_DAEMON, b"conmon", b"containerd-shim-runc-v2")


def expect_nothing_left(top: Path) -> None:
    """Of containers with storage below `top`: no mount, no daemon or monitor that lives, no lock of a workdir."""
    assert mounts_of_containers(top) == []
    for pid in processes_of(top):
        assert ends(pid), Path(f"/proc/{pid}/cmdline").read_bytes()
    assert list(top.glob("*/root/*/*/work/overlayfs-socket")) == []


def mounts_of_containers(top: Path) -> list[Path]:
    return [point for point in mounts_below(top) if point.name == "merged"]


def words_of(pid: int) -> list[bytes]:
    """The command line of a process; of none that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def processes_of(top: Path) -> list[int]:
    """Those that serve a container with storage below `top`."""
    found = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        words = words_of(pid)
        if any(os.fsencode(top) in word for word in words) and any(word.endswith(_PROGRAMS) for word in words):
            found.append(pid)
    return found


def daemons_of(top: Path) -> list[int]:
    """Those that serve a mount with storage below `top`."""
    return [pid for pid in processes_of(top) if _DAEMON in words_of(pid)]


def ends(pid: int) -> bool:
    """Whether the process ends: a daemon does so soon after its mount, a shim soon after its container."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], PATIENCE_S)[0])
    finally:
        os.close(pidfd)
