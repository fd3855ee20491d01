"""Which deputy makes the system calls that permission bits refuse to this process?

There is one deputy in a process, started when it is needed first. Neighbour: access, which asks. Callable from any
thread.
"""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock
from contextlib import suppress

from overlayfs._log import Log
from overlayfs._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .deputy import Deputy

# Root needs none, and starts sooner without. Others import it now: later it might have to be read through the very
# mount that waits for it.
if os.geteuid() != 0:
    from . import deputy  # noqa: F401

log = Log(__name__)

_TRIES = 2
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
# Errors that say nothing of whether there may be a user namespace.
_PASSING = (errno.EAGAIN, errno.ENOMEM)


class _Deputies:
    """The deputy of this process. `refused` is the owner (process and user) for which starting a deputy failed, so that
    it is not tried again; `locked` are the descriptors with the locks of the writable layers."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._present: Deputy | None = None
        self._refused: tuple[int, int, int] | None = None
        self.locked: set[int] = set()

    def present(self) -> Deputy | None:
        from .deputy import identity

        with self._lock:
            if self._present is not None and not self._present.is_ours:
                self._forget()
            if self._present is None and self._refused != identity():
                self._start()
            return self._present

    def _start(self) -> None:
        from .deputy import Deputy, identity

        try:
            self._present = Deputy(frozenset(self.locked))
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:  # the caller may close some descriptors and try again
                raise
            if error.errno not in _PASSING:
                self._refused = identity()
            log.info("there is no user namespace in which a deputy could bypass permission bits: %s", error.strerror)

    def dismiss(self) -> None:
        with self._lock:
            self._forget()
            self._refused = None

    def _forget(self) -> None:
        if self._present is not None:
            self._present.close()
        self._present = None


_deputies = _Deputies()


def present() -> Deputy | None:
    """The deputy of this process, started where there is none; None where none can be had."""
    return _deputies.present()


def note_lock(fd: int) -> None:
    """The descriptor holds a lock that a deputy's work is done under, until `dismiss` is told of it. A deputy that is
    there already does not hold it, so the next call gets another one."""
    _deputies.dismiss()
    _deputies.locked.add(fd)


def dismiss(*locked: int) -> None:
    """Let the deputy go, and with it these locks; the next call that needs one starts another."""
    _deputies.locked.difference_update(locked)
    _deputies.dismiss()


def ask(call: str, fds: tuple[int, ...], arguments: tuple[object, ...], name: bytes | None) -> object:
    """The result of a system call that was refused to us with EACCES; PermissionError for `name` where nobody can make
    it for us."""
    from .deputy import GoneError

    for _ in range(_TRIES):
        deputy = present()
        if deputy is None:
            break
        with suppress(GoneError):  # the next one is to be asked
            return deputy.ask(call, fds, *arguments)
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
