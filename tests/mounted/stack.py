"""A stack of directories and our mount of it, for a test to use and then to be rid of."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.prepared import call
from tests.property.paths import unmount, wait_for_end

REPOSITORY = Path(__file__).resolve().parents[2]


class RefusedError(Exception):
    """The mount program did not mount; what it said."""


@dataclass
class Stack:
    """Directories beneath `base`; `lowers` are top first. The mount is on `base/mount`."""

    base: Path
    lowers: list[Path]
    has_upper: bool = True
    pidfd: int | None = field(default=None, init=False)

    @classmethod
    def make(cls, base: Path, lowers: int = 1, *, has_upper: bool = True) -> Stack:
        """New empty directories for `lowers` layers."""
        stack = cls(base, [base / f"lower{index}" for index in range(lowers)], has_upper)
        for directory in (*stack.lowers, stack.upper, stack.work, stack.place):
            directory.mkdir()
        return stack

    @property
    def upper(self) -> Path:
        return self.base / "upper"

    @property
    def work(self) -> Path:
        return self.base / "work"

    @property
    def place(self) -> Path:
        return self.base / "mount"

    @property
    def options(self) -> str:
        lowers = ":".join(map(str, self.lowers))
        return (
            f"lowerdir={lowers},upperdir={self.upper},workdir={self.work}" if self.has_upper else f"lowerdir={lowers}"
        )

    def mount(self, *more: str) -> Stack:
        """Mount with our program and remember its daemon; `more` are further options."""
        mount_program("-o", ",".join((self.options, *more)), str(self.place))
        self.pidfd = os.pidfd_open(self.pid)
        return self

    def unmount(self) -> None:
        """Unmount and wait for the daemon's end; nothing happens when it is not mounted."""
        unmount(self.place)
        if self.pidfd is not None:
            pidfd, self.pidfd = self.pidfd, None
            try:
                wait_for_end(pidfd)
            finally:
                os.close(pidfd)

    def remount(self, *more: str) -> Stack:
        self.unmount()
        return self.mount(*more)

    def forget(self) -> None:
        """Make the kernel forget what is not in use of this mount alone: a remount empties its dentry cache."""
        os.sync()
        run("mount", "-i", "-o", f"remount,{'rw' if self.has_upper else 'ro'}", self.place)

    @property
    def status(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        document: dict[str, Any] = json.loads(os.getxattr(self.place, "user.overlayfs.status"))
        return document

    @property
    def pid(self) -> int:
        return int(self.status["pid"])

    @property
    def rss(self) -> int:
        """The daemon's resident memory in bytes: proc(5), statm."""
        resident = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(resident) * os.sysconf("SC_PAGE_SIZE")


def mount_program(*arguments: str) -> None:
    """Run the mount program to its end; an error says what it complained of."""
    done = call(*arguments, program="overlayfs-mount")
    if done.status:
        raise RefusedError(done.err or done.out)


def run(*command: str | Path, cwd: Path | None = None, timeout_s: float = 280.0) -> str:
    """Run a program to its end; what it printed, or an error with what it complained of."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))} failed: {done.stderr or done.stdout}")
    return done.stdout


def tree_of(root: Path) -> dict[str, tuple[object, ...]]:
    """Type, mode, owner, time, xattrs and content of all below `root`, to see that nothing has changed."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in (".", *names, *files):
            path = Path(directory, name)
            found[str(path.relative_to(root))] = _facts(path)
    return found


def _facts(path: Path) -> tuple[object, ...]:
    info = path.lstat()
    xattrs = tuple(
        (name, os.getxattr(path, name, follow_symlinks=False)) for name in os.listxattr(path, follow_symlinks=False)
    )
    content: str | bytes = b""
    if path.is_symlink():
        content = os.readlink(path)
    elif path.is_file():
        content = path.read_bytes()
    return (info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_mtime_ns, xattrs, content)


def make_tree(root: Path, files: Sequence[str], content: bytes = b"") -> None:
    """Files and the directories above them; a name that ends in "/" is a directory."""
    for name in files:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
