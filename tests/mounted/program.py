"""The mount program as its callers run it: a process with pipes, a mount to find in the kernel's tables."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overlayfs.tree.syscalls import mount, unmount
from tests.engines.podman import covered
from tests.prepared import Done, call

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "overlayfs.cli.mount_program")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
PATIENCE_S = 60.0
SILENT_SUCCESS = Done(0, "", "")
MOUNTS = "/proc/self/mountinfo"

# Everything is imported before the identity changes: the interpreter may live where only root may look.
AS_USER = """
import os, sys
import encodings.idna, pyfuse3, trio
import overlayfs.fuse.session, overlayfs.fuse.handlers, overlayfs.overlay.engine
from overlayfs.cli.mount_program import main
user = int(sys.argv.pop(1))
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo, see proc(5); `options` are those of the mount and of its filesystem together."""

    place: str
    kind: str
    source: str
    options: frozenset[str]


def mounts_beneath(directory: Path) -> list[Mounted]:
    """All mounts on or below `directory`, in the order they were made."""
    return [mount for mount in _mounts() if (mount.place + "/").startswith(f"{directory}/")]


def _mounts() -> Iterator[Mounted]:
    for line in Path(MOUNTS).read_text().splitlines():
        first, second = line.split(" - ", 1)
        place, options = first.split()[4:6]
        kind, source, more = second.split(" ")
        yield Mounted(_decoded(place), kind, _decoded(source), frozenset(f"{options},{more}".split(",")))


def _decoded(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def wait_for_mounts(is_awaited: Callable[[], bool]) -> None:
    """Wait until the kernel's table of mounts is as wished; it announces each change (proc(5), poll)."""
    deadline = time.monotonic() + PATIENCE_S
    with open(MOUNTS, "rb") as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI | select.POLLERR)
        while not is_awaited():
            left = deadline - time.monotonic()
            assert left > 0, f"the table of mounts is not as awaited after {PATIENCE_S} s"
            changes.poll(left * 1000)


def has_ended(pidfd: int, timeout_s: float = PATIENCE_S) -> bool:
    """Whether the process ends in time; one that waits to be reaped has ended."""
    watch = select.poll()
    watch.register(pidfd, select.POLLIN)
    return bool(watch.poll(timeout_s * 1000))


@dataclass
class Place:
    """Directories beneath `base` for one mount of two lowers on `target`, and the daemons seen so far."""

    base: Path
    pidfds: list[int] = field(default_factory=list)

    @property
    def target(self) -> Path:
        return self.base / "target"

    @property
    def options(self) -> str:
        return f"lowerdir={self.base}/top:{self.base}/bottom,upperdir={self.base}/upper,workdir={self.base}/work"

    def run(
        self,
        *arguments: str | Path,
        command: Sequence[str] = COMMAND,
        env: Mapping[str, str] = ENVIRONMENT,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Done:
        """Run the mount program, or another command, with pipes that must reach their end."""
        done = subprocess.run(
            [*command, *map(str, arguments)],
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Done(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))

    def call(self, *arguments: str | Path) -> Done:
        """The same without a start of Python, for tests of what comes after it."""
        return call(*arguments, program="overlayfs-mount")

    def mount(self, *more: str) -> int:
        """Mount on `target`; the daemon's pidfd, which the place keeps."""
        done = self.call("-o", ",".join([self.options, *more]), self.target)
        assert done == SILENT_SUCCESS
        return self.daemon()

    def daemon(self) -> int:
        """The pidfd of the daemon that serves `target`."""
        self.pidfds.append(os.pidfd_open(self.status()["pid"]))
        return self.pidfds[-1]

    def status(self) -> dict[str, int]:
        document: dict[str, int] = json.loads(os.getxattr(self.target, "user.overlayfs.status"))
        return document

    def shown(self) -> Mounted:
        """The one mount on `target` as the kernel lists it."""
        (mounted,) = [mount for mount in mounts_beneath(self.base) if mount.place == str(self.target)]
        return mounted

    def is_mounted(self) -> bool:
        return any(mount.place == str(self.target) for mount in mounts_beneath(self.base))

    def clear(self) -> None:
        """Unmount all there is, wait for the daemons, remove the directories."""
        for found in reversed(mounts_beneath(self.base)):
            subprocess.run(["umount", "-l", found.place], check=False, capture_output=True)
        ended = [has_ended(pidfd) for pidfd in self.pidfds]
        for pidfd in self.pidfds:
            os.close(pidfd)
        shutil.rmtree(self.base, ignore_errors=True)
        assert all(ended), "a daemon outlived its mount"


def make_place(base: Path) -> Place:
    """Two small layers that differ, an empty upper and workdir, a target."""
    for name in ("top", "bottom", "upper", "work", "target"):
        (base / name).mkdir()
    (base / "top/shared").write_text("of the top\n")
    (base / "bottom/shared").write_text("of the bottom\n")
    (base / "bottom/below").write_text("only below\n")
    return Place(base)


@contextlib.contextmanager
def open_device() -> Iterator[None]:
    """/dev/fuse open to every user, as distributions have it, for this process and its children.

    The machine's own node keeps its mode, so that tests of other processes do not take it from each other.
    """
    with tempfile.TemporaryDirectory() as top:
        mount(b"devices", os.fsencode(top), b"tmpfs", 0, b"mode=755")  # a /tmp with nodev would serve no node
        try:
            node = Path(top, "fuse")
            os.mknod(node, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
            node.chmod(0o666)
            with covered("/dev/fuse", node):
                yield
        finally:
            unmount(os.fsencode(top), lazy=True)


@contextlib.contextmanager
def installed() -> Iterator[str]:
    """The program under a name of this test's own where the shell of mount(8), which has no PATH, looks."""
    wrapper = Path(f"/usr/local/bin/overlayfs-mount-{os.getpid()}")
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    write_wrapper(wrapper)
    try:
        yield wrapper.name
    finally:
        wrapper.unlink()


def write_wrapper(wrapper: Path) -> None:
    """A shell script that is the mount program."""
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{REPOSITORY}" exec {" ".join(COMMAND)} "$@"\n')
    wrapper.chmod(0o755)
