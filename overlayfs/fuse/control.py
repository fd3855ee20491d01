"""How is a live mount told to take a snapshot of its tree, or to go back to one?

By setxattr(2) on its root: the name is the command, the value the snapshot's name, or nothing; SNAPSHOT_XATTR is then
the name of the newest snapshot. Only the daemon's user and root may, and only from the daemon's own mount namespace: a
program in a container made of the tree may not. The answer is an errno: EINPROGRESS asks to try again, as something is
under way that must end first (the system call would make EOPNOTSUPP of EAGAIN).

A rollback has happened when it is answered, but the kernel is still being told what to forget: that takes a thread, as
some of it waits for requests that the daemon has to answer. SETTLED_XATTR, read from the root, is `0` until then. A
drop has happened likewise, and a thread prepares the merge of its layer; each read of SETTLED_XATTR goes on with it.

Since Linux 6.16 one message has the kernel look every name up anew. It is not told of single names as well: each would
cost it a FORGET at once, and 1,000 of them three quarters of a rollback's time; only names that nobody looks up again
are told after some rollbacks. So the path of a working directory that is gone (getcwd) is shown until then. Where the
disk is nearly full it is told of all, as what was dropped stays until the kernel has forgotten it.

An epoch has it unmount what is mounted on any name. A reset around mounts begins none, and tells it of single names
instead, but of none on the way to a mount: these lead to the same inodes as before.
"""

from __future__ import annotations

import errno
import os
from _thread import start_new_thread
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from overlayfs._log import Log
from overlayfs._typing import Final

from ..overlay.engine import Overlay
from ..overlay.inodes import ROOT
from ..overlay.state import Changed
from ..tree import syscalls
from . import abi
from .commanding import COMMANDS, DROP_XATTR, RESET_AROUND_XATTR, RESET_XATTR, SETTLED_XATTR, SNAPSHOT_XATTR, UNDO_XATTR
from .copying import CopyUps
from .lane import invalidate_each

log = Log(__name__)

_QUESTIONS: Final = (SNAPSHOT_XATTR, SETTLED_XATTR, RESET_AROUND_XATTR)
_HAS_FORGOTTEN: Final = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EPERM}  # it knows none, or is gone


class Control:
    """The commands to one mount. `device_fd` returns the /dev/fuse descriptor; `under_way` counts requests that hold
    inodes while others are served, `tasks` returns how many came before and have a task that answers them."""

    def __init__(self, overlay: Overlay, copy_ups: CopyUps, device_fd: Callable[[], int]) -> None:
        self._overlay, self._copy_ups = overlay, copy_ups
        self.device_fd = device_fd
        self.under_way = 0
        self.tasks: Callable[[], int] = lambda: 0
        self._telling = 0
        self._merges: Iterator[Callable[[], None]] | None = None  # what a drop has still to do
        self._is_preparing = False

    def is_command(self, node: int, name: bytes) -> bool:
        return node == ROOT and name in COMMANDS

    def is_question(self, node: int, name: bytes) -> bool:
        return node == ROOT and name in _QUESTIONS

    def answer(self, name: bytes) -> bytes:
        """Whether all that was commanded is done, and the kernel told of it; the name of the newest snapshot, ENODATA
        for none; that this daemon knows RESET_AROUND_XATTR."""
        if name == SNAPSHOT_XATTR:
            return self._newest()
        if name == RESET_AROUND_XATTR:
            return b"1"
        self._go_on_merging()
        self.remove_waste()
        return b"0" if self._telling or self._merges is not None else b"1"

    def _newest(self) -> bytes:
        history = self._overlay.state.history
        if history is None or history.newest is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return history.newest.encode()

    def run(self, name: bytes, value: bytes, uid: int, pid: int) -> None:
        if not _may_command(uid, pid):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._go_on_merging()
        if self._merges is not None:
            self._overlay.give_way()
        if self._telling or self._merges is not None or self._is_busy():
            raise OSError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        if name == RESET_AROUND_XATTR:
            changed = self._overlay.reset([path for path in value.split(b"\0") if path])
            self._forget("reset around mounts", changed, by_name=True)
            return
        try:
            snapshot = value.decode("ascii")
        except UnicodeDecodeError:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
        if name == SNAPSHOT_XATTR:
            log.info("snapshot %s taken", self._overlay.snapshot(snapshot))
        elif name == DROP_XATTR:
            log.info("snapshot %s dropped", self._overlay.drop_name(snapshot))
            self._merges = self._overlay.merges()
            self._go_on_merging()
        elif name == RESET_XATTR:
            self._forget("reset", self._overlay.reset())
        else:
            found, changed = self._overlay.roll_back(snapshot, drop=name == UNDO_XATTR)
            self._forget(f"rolled back to snapshot {found}", changed)

    def _is_busy(self) -> bool:
        return bool(self.under_way or self.tasks() or self._copy_ups.are_running or self._overlay.is_changing)

    def _go_on_merging(self) -> None:
        """Do what is next for a drop, unless that is a thread's or has to wait for a request."""
        if self._merges is None or self._is_preparing or self._is_busy():
            return
        prepare = next(self._merges, None)
        if prepare is None:
            self._merges = None
            return
        self._is_preparing = True
        try:
            start_new_thread(self._prepare, (prepare,))
        except RuntimeError:
            self._prepare(prepare)

    def _prepare(self, prepare: Callable[[], None]) -> None:
        try:
            prepare()
        finally:
            self._is_preparing = False

    def _forget(self, what: str, changed: Changed, *, by_name: bool = False) -> None:
        """Have the kernel forget what has changed; with `by_name` it keeps all other names."""
        log.info("%s: %d inodes changed", what, len(changed.inodes))
        device_fd = self.device_fd()
        is_enough = not by_name and _begin_epoch(device_fd) and not self._overlay.is_nearly_full
        names = [*changed.gone, *(() if is_enough else changed.names)]
        self._telling += 1
        try:
            start_new_thread(self._tell, (device_fd, names, changed.inodes))
        except RuntimeError:  # there is no thread to be had: the kernel goes on with what it knows of these
            self._telling -= 1
            log.error("no thread: files that are open may show what they held before the rollback")

    def _tell(self, device_fd: int, names: Sequence[tuple[int, bytes]], inodes: list[int]) -> None:
        try:
            messages = [abi.entry_invalidation(parent, name) for parent, name in names]
            failed = {*syscalls.write_each(device_fd, messages), *invalidate_each(device_fd, inodes)}
            for code in failed - _HAS_FORGOTTEN:
                log.warning("the kernel was not told of a change: %s", os.strerror(code))
        finally:
            self._telling -= 1

    def remove_waste(self) -> None:
        """Remove what rollbacks left on disk, elsewhere; for a moment with nothing else to do."""
        remove = self._overlay.take_waste()
        if remove is not None:
            with suppress(RuntimeError):  # the next mount removes it
                start_new_thread(remove, ())


def _begin_epoch(device_fd: int) -> bool:
    """Have the kernel look every name up anew; whether it does: before Linux 6.16 it must be told of each name."""
    try:
        os.write(device_fd, abi.new_epoch())
    except OSError:
        return False
    return True


def _may_command(uid: int, pid: int) -> bool:
    if uid not in (0, os.geteuid()):
        return False
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        return False
