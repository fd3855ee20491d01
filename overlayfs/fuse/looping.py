"""How do the lane, its tasks and pyfuse3 share one thread?

On trio. pyfuse3's session reads one end of a socket pair (libfuse takes `/dev/fd/N` for a mountpoint) and is sent the
kernel's INIT request there. With the lane the kernel has its answer already, and pyfuse3's is dropped; without the lane
pyfuse3's answer goes to the kernel with our flags, and then its end of the pair becomes the kernel's descriptor.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import pyfuse3
import trio

from overlayfs._log import DEBUG, ERROR, Log, write

from ..overlay.engine import Overlay
from . import abi
from .channel import Channel
from .control import Control
from .copying import CopyUps
from .handlers import Handlers
from .handover import Handover
from .lane import FAILED, NOTHING, RETRY_S, UNMOUNTED, Lane
from .mounting import ENDING_SIGNALS, LiveMount
from .status import Status
from .syncing import Syncs
from .tasks import Tasks

log = Log(__name__)

_TURN_NS: Final = 300_000  # how long tasks and pyfuse3 wait for the thread while they have something to do
_LONG_TURN_NS: Final = 20_000_000  # how long signals wait for it

_Serve = Callable[[trio.Nursery], Awaitable[None]]


class Loop:
    """One mount on trio. `init_request` is the INIT request that the kernel sent; end of file on `lifeline_fd` ends the
    mount."""

    def __init__(
        self,
        overlay: Overlay,
        copy_ups: CopyUps,
        syncs: Syncs,
        tasks: Tasks,
        status: Status,
        control: Control,
        live: LiveMount,
        init_request: bytes,
        lifeline_fd: int | None,
    ) -> None:
        _take_over_logging()
        self._handlers = Handlers(overlay, status, control, copy_ups, syncs)
        self._overlay, self._claim = overlay, overlay.claim
        self._copy_ups, self._syncs, self._tasks, self._status = copy_ups, syncs, tasks, status
        self._device_fd = live.fd
        control.device_fd = lambda: self._device_fd
        self._live = live
        self._init_request = init_request
        self._lifeline_fd = lifeline_fd
        self.has_started = False  # an error before that is one of the loop, and not of the mount
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve_with_lane(self, lane: Lane, channel: Channel) -> None:
        """Serve until the mount ends or a signal ends it; continues where the bare loop stopped."""

        async def serve(nursery: trio.Nursery) -> None:
            await self._shake_hands()
            channel.connect(self._ours)
            nursery.start_soon(pyfuse3.main)
            nursery.start_soon(relay, channel)
            await serve_lane(lane, channel)

        self._run(serve)

    def serve_alone(self, on_live: Callable[[], None], edit_reply: Callable[[bytes], bytes]) -> None:
        """Serve by pyfuse3 alone, whose answer to INIT the kernel gets as `edit_reply` changes it."""

        async def serve(_nursery: trio.Nursery) -> None:
            os.write(self._live.fd, edit_reply(await self._shake_hands()))
            self._live.widen_readahead()
            on_live()
            os.dup2(self._live.fd, self._their_fd, inheritable=False)
            self._device_fd = self._their_fd
            self._live.close()  # two descriptors would keep the connection alive after the session's end
            await pyfuse3.main()

        self._run(serve)

    def _run(self, serve: _Serve) -> None:
        with self._ours, self._theirs:
            self._ours.send(self._init_request)
            pyfuse3.init(self._handlers, f"/dev/fd/{self._theirs.fileno()}", set())
            self._their_fd = self._theirs.detach()  # closed by libfuse with its session
            try:
                trio.run(self._serve, serve)
            finally:
                if self.has_started:
                    self._copy_ups.finish_all()
                    self._overlay.give_up_upper()  # first thing: others may wait for the upper
                    self._live.unmount()  # before its descriptor is closed: nobody is to see a dead mount
                pyfuse3.close(unmount=False)

    async def _serve(self, serve: _Serve) -> None:
        self.has_started = True
        async with trio.open_nursery() as nursery:
            if self._claim is not None:
                end = nursery.cancel_scope.cancel
                handover = Handover(self._overlay, self._claim, self._live, lambda: self._device_fd, end)
                nursery.start_soon(handover.serve, nursery)
            nursery.start_soon(_end_on_signal, nursery.cancel_scope)
            nursery.start_soon(self._log_facts_on_signal)
            self._tasks.run_in(nursery)
            nursery.start_soon(self._copy_ups.serve)
            nursery.start_soon(self._syncs.serve)
            if self._lifeline_fd is not None:
                nursery.start_soon(_end_with_parent, self._lifeline_fd, nursery.cancel_scope)
            await serve(nursery)
            self._live.has_ended = True
            nursery.cancel_scope.cancel()

    async def _shake_hands(self) -> bytes:
        """Let pyfuse3 answer INIT; its answer."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await trio.lowlevel.wait_readable(self._ours)
            nursery.cancel_scope.cancel()
        return self._ours.recv(abi.LONGEST_REQUEST)

    async def _log_facts_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1,))
            async for _ in signals:
                log.info("%s", self._status.document())


async def serve_lane(lane: Lane, channel: Channel) -> None:
    """Serve until the kernel ends the session."""
    while True:
        busy = channel.in_flight or lane.pending
        turn = lane.serve_turn(_TURN_NS if busy else _LONG_TURN_NS, polls=not (busy or channel.has_unsent))
        if turn == UNMOUNTED:
            return
        if turn == NOTHING:
            lane.rest()
            await _wait_for_request(channel)
        elif turn == FAILED:
            await trio.sleep(RETRY_S)
        else:
            await trio.lowlevel.checkpoint()


async def relay(channel: Channel) -> None:
    """Pass pyfuse3's answers to the kernel, for ever."""
    while True:
        await trio.lowlevel.wait_readable(channel.pair_fd)
        try:
            channel.relay()
        except BlockingIOError:
            continue
        except OSError as error:
            log.error("cannot take an answer from pyfuse3 yet: %s", error)
            await trio.sleep(RETRY_S)


async def _wait_for_request(channel: Channel) -> None:
    """Return when there may be a request."""
    if not channel.has_unsent:
        await trio.lowlevel.wait_readable(channel.device_fd)
        return
    with trio.move_on_after(RETRY_S):
        await trio.lowlevel.wait_readable(channel.device_fd)
    channel.retry()


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(*ENDING_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        async for number in signals:
            log.info("ending on %s", signal.Signals(number).name)
            scope.cancel()
            return


async def _end_with_parent(lifeline_fd: int, scope: trio.CancelScope) -> None:
    while True:
        await trio.lowlevel.wait_readable(lifeline_fd)
        if not os.read(lifeline_fd, 4096):
            scope.cancel()
            return


class _Forwarding(logging.Handler):
    """Send the `logging` records of pyfuse3 and trio to this package's log."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        level = min(max(record.levelno // 10 * 10, DEBUG), ERROR)  # those that we have
        write(level, record.name, record.getMessage(), (), error)


def _take_over_logging() -> None:
    logging.basicConfig(level=logging.INFO, handlers=[_Forwarding()], force=True)
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)
