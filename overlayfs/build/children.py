"""How do stages and steps run in processes of their own? In children that cannot outlive this process.

A step needs namespaces and a pid namespace to itself, which only a new process with one thread gets. The kernel kills a
child when its parent has ended, however it ended (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Final

from ..image.oci.errors import ImageError
from ..overlay.options import MountError
from ..tree.syscalls import die_with_parent

_RESULT, _ERROR = b"\0", b"\1"
INTERRUPTED: Final = 130


class ChildError(ImageError):
    """A child failed; the message is its own."""


class Child:
    """Does `work` in a child process, whose result is read by `wait`. `fd` becomes readable when it has ended."""

    def __init__(self, work: Callable[[], bytes]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.fd, told_fd = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.fd)
            _work(work, told_fd, parent)
        os.close(told_fd)

    def wait(self) -> bytes:
        """The result. Raises ChildError."""
        with os.fdopen(self.fd, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if os.waitstatus_to_exitcode(status) == INTERRUPTED:
            raise KeyboardInterrupt
        if said[:1] == _RESULT:
            return said[1:]
        raise ChildError(os.fsdecode(said[1:]) or f"the process of a step died (status {status})")

    def kill(self) -> None:
        """End it now, and all that it has started."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def die_with(parent: int) -> None:
    """Make the kernel kill this process when its parent ends; to be called again after a change of user."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)


def _work(work: Callable[[], bytes], told_fd: int, parent: int) -> None:
    """Never returns."""
    status = 1
    try:
        die_with(parent)
        answer = _RESULT + work()
        status = 0
    except KeyboardInterrupt:
        answer, status = b"", INTERRUPTED
    except (ImageError, MountError) as error:
        answer = _ERROR + os.fsencode(str(error))
    except OSError as error:
        where = f": {os.fsdecode(error.filename)}" if error.filename else ""
        answer = _ERROR + os.fsencode(f"{error.strerror or error}{where}")
    except BaseException as error:  # noqa: BLE001 - the parent reports it
        answer = _ERROR + os.fsencode(f"{type(error).__name__}: {error} (this is a bug)")
    finally:
        with os.fdopen(told_fd, "wb") as pipe:
            pipe.write(answer)
        os._exit(status)
