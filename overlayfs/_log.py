"""What does a process log, and where does it go?

A program calls `to_file`, `to_system_log` or `to_terminal` once; otherwise warnings go to standard error. Used in place
of `logging`, whose import takes a fifth of a start. Nothing here imports or opens anything later: a mount may cover the
program's own modules, and may be out of descriptors when there is something to log. Callable from any thread.
"""

from __future__ import annotations

import _socket
import os
import sys
import time
from collections.abc import Callable, Iterator

from ._typing import Final

DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30
ERROR: Final = 40

_SYSTEM_LOG: Final = "/dev/log"
_NAMES: Final = {DEBUG: "DEBUG", INFO: "INFO", WARNING: "WARNING", ERROR: "ERROR"}
_LONGEST_CHAIN: Final = 20
_USER_FACILITY: Final = 1 << 3  # syslog(3): LOG_USER; below it the severities
_SEVERITIES: Final = {DEBUG: 7, INFO: 6, WARNING: 4, ERROR: 3}

_Write = Callable[[int, str], object]


class Log:
    """What one module logs; texts are formatted with %."""

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, text: str, *values: object) -> None:
        write(DEBUG, self._name, text, values)

    def info(self, text: str, *values: object) -> None:
        write(INFO, self._name, text, values)

    def warning(self, text: str, *values: object) -> None:
        write(WARNING, self._name, text, values)

    def error(self, text: str, *values: object, exc_info: BaseException | None = None) -> None:
        write(ERROR, self._name, text, values, exc_info)

    def exception(self, text: str, *values: object) -> None:
        """An error with the exception that is being handled."""
        write(ERROR, self._name, text, values, sys.exc_info()[1])


class _Target:
    """Where this process logs, and from which level on."""

    def __init__(self) -> None:
        self.level = WARNING
        self.write: _Write = _write_to_terminal


def _write_to_terminal(_level: int, text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


_target = _Target()


def write(level: int, name: str, text: str, values: tuple[object, ...], error: BaseException | None = None) -> None:
    """Log one text, and after it where the error came from. Does not raise."""
    if level < _target.level:
        return
    try:
        _target.write(level, _line(level, name, text % values if values else text, error))
    except Exception:  # noqa: BLE001 - what cannot be logged must not end what it is about
        return


def to_terminal(level: int) -> None:
    """Log to standard error from this level on."""
    _target.level, _target.write = level, _write_to_terminal


def to_file(path: str, level: int) -> None:
    """Append to a file. OSError where it cannot be opened."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _target.level, _target.write = level, lambda _, text: os.write(fd, _encoded(text) + b"\n")


def to_system_log(level: int) -> None:
    """Log to the system's log. OSError where nobody listens."""
    _target.level, _target.write = level, _SystemLog().write


class _SystemLog:
    """The connection with syslogd or journald, made again where that was restarted."""

    def __init__(self) -> None:
        self._connection = _connected()

    def write(self, level: int, text: str) -> None:
        message = b"<%d>%s\0" % (_USER_FACILITY | _SEVERITIES[level], _encoded(text))
        try:
            self._connection.send(message)
        except OSError:
            self._connection.close()
            self._connection = _connected()
            self._connection.send(message)


def _connected() -> _socket.socket:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        connection.connect(_SYSTEM_LOG)
    except OSError:
        connection.close()
        raise
    return connection


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _line(level: int, name: str, text: str, error: BaseException | None) -> str:
    now = time.time()
    at = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))},{int(now * 1000) % 1000:03}"
    trace = "" if error is None else "\n" + "\n".join(_trace(error))
    return f"{at} overlayfs[{os.getpid()}] {_NAMES[level]} {name}: {text}{trace}"


def _trace(error: BaseException, depth: int = 0) -> Iterator[str]:
    """As Python shows an exception, but without source lines: reading those would ask the mount itself where it
    covers the code."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and depth < _LONGEST_CHAIN:
        yield from _trace(before, depth + 1)
        yield "The above exception was the direct cause of, or being handled when there came:"
    yield "Traceback (most recent call last):"
    place = error.__traceback__
    while place is not None:
        code = place.tb_frame.f_code
        yield f'  File "{code.co_filename}", line {place.tb_lineno}, in {code.co_name}'
        place = place.tb_next
    yield f"{type(error).__qualname__}: {error}"
    if isinstance(error, BaseExceptionGroup) and depth < _LONGEST_CHAIN:
        for member in error.exceptions:
            yield from _trace(member, depth + 1)
