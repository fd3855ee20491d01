"""Does a mount work here, for whom, and what does the kernel offer? Mounts are made as engines make them.

The mount program gets an empty environment: engines and mount(8) pass no PATH on that would find its interpreter.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.mounts.umount import take_down
from overlayfs.cli.output import safe
from overlayfs.fuse.abi import LONGEST_REQUEST
from overlayfs.fuse.mounting import MountOptions, mount

PROGRAM: Final = "overlayfs-mount"
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of services and of mount(8)."""

_PATIENCE_S: Final = 30
_NOBODY: Final = 65534


def installed_program() -> Path | None:
    """Our mount program: the one of the system, else the one of this installation."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(PROGRAM, path=SYSTEM_PATH) or shutil.which(PROGRAM, path=beside)
    return None if found is None else Path(found)


def mount_command() -> list[str]:
    """The words that start our mount program, installed or not."""
    program = installed_program()
    return [sys.executable, "-m", "overlayfs.cli.mount_program"] if program is None else [str(program)]


def try_mount(command: Sequence[str]) -> None:
    """Mount a layer below an upper, change it, and unmount. Raises CommandError with the reason where that fails."""
    try:
        with tempfile.TemporaryDirectory(prefix="overlayfs-trial-") as top:
            _try_in(Path(top), command)
    except OSError as error:
        raise CommandError(f"the trial mount failed: {error}") from None


def _try_in(top: Path, command: Sequence[str]) -> None:
    lower, upper, work, mountpoint = (top / name for name in ("lower", "upper", "work", "mnt"))
    for path in (lower, upper, work, mountpoint):
        path.mkdir()
    for name in ("kept", "deleted"):
        (lower / name).write_text("lower")
    _start(command, f"lowerdir={lower},upperdir={upper},workdir={work}", mountpoint)
    try:
        (mountpoint / "kept").write_text("changed")
        (mountpoint / "deleted").unlink()
        merged = os.listdir(mountpoint)
    finally:
        take_down(str(mountpoint), lazy=False)
    if merged != ["kept"] or (upper / "kept").read_text() != "changed" or (lower / "kept").read_text() != "lower":
        raise CommandError("the trial mount shows wrong content")


def _start(command: Sequence[str], options: str, mountpoint: Path) -> None:
    done = _run([*command, "-o", options, str(mountpoint)])
    if done.returncode:
        raise CommandError(_complaint(done))


def _run(words: Sequence[str], **user: Any) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            words, env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S, check=False, **user
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"{words[0]} cannot be started: {error}") from None


def _complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return safe(lines[-1]) if lines else f"{done.args[0]} ended with status {done.returncode}"


def obstacle_for_others(program: Path) -> str:
    """Why ordinary users, whose engines run it too, cannot start the program; empty if they can. For root to ask."""
    try:
        done = _run([str(program), "--version"], user=_NOBODY, group=_NOBODY, extra_groups=[])
    except CommandError as error:
        return str(error)
    return _complaint(done) if done.returncode else ""


def kernel_s_first_request() -> bytes:
    """The INIT request of a FUSE mount, which says what the kernel offers. Raises MountError or OSError.

    It is never answered: the mount ends with its descriptor.
    """
    with (
        tempfile.TemporaryDirectory(prefix="overlayfs-trial-") as point,
        mount(MountOptions(os.fsencode(point))) as live,
        closing(live),
    ):
        return os.read(live.fd, LONGEST_REQUEST)


def others_who_may_change(program: Path) -> Path | None:
    """The file, or a directory above it, that somebody besides root may write; None where there is none."""
    place = program.resolve()
    for path in (place, *place.parents):
        found = path.stat()
        if found.st_uid or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
            return path
    return None
