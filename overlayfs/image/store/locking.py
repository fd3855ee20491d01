"""How do processes exclude one another in the store? flock(2) locks, which end with the process that holds them.

A process that works in the store holds `lock` shared; a process that removes things holds it exclusively. The lock
belongs to the open file, so a child that is forked (without exec) meanwhile holds it too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..oci.errors import InUseError

_RETRY_S = 0.05


def open_lock(path: Path) -> int:
    """Open the lock file, which is made if missing. The caller closes the descriptor, which releases the lock."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path` exclusively; waits for it."""
    fd = open_lock(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class StoreLock:
    """The lock of the store, held shared until `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = open_lock(path)
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    @contextmanager
    def alone(self, patience_s: float) -> Iterator[None]:
        """Hold the lock exclusively in the context; InUseError if others still work in the store after `patience_s`.

        The store may have changed at the start of the context: the shared lock is released before the exclusive one
        is taken.
        """
        deadline = time.monotonic() + patience_s
        try:
            while not self._try_alone():
                if time.monotonic() >= deadline:
                    raise InUseError(f"{self._path.parent} is in use by {self._others()}: try again when it has ended")
                time.sleep(_RETRY_S)
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_SH)

    def _try_alone(self) -> bool:
        # A failed change from shared to exclusive leaves no lock at all: flock(2).
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            return False
        return True

    def _others(self) -> str:
        """The other processes that hold the lock, as listed in /proc/locks (proc(5))."""
        found = os.fstat(self._fd)
        name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        with open("/proc/locks", encoding="ascii") as lines:
            fields = [line.split() for line in lines]
        pids = {words[4] for words in fields if len(words) > 5 and words[5] == name} - {str(os.getpid())}
        return f"process {', '.join(sorted(pids))}" if pids else "another process"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
