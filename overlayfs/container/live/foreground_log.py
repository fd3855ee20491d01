"""How is the output of a program in the foreground logged? Pipes take it to processes that log it and pass it on.

Each stream has a process of its own, so that a reader who is slow on one stream does not hold the other up. Where both
streams lead to the same file or terminal they share a pipe, which keeps their order. The end of such a process is that
of its pipe, whose writers are the runtime and the program.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from ..supervise import FORWARDED
from .logs import lines_of

_CHUNK: Final = 65536
_SIGNALS: Final = frozenset({*FORWARDED, signal.SIGCHLD})
_LOG: Final = 3
"""The log's descriptor in such a process, which reads 0 and writes 1."""
_LOST: Final = 255
"""The exit status of a process that failed without an errno."""


class _Stream(Struct, frozen=True):
    """A standard stream of ours that a pipe replaces: its numbers, a copy of it, the pipe, and the process behind."""

    numbers: tuple[int, ...]
    kept_fd: int
    pipe_fd: int
    pid: int


class Passing(Struct):
    """How output was passed on: at the end, why it could not be, or nothing."""

    problem: str = ""


@contextmanager
def logged(log: Path) -> Iterator[Passing]:
    """What is written to our standard output and error meanwhile is added to the log as well.

    For a process with one thread. A reader who went away is no problem of ours, but the program's, whose writes fail.
    """
    passing = Passing()
    log_fd = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    streams = []
    try:
        _end_line(log_fd)
        streams = [_started(numbers, log_fd) for numbers in _numbers()]
        for stream in streams:
            for number in stream.numbers:
                os.dup2(stream.pipe_fd, number)
            os.close(stream.pipe_fd)
        yield passing
    finally:
        os.close(log_fd)
        for stream in streams:
            for number in stream.numbers:
                os.dup2(stream.kept_fd, number)
            os.close(stream.kept_fd)
        passing.problem = _wait([stream.pid for stream in streams])


def _numbers() -> list[tuple[int, ...]]:
    """Our streams, which are open; those together that lead to one place."""
    return [(1, 2)] if os.path.sameopenfile(1, 2) else [(1,), (2,)]


def _end_line(log_fd: int) -> None:
    """A full disk may have cut the last line off."""
    size = os.fstat(log_fd).st_size
    if size and os.pread(log_fd, 1, size - 1) != b"\n":
        os.write(log_fd, b"\n")


def _started(numbers: tuple[int, ...], log_fd: int) -> _Stream:
    kept_fd = fcntl.fcntl(numbers[0], fcntl.F_DUPFD_CLOEXEC, 3)
    read_fd, pipe_fd = os.pipe()
    os.fchmod(pipe_fd, 0o622)  # for /dev/stdout, which another user of the container opens anew
    pid = os.fork()
    if pid:
        os.close(read_fd)
        return _Stream(numbers, kept_fd, pipe_fd, pid)
    status = _LOST
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # for the program, whose last words are to be heard
        for wanted, fd in ((0, read_fd), (1, kept_fd), (_LOG, log_fd)):
            os.dup2(fd, wanted)
        os.closerange(_LOG + 1, os.sysconf("SC_OPEN_MAX"))  # the pipes' other ends above all
        status = _relay(is_error=numbers == (2,))
    finally:
        os._exit(status)


def _relay(*, is_error: bool) -> int:
    """Log and pass on what can be read; 0, or the errno for which it could not be passed on."""
    is_logging = True
    nobody_reads = (errno.EPIPE, errno.EIO) if os.isatty(1) else (errno.EPIPE,)  # a terminal was hung up
    while data := os.read(0, _CHUNK):
        if is_logging:
            try:
                _write(_LOG, lines_of(data, is_error=is_error))
            except OSError as error:
                is_logging = False
                os.write(2, f"overlayfs: the log lacks what follows: {error.strerror}\n".encode())
        try:
            _write(1, data)
        except OSError as error:
            return 0 if error.errno in nobody_reads else error.errno or _LOST
    return 0


def _write(fd: int, data: bytes) -> None:
    """Write all, also to a descriptor that does not block."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()


def _wait(pids: list[int]) -> str:
    """Wait until all output is passed on; why it was not. A signal ends the waiting, and no output."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        problem = ""
        for pid in pids:
            while not (found := os.waitpid(pid, os.WNOHANG))[0]:
                if signal.sigwaitinfo(_SIGNALS).si_signo not in (signal.SIGCHLD, signal.SIGWINCH):
                    return problem
            status = os.waitstatus_to_exitcode(found[1])
            if status:
                problem = os.strerror(status) if 0 < status < _LOST else "its process was killed"
        return problem
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
