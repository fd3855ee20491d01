"""How is a mount served before it needs an event loop?

Importing trio and pyfuse3 takes four times as long as all the rest of a start, and most mounts of an engine never ask
for anything that needs them. So the lane first serves alone, in a loop of its own on poll(2). The loop ends when a
request was forwarded, or became a task: `looping` then goes on where it stopped, in the same thread.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from overlayfs._log import Log
from overlayfs._typing import Final, Self

from ..overlay.claim import Claim
from .channel import Channel
from .copying import CopyUps
from .lane import FAILED, NOTHING, RETRY_S, UNMOUNTED, Lane
from .mounting import ENDING_SIGNALS, HANDLED_SIGNALS
from .syncing import Syncs
from .tasks import Tasks

log = Log(__name__)

# How the bare loop ends.
MOUNT_ENDED, TOLD_TO_END, NEEDS_LOOP = range(3)

_TURN_NS: Final = 20_000_000  # how long a signal may have to wait while one request follows another
_RETRY_MS: Final = int(RETRY_S * 1000)


class _Signals:
    """Signals as bytes in a pipe, in a `with` block; blocked before and after."""

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in HANDLED_SIGNALS:
            signal.signal(number, _wake)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        signal.set_wakeup_fd(-1)
        os.close(self.fd)
        os.close(self._write_fd)

    def take(self) -> bytes:
        """The numbers of the signals that came."""
        try:
            return os.read(self.fd, 64)
        except BlockingIOError:
            return b""


def _wake(number: int, frame: FrameType | None) -> None:
    """Does nothing: the wakeup pipe reports the signal."""


class BareLoop:
    """One mount while nothing of it needs an event loop. `on_facts` is called for each SIGUSR1; end of file on
    `lifeline_fd` ends the mount."""

    def __init__(
        self,
        lane: Lane,
        tasks: Tasks,
        channel: Channel,
        syncs: Syncs,
        copy_ups: CopyUps,
        claim: Claim | None,
        on_facts: Callable[[], None],
        lifeline_fd: int | None,
    ) -> None:
        self._lane, self._tasks, self._channel, self._syncs = lane, tasks, channel, syncs
        self._copy_ups = copy_ups
        self._claim = claim
        self._on_facts = on_facts
        self._lifeline_fd = lifeline_fd
        self._asked_fd: int | None = None  # the socket on which others ask for the upper
        self._poller = select.poll()
        for fd in (channel.device_fd, syncs.event_fd, lifeline_fd):
            if fd is not None:
                self._poller.register(fd, select.POLLIN)

    def serve(self) -> int:
        """Serve until the mount ends, a signal ends it, or a request needs trio: MOUNT_ENDED, TOLD_TO_END,
        NEEDS_LOOP."""
        with _Signals() as signals:
            self._poller.register(signals.fd, select.POLLIN)
            asked_fd = self._listen_for_others()
            try:
                return self._serve(signals)
            finally:
                self._poller.unregister(signals.fd)
                self._stop_listening(asked_fd)

    def _listen_for_others(self) -> int | None:
        """End the loop when another process asks for the upper; returns the socket's descriptor."""
        if self._claim is None or self._claim.listener is None:
            return None
        self._poller.register(self._claim.listener, select.POLLIN)
        self._claim.before_closing = lambda listener: self._stop_listening(listener.fileno())
        self._asked_fd = self._claim.listener.fileno()
        return self._asked_fd

    def _stop_listening(self, fd: int | None) -> None:
        if fd is not None and fd == self._asked_fd:
            self._poller.unregister(fd)
            self._asked_fd = None

    def _serve(self, signals: _Signals) -> int:
        lane, channel = self._lane, self._channel
        while True:
            turn = lane.serve_turn(_TURN_NS, polls=not (lane.pending or channel.has_unsent))
            if self._tasks.are_postponed or channel.in_flight:
                return NEEDS_LOOP
            if turn == UNMOUNTED:
                return MOUNT_ENDED
            wait_ms: int | None = 0
            if turn == NOTHING:
                lane.rest()
                wait_ms = _RETRY_MS if channel.has_unsent else None
            end = self._wait(signals, wait_ms, is_failing=turn == FAILED)
            if end is not None:
                return end

    def _wait(self, signals: _Signals, wait_ms: int | None, *, is_failing: bool) -> int | None:
        """Poll for requests, signals and the ends of syncs and transfers, and handle all but requests; returns how the
        loop ends, if it does."""
        if is_failing:  # the descriptor may be readable all the while
            time.sleep(RETRY_S)
            wait_ms = 0
        transfers_fd = self._copy_ups.event_fd
        if transfers_fd is not None:  # since the first transfer
            self._poller.register(transfers_fd, select.POLLIN)
        ready = {fd for fd, _ in self._poller.poll(wait_ms)}
        self._channel.retry()
        if self._syncs.event_fd in ready:
            self._syncs.take_ended()
        if transfers_fd in ready:
            self._copy_ups.take_transferred()
        if signals.fd in ready:
            numbers = signals.take()
            ending = [number for number in numbers if number in ENDING_SIGNALS]
            if ending:
                log.info("ending on %s", signal.Signals(ending[0]).name)
                return TOLD_TO_END
            if numbers:
                self._on_facts()
        if self._lifeline_fd in ready and not os.read(self._lifeline_fd or 0, 4096):
            return TOLD_TO_END
        return NEEDS_LOOP if self._asked_fd in ready else None
