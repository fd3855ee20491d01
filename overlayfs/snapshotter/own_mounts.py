"""Which snapshots does the snapshotter itself have mounted?

Without being told to mount, none: containerd starts the mount program then. With it, each snapshot that needs the
program is mounted once, under its number in one directory, and containerd binds that mount. The mount program is a
process of its own, so a mount outlives the snapshotter; the kernel's mount table is the only record of it, and so a
restarted snapshotter goes on with what is mounted. All methods may be called from any thread.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from ..image.store.staging import sync_all
from ..tree.syscalls import unmount
from .mounts import Mount, bound

_LOCKS = 16  # a snapshot's lock is that of its number: one is enough for a thread each
_MOUNTED_WITHIN_S = 60.0


class MountFailed(Exception):
    """The mount program failed; the text has its words."""


class Program:
    """Another mount program, named by its path: a new process for each mount."""

    def __init__(self, path: str) -> None:
        self.path = path

    def run(self, words: Sequence[str]) -> None:
        """Mount; MountFailed if the program says so."""
        command = [self.path, *words]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_MOUNTED_WITHIN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MountFailed(f"{self.path} did not mount in {_MOUNTED_WITHIN_S:.0f} s") from error
        except OSError as error:
            raise MountFailed(f"cannot run {self.path}: {error.strerror}") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise MountFailed(said or f"{self.path} ended with status {done.returncode}")

    def close(self) -> None:
        """End what was started, mounts excepted."""


class OurProgram(Program):
    """Our own mount program, which a process that has it imported forks for each mount: see `cli.mount_starter`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._starter = subprocess.Popen(
                [sys.executable, "-m", "overlayfs.cli.mount_starter"], stdin=theirs.fileno()
            )

    def run(self, words: Sequence[str]) -> None:
        """Mount; by a process of its own when the starter is gone."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        with open(read_fd, "rb") as answers:
            try:
                socket.send_fds(self._requests, [b"\0".join(map(os.fsencode, words))], [write_fd])
            except OSError:
                super().run(words)
                return
            finally:
                os.close(write_fd)
            if not select.select([read_fd], [], [], _MOUNTED_WITHIN_S)[0]:
                raise MountFailed(f"{self.path} did not mount in {_MOUNTED_WITHIN_S:.0f} s")
            said, _, status = answers.read().rpartition(b"\0")
        if status != b"0":
            raise MountFailed(said.decode(errors="replace").strip() or f"{self.path} was killed")

    def close(self) -> None:
        """End the starter."""
        self._requests.close()
        self._starter.wait()


class OwnMounts:
    """The mounts in one directory; without a `program`, none are added to those that are there."""

    def __init__(self, directory: Path, program: Program | None) -> None:
        self._directory, self._program = directory, program
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def of(self, number: int, mount: Mount) -> Mount:
        """What containerd shall mount for a snapshot: a bind of our mount of it, else `mount` as it is.

        Raises MountFailed.
        """
        if mount.type == "bind":
            return mount
        point = self._point(number)
        with self._lock(number):
            if not _is_alive(point):
                if not self._program:
                    return mount
                _detach(point)  # of a mount program that was killed
                self._make(self._program, point, mount)
        return bound(point, "ro" if "ro" in mount.options else "rw")

    def sync(self, number: int) -> None:
        """Hand to the layer what is written through the mount and still in the page cache."""
        point = self._point(number)
        with self._lock(number):
            if not _is_alive(point):
                return
            sync_all(point)

    def take_down(self, number: int) -> None:
        """Unmount, even where a container still has its root there; does nothing where nothing is mounted."""
        point = self._point(number)
        with self._lock(number):
            _detach(point)
            try:
                point.rmdir()
            except FileNotFoundError:
                return

    def take_down_others(self, known: Collection[int]) -> None:
        """Unmount all but these."""
        for name in os.listdir(self._directory):
            if name.isdecimal() and int(name) not in known:
                self.take_down(int(name))

    def _make(self, program: Program, point: Path, mount: Mount) -> None:
        point.mkdir(mode=0o700, exist_ok=True)
        options = [word for option in mount.options for word in ("-o", option)]
        program.run([mount.source, os.fspath(point), *options])
        if not _is_alive(point):
            raise MountFailed(f"{program.path} mounted nothing on {point}")

    def _point(self, number: int) -> Path:
        return self._directory / str(number)

    def _lock(self, number: int) -> threading.Lock:
        return self._locks[number % _LOCKS]


def _is_alive(point: Path) -> bool:
    """Whether a mount is there whose program answers."""
    try:
        if os.stat(point).st_dev == os.stat(point.parent).st_dev:
            return False
        os.statvfs(point)  # asks the program, where stat is answered with what the kernel remembers
        return True
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTCONN):
            raise
        return False


def _detach(point: Path) -> None:
    while True:
        try:
            unmount(os.fsencode(point), lazy=True)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):  # not a mountpoint
                raise
            return
