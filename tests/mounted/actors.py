"""Who does what: a call made by a forked child with another identity, and what came of it."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Who:
    """An identity: every id of the process is set, so capabilities are lost unless `uid` is 0."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022


PATIENCE_S = 60.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def fork(call: Callable[[], object]) -> int:
    """Do it in a child, which dies with us; its exit status says whether it went well."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        call()
        status = 0
    except OSError:
        pass
    finally:
        os._exit(status)


def as_actor(who: Who, call: Callable[[], object], root: Path | None = None) -> object:
    """What `call` returns in a child that is `who`; an `OSError` becomes the name of its errno.

    With `root` the child's own root is there, so that no symlink leads it anywhere else. A child that does
    not answer within `PATIENCE_S` is killed, and the test fails.
    """
    reading, writing = os.pipe()
    child = fork(lambda: _act(who, call, writing, root))
    os.close(writing)
    with open(reading, "rb") as answer:
        if not select.select([answer], [], [], PATIENCE_S)[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"a call hangs: no answer within {PATIENCE_S} s")
        outcome: object = pickle.load(answer)
    os.waitpid(child, 0)
    if isinstance(outcome, _Failed):
        raise AssertionError(outcome.text)
    return outcome


@dataclass(frozen=True, slots=True)
class _Failed:
    text: str


def _act(who: Who, call: Callable[[], object], writing: int, root: Path | None) -> None:
    """In the child: do it and answer."""
    try:
        if root is not None:
            confine(root)
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
        os.umask(who.umask)
        outcome = _outcome(call)
    except BaseException:  # noqa: BLE001 - it must reach the parent
        outcome = _Failed(traceback.format_exc())
    with open(writing, "wb") as answer:
        pickle.dump(outcome, answer)


def confine(root: Path) -> None:
    """Make `root` all that this process can see."""
    os.chroot(root)
    os.chdir("/")


def _outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
