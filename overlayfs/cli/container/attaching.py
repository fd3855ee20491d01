"""`overlayfs attach` and `logs`: the output of a detached container, live or kept, and its input."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from overlayfs.cli.container.running import LOG, open_status
from overlayfs.cli.container.under_runc import bundle_of
from overlayfs.container.containers import BUNDLE, Container, Containers
from overlayfs.container.live import logs
from overlayfs.container.live.attach import Ended, connect, pass_through
from overlayfs.container.live.signals import Ends, send
from overlayfs.container.supervise import FORWARDED
from overlayfs.image.oci.errors import ImageError, InvalidError
from overlayfs.image.store.store import Store

_LOOK_AGAIN_S = 0.1


class Attachment:
    """Our streams on those of a detached container."""

    def __init__(self, container: Container, store: Path, *, with_input: bool) -> None:
        self._container = container
        self._store = store
        self._with_input = with_input and container.settings.keeps_stdin
        self._directory = store / "containers" / container.place
        self._socket: socket.socket | None = None

    def open(self, bundle: Path) -> None:
        """Connect, and hold what tells of the end. Raises ImageError."""
        self._socket = connect(bundle)
        with Store.open(self._store) as store:
            containers = Containers(store)
            self._status = open_status(containers, self._container)
            self._ends = Ends(containers, [containers.again(self._container)])

    def follow(self) -> int:
        """Pass everything on until the program ends; its exit status. 0 if the user detaches."""
        assert self._socket is not None
        self._forward_signals()
        with self._socket, self._status:
            ended = pass_through(
                self._socket,
                self._directory / BUNDLE,
                with_input=self._with_input,
                has_terminal=self._container.settings.has_terminal,
            )
            if ended is Ended.DETACHED:
                return 0
            self._ends.wait(self._container, None)
            self._status.seek(0)
            return int(self._status.read() or b"137")

    def _forward_signals(self) -> None:
        """Signals sent to us reach the program, as with `run`."""

        def forward(number: int, _: object) -> None:
            with suppress(ImageError), Store.open(self._store) as store:
                send(Containers(store).again(self._container), self._directory / BUNDLE, number)

        for number in FORWARDED:
            if number != signal.SIGWINCH:
                signal.signal(number, forward)


def attach(store_directory: Path | None, name: str, *, without_input: bool) -> int:
    """Attach to a running container; the exit status of its program."""
    with Store.open(store_directory) as store:
        container, path = Containers(store).find(name), store.path
    if not container.is_active:
        raise InvalidError(f"the container {container.name} is not running: see overlayfs start")
    if not container.is_detached:
        raise InvalidError(f"the container {container.name} does not run detached, so nothing can attach to it")
    attachment = Attachment(container, path, with_input=not without_input)
    attachment.open(bundle_of(path, container))
    return attachment.follow()


@dataclass(frozen=True, slots=True)
class LogRequest:
    """The options of `overlayfs logs`; `tail` of -1 is everything."""

    name: str
    follows: bool = False
    tail: int = -1
    since: str = ""
    with_times: bool = False


def show_logs(store_directory: Path | None, request: LogRequest) -> None:
    """Print what the program has written, on the streams it chose. Raises InvalidError if no log is kept."""
    since = logs.since_of(request.since) if request.since else None
    with Store.open(store_directory) as store:
        containers = Containers(store)
        container = containers.find(request.name)
        path = containers.directory(container) / LOG
    try:
        log = path.open("rb")
    except FileNotFoundError:
        if not container.started:
            return
        raise InvalidError(
            f"{container.name} has no log: none is kept with --log-driver none, "
            "nor in the foreground with --rm or under bwrap on a terminal"
        ) from None
    with log:
        ends = Ends(containers, [container] if request.follows and container.is_active else [])
        lines = _lines(container, log.fileno(), ends)
        if request.tail >= 0:
            # what is there now, then what follows
            found = logs.entries(_lines(container, log.fileno(), Ends(containers, [])))
            for entry in logs.last(found, request.tail) if request.tail else list(found)[:0]:
                _print(entry, request, is_shown=since is None or logs.is_since(entry, since))
            if not request.follows:
                return
        for entry in logs.entries(lines):
            _print(entry, request, is_shown=since is None or logs.is_since(entry, since))


def _print(entry: logs.Entry, request: LogRequest, *, is_shown: bool) -> None:
    if not is_shown:
        return
    stream = sys.stderr if entry.is_error else sys.stdout
    stream.buffer.write(entry.time + b" " + entry.text if request.with_times else entry.text)
    stream.flush()


def _lines(container: Container, fd: int, ends: Ends) -> Iterator[bytes]:
    """Whole lines of the log from where it stands, until the container has ended if that is awaited."""
    rest = b""
    has_ended = False
    while True:
        data = os.read(fd, 1 << 16)
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
        if data:
            continue
        if has_ended:
            return
        has_ended = ends.wait(container, time.monotonic() + _LOOK_AGAIN_S)
