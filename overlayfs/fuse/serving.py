"""Who answers the kernel: the fast lane with pyfuse3 behind it, or pyfuse3 alone?

pyfuse3's session reads one end of a socket pair (libfuse takes `/dev/fd/N` for a mountpoint). The INIT handshake passes
through our hands, because the reply needs flags that pyfuse3 has no setting for. Then the lane reads the kernel's
descriptor and hands on what it does not answer itself; without the lane, the pair's end becomes that descriptor.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import pyfuse3
import trio

from ..overlay.engine import Overlay
from . import abi
from .channel import Channel
from .copying import CopyUps
from .fastlane import FastLane
from .handlers import STATUS_XATTR, Handlers
from .handover import Handover
from .mounting import ENDING_SIGNALS, LiveMount, MountOptions
from .syncing import Syncs

log = logging.getLogger(__name__)

# The kernel then clears suid bits and capabilities by SETATTR and REMOVEXATTR, knowing the caller's capabilities;
# truncates by SETATTR; and leaves the umask to us, who know the default ACL. It waits for each direct write: after one
# that it does not wait for (AIO, io_uring) it keeps the old data of pages that were read meanwhile. We cannot have it
# drop them: FUSE_NOTIFY_INVAL_INODE waits for pages that are being read, and those wait for us.
_CLEARED_FLAGS: Final = abi.FUSE_HANDLE_KILLPRIV | abi.FUSE_ATOMIC_O_TRUNC | abi.FUSE_ASYNC_DIO
_ADDED_FLAGS: Final = abi.FUSE_DONT_MASK
# A filesystem may give the number of a deleted symlink to the next one.
_FLAGS_IF_NOTHING_CHANGES: Final = abi.FUSE_CACHE_SYMLINKS
# The lane sees who has to lose setuid bits at a write, so the kernel need not look for capabilities before each.
_LANE_FLAGS: Final = abi.FUSE_HANDLE_KILLPRIV_V2


def serve(
    overlay: Overlay, mount: MountOptions, live: LiveMount, on_live: Callable[[], None], lifeline_fd: int | None
) -> None:
    """Serve until unmounted or told to end; the mount is gone after this. Owns the mount's descriptor."""
    with ExitStack() as at_end:
        device = at_end.enter_context(ExitStack())
        device.callback(os.close, live.fd)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        at_end.callback(theirs.detach)  # closed by libfuse with its session
        at_end.enter_context(ours)
        session = _Session(overlay, mount, live, device, ours, theirs)
        at_end.callback(session.syncs.close)
        try:
            session.take_offer(os.read(live.fd, abi.LONGEST_REQUEST))
            pyfuse3.init(session.handlers, f"/dev/fd/{theirs.fileno()}", set())
            try:
                trio.run(session.run, on_live, lifeline_fd)
            finally:
                overlay.give_up_upper()  # first thing: others may wait for the upper
                pyfuse3.close(unmount=False)
        finally:
            live.unmount()  # before its descriptor is closed: nobody is to see a dead mount


class _Session:
    """One mount while it is served."""

    def __init__(
        self,
        overlay: Overlay,
        mount: MountOptions,
        live: LiveMount,
        device: ExitStack,
        ours: socket.socket,
        theirs: socket.socket,
    ) -> None:
        self._overlay = overlay
        self._mount = mount
        self._live = live
        self._device_fd, self._device = live.fd, device
        self._ours, self._theirs = ours, theirs
        self.syncs = Syncs(waits=mount.lane and mount.poll_us > 0, queues=not overlay.writes_at_once)
        self._copy_ups = CopyUps(overlay, self.syncs)
        self.handlers = Handlers(overlay, mount.source, self._copy_ups, self.syncs)
        self._passes_through = False

    def take_offer(self, request: bytes) -> None:
        """Pass the kernel's INIT on to pyfuse3, and decide what we ask for beyond it."""
        wanted = self._mount.lane and self._mount.passthrough and not self._overlay.options.writeback
        able = bool(abi.init_flags(request) & abi.FUSE_PASSTHROUGH) and self._overlay.options.timeout_s != 0
        self._passes_through = wanted and able and _is_administrator()
        self._ours.send(request)

    async def run(self, on_live: Callable[[], None], lifeline_fd: int | None) -> None:
        await self._shake_hands()
        self._live.widen_readahead()
        _collect_seldom()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal, nursery.cancel_scope)
            nursery.start_soon(self._log_facts_on_signal)
            nursery.start_soon(self.syncs.serve)
            if lifeline_fd is not None:
                nursery.start_soon(_end_with_parent, lifeline_fd, nursery.cancel_scope)
            if self._overlay.claim is not None:
                handover = Handover(
                    self._overlay, self._overlay.claim, self._live, lambda: self._device_fd, nursery.cancel_scope.cancel
                )
                nursery.start_soon(handover.serve, nursery)
            on_live()
            await (self._serve_with_lane(nursery) if self._mount.lane else self._serve_alone())
            self._live.has_ended = True
            nursery.cancel_scope.cancel()

    async def _shake_hands(self) -> None:
        """Let pyfuse3 answer INIT, and pass its answer on with our flags."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await trio.lowlevel.wait_readable(self._ours)
            nursery.cancel_scope.cancel()
        reply = self._ours.recv(abi.LONGEST_REQUEST)
        added = _ADDED_FLAGS | (_LANE_FLAGS if self._mount.lane else 0)
        if self._overlay.options.timeout_s != 0:
            added |= _FLAGS_IF_NOTHING_CHANGES
        if self._passes_through:
            added |= abi.FUSE_PASSTHROUGH
        os.write(self._device_fd, abi.edit_init_reply(reply, _CLEARED_FLAGS, added))

    async def _log_facts_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            async for _ in signals:
                log.info("%s", json.dumps(self.handlers.facts()))

    async def _serve_alone(self) -> None:
        os.dup2(self._device_fd, self._theirs.fileno(), inheritable=False)
        self._device_fd = self._theirs.fileno()
        self._device.close()  # two descriptors would keep the connection alive after the session's end
        await pyfuse3.main()

    async def _serve_with_lane(self, nursery: trio.Nursery) -> None:
        channel = Channel(self._device_fd, self._ours)
        lane = FastLane(
            self._overlay,
            self._copy_ups,
            self.syncs,
            channel,
            poll_us=self._mount.poll_us,
            status_xattr=STATUS_XATTR,
            passes_through=self._passes_through,
        )
        self.handlers.transport_facts = lane.facts
        nursery.start_soon(pyfuse3.main)
        nursery.start_soon(channel.relay)
        await lane.serve(nursery)


def _collect_seldom() -> None:
    """Inodes are many, live long and form no garbage cycles: looking through them for some only costs time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 1000)
    gc.enable()


def _is_administrator() -> bool:
    """True where the kernel lets us register backing files: with CAP_SYS_ADMIN outside of any user namespace."""
    with open("/proc/self/uid_map", "rb") as ranges:
        return os.geteuid() == 0 and ranges.read().split() == [b"0", b"0", b"4294967295"]


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
