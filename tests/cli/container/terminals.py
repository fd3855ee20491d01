"""Commands of the program on a terminal of their own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.cli.people import COMMAND
from tests.prepared import PATIENCE_S


class HasStore(Protocol):
    store: Path


@dataclass(slots=True)
class Terminal:
    """Our end of a terminal, and the command that has it as its controlling terminal."""

    process: subprocess.Popen[bytes]
    fd: int

    def read_until(self, text: bytes) -> bytes:
        """What is shown, up to this text and perhaps more."""
        seen = b""
        while text not in seen:
            ready, _, _ = select.select([self.fd], [], [], PATIENCE_S)
            assert ready, seen
            try:
                seen += os.read(self.fd, 4096)
            except OSError as error:  # nobody has the terminal any more
                raise AssertionError(f"{error} after {seen!r}") from None
        return seen

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def resize(self, rows: int, columns: int) -> None:
        _resize(self.fd, rows, columns)

    def hang_up(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def status(self) -> int:
        """The exit status of the command."""
        return self.process.wait(PATIENCE_S)


@contextmanager
def on_terminal(shop: HasStore, *words: str, size: tuple[int, int] = (24, 80)) -> Iterator[Terminal]:
    """A command on a terminal; it has ended after this."""

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    ours, theirs = pty.openpty()
    _resize(ours, *size)
    try:
        process = subprocess.Popen(
            [*COMMAND, "--store", shop.store, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509 - it calls nothing that takes a lock
        )
    finally:
        os.close(theirs)
    terminal = Terminal(process, ours)
    try:
        yield terminal
    finally:
        process.kill()
        process.wait()
        with suppress(OSError):  # it was hung up
            os.close(terminal.fd)


def _resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
