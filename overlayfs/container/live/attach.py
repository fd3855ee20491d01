"""How does a terminal or pipe of ours reach a detached program? Through conmon's attach socket.

The socket is of type SOCK_SEQPACKET (conmon, conn_sock.c). A packet from it begins with the number of the program's
stream, 2 for stdout and 3 for stderr; packets to it are the program's input, and its end is shut down with the writing
half. `ctl` takes lines `1 ROWS COLUMNS` that set the size of the terminal.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from enum import Enum
from pathlib import Path
from typing import Final

from ...image.oci.errors import ImageError, InvalidError
from .conmon import ATTACH, CONTROL

_AT_AN_END: Final = "the container is just starting or ending: try again"
_PACKET: Final = 32768
_INPUT: Final = 8192
_STDERR: Final = 3
DETACH_KEYS: Final = b"\x10\x11"
"""Ctrl-P Ctrl-Q, as in docker."""


class Ended(Enum):
    """Why an attachment ended."""

    PROGRAM = "program"
    DETACHED = "detached"


def connect(bundle: Path) -> socket.socket:
    """The attach socket of a live container. Raises ImageError."""
    try:
        fd = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InvalidError(_AT_AN_END) from None
    attached = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        attached.connect(f"/proc/self/fd/{fd}/{ATTACH}")  # the path of a socket is limited to 107 bytes
    except (FileNotFoundError, ConnectionRefusedError):
        attached.close()
        raise InvalidError(_AT_AN_END) from None
    except OSError as error:
        attached.close()
        raise ImageError(f"conmon does not answer: {error.strerror}") from None
    finally:
        os.close(fd)
    return attached


def pass_through(attached: socket.socket, bundle: Path, *, with_input: bool, has_terminal: bool) -> Ended:
    """Pass our streams to the program and its output to us, until it ends or the user detaches."""
    with _terminal(bundle, is_raw=with_input) if has_terminal and os.isatty(0) else nullcontext():
        return _copy(attached, with_input=with_input, may_detach=has_terminal)


def _copy(attached: socket.socket, *, with_input: bool, may_detach: bool) -> Ended:
    poller = select.poll()
    poller.register(attached, select.POLLIN)
    if with_input:
        poller.register(0, select.POLLIN)
    held = b""
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if attached.fileno() in ready and not _show(attached):
            return Ended.PROGRAM
        if 0 not in ready:
            continue
        typed = os.read(0, _INPUT)
        if may_detach:
            if DETACH_KEYS in held + typed:
                return Ended.DETACHED
            held = typed[-1:]
        if not typed:
            poller.unregister(0)
        if not _send(attached, typed):
            return Ended.PROGRAM


def _show(attached: socket.socket) -> bool:
    """Whether the program is still there."""
    try:
        packet = attached.recv(_PACKET)
    except ConnectionResetError:
        return False
    if not packet:
        return False
    out, text = 2 if packet[0] == _STDERR else 1, packet[1:]
    while text:
        text = text[os.write(out, text) :]
    return True


def _send(attached: socket.socket, typed: bytes) -> bool:
    try:
        if typed:
            attached.sendall(typed)
        else:
            attached.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
            return False
        raise
    return True


@contextmanager
def _terminal(bundle: Path, *, is_raw: bool) -> Iterator[None]:
    """Our terminal's size is the program's. A raw one passes keys on as they are; another one makes signals of them."""
    before = termios.tcgetattr(0)
    handler = signal.signal(signal.SIGWINCH, lambda *_: _tell_size(bundle))
    try:
        if is_raw:
            tty.setraw(0, termios.TCSADRAIN)  # and not TCSAFLUSH, which discards what was typed meanwhile
        _tell_size(bundle)
        yield
    finally:
        signal.signal(signal.SIGWINCH, handler)
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _tell_size(bundle: Path) -> None:
    with suppress(OSError):  # the program has ended
        size = os.get_terminal_size(0)
        fd = os.open(bundle / CONTROL, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, f"1 {size.lines} {size.columns}\n".encode())
        finally:
            os.close(fd)
