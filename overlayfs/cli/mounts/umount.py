"""`overlayfs umount`: unmount, wait until mount and daemon are gone, name the processes that keep it busy."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from contextlib import ExitStack, suppress

from overlayfs.cli.background import wait_until_ended
from overlayfs.cli.mounts.live import (
    CommandError,
    holders_elsewhere,
    is_ours,
    mount_at,
    read_status,
    resolve,
    resolve_name,
    wait_until_unmounted,
)
from overlayfs.cli.output import printable
from overlayfs.tree.mount_table import MountEntry
from overlayfs.tree.syscalls import unmount

GONE_WITHIN_S = 30.0
LOOK_AGAIN_S = 1.0
USERS_SHOWN = 5


def take_down(mountpoint: str, lazy: bool) -> None:
    """Unmount, and unless `lazy` wait until the daemon has released the upper."""
    path = resolve_name(os.fsencode(mountpoint))
    entry = mount_at(path)
    if entry is None:  # perhaps a symlink to a mountpoint, as every other command takes it
        path = resolve(path)
        entry = mount_at(path)
    if entry is None:
        raise CommandError(f"{printable(path)}: nothing is mounted here")
    if not is_ours(entry):
        kind = printable(entry.filesystem_type)
        raise CommandError(f"{printable(path)}: not an overlayfs mount but {kind}: use umount")
    with ExitStack() as stack:
        daemon = _daemon_of(path)
        if daemon is not None:
            stack.callback(os.close, daemon)
        _unmount(path, lazy)
        if not lazy:
            _wait_until_gone(entry, daemon)


def _daemon_of(mountpoint: bytes) -> int | None:
    """A pidfd of the daemon, to await its end; None if its pid is unknown."""
    try:
        return os.pidfd_open(read_status(mountpoint, timeout_s=2.0).pid)
    except (CommandError, OSError):
        return None


def _unmount(path: bytes, lazy: bool) -> None:
    try:
        if os.geteuid() == 0:
            unmount(path, lazy=lazy)
        else:
            _fusermount(path, lazy)
    except OSError as error:
        if error.errno == errno.EPERM and os.geteuid() == 0:
            _fusermount(path, lazy)  # root without CAP_SYS_ADMIN: the setuid program may still do it
        elif error.errno == errno.EBUSY:
            raise CommandError(_busy(path)) from error
        else:
            raise CommandError(f"{printable(path)}: {os.strerror(error.errno or 0)}") from error


def _fusermount(path: bytes, lazy: bool) -> None:
    command: list[bytes] = [b"fusermount3", b"-uz" if lazy else b"-u", b"--", path]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:
        raise CommandError("fusermount3 is not installed (package fuse3)") from None
    if done.returncode == 0:
        return
    if b"busy" in done.stderr:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    raise CommandError(printable(done.stderr.strip()) or "fusermount3 failed")


def _busy(path: bytes) -> str:
    users = _users_of(path)
    shown = ", ".join(users[:USERS_SHOWN]) + (", …" if len(users) > USERS_SHOWN else "")
    by = f"in use by {shown}" if users else "in use"
    return f"{printable(path)}: {by} (end that first, or use --lazy)"


def _users_of(mountpoint: bytes) -> list[str]:
    """`name (pid)` of processes with a working directory, root, program or open file in the mount."""
    return [
        f"{_command_name(pid)} ({pid})"
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        if any(_is_inside(target, mountpoint) for target in _paths_held_by(pid))
    ]


def _paths_held_by(pid: int) -> list[bytes]:
    """The targets of /proc links of a process; reading them never accesses the mounted file system."""
    links = [f"/proc/{pid}/{kind}" for kind in ("cwd", "root", "exe")]
    with suppress(OSError):  # another user's process, or one just gone
        links += [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    held = []
    for link in links:
        with suppress(OSError):  # closed meanwhile, or a kernel thread, which has no program
            held.append(os.readlink(os.fsencode(link)))
    return held


def _is_inside(path: bytes, mountpoint: bytes) -> bool:
    return path == mountpoint or path.startswith(mountpoint + b"/")


def _command_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as name:
            return printable(name.read().strip())
    except OSError:
        return "?"


def _wait_until_gone(entry: MountEntry, daemon: int | None) -> None:
    path = printable(entry.mountpoint)
    if not wait_until_unmounted(entry, GONE_WITHIN_S):
        raise CommandError(f"{path}: still mounted after {GONE_WITHIN_S:g} s")
    deadline = time.monotonic() + GONE_WITHIN_S
    while daemon is not None and not wait_until_ended(daemon, LOOK_AGAIN_S):
        holders = holders_elsewhere(entry.device)
        if holders:
            names = ", ".join(f"{_command_name(pid)} ({pid})" for pid in holders[:USERS_SHOWN])
            raise CommandError(f"{path}: unmounted here, but the mount namespace of {names} still has it")
        if time.monotonic() > deadline:
            raise CommandError(f"{path}: unmounted, but its daemon is still at work: its upper is not free yet")
