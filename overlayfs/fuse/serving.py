"""Who answers the kernel: the fast lane, bare or with pyfuse3 behind it, or pyfuse3 alone?

The lane answers INIT itself and serves bare from then on; trio and pyfuse3 are imported when a request needs them.
Without the lane pyfuse3 answers INIT and everything else.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from overlayfs._log import Log
from overlayfs._typing import TYPE_CHECKING, Final, Self

from ..overlay.engine import Overlay
from . import abi
from .bare import MOUNT_ENDED, NEEDS_LOOP, BareLoop
from .channel import Channel
from .control import Control
from .copying import CopyUps
from .fastlane import FastLane
from .mounting import LiveMount, MountOptions
from .status import Status
from .syncing import Syncs
from .tasks import Tasks

if TYPE_CHECKING:
    from .looping import Loop

log = Log(__name__)

# FUSE_ASYNC_DIO is not among them: after a direct write that the kernel does not wait for (AIO, io_uring) it keeps the
# old data of pages that were read meanwhile. We cannot have it drop them, as FUSE_NOTIFY_INVAL_INODE waits for pages
# that are being read, and those wait for us.
_WANTED_FLAGS: Final = (
    abi.FUSE_ASYNC_READ
    | abi.FUSE_EXPORT_SUPPORT
    | abi.FUSE_BIG_WRITES
    | abi.FUSE_AUTO_INVAL_DATA
    | abi.FUSE_DO_READDIRPLUS
    | abi.FUSE_MAX_PAGES
    | abi.FUSE_DONT_MASK  # the umask is left to us, who know the default ACL
    # The lane sees who has to lose setuid bits at a write, so the kernel need not look for capabilities before each.
    | abi.FUSE_HANDLE_KILLPRIV_V2
)
# pyfuse3 asks for these. Without them the kernel clears suid bits and capabilities by SETATTR and REMOVEXATTR, knowing
# the caller's capabilities, and truncates by SETATTR; for the last see above.
_CLEARED_FLAGS: Final = abi.FUSE_HANDLE_KILLPRIV | abi.FUSE_ATOMIC_O_TRUNC | abi.FUSE_ASYNC_DIO
# A file of a module, epoll, two socket pairs, libfuse's pipe.
_LOOP_DESCRIPTORS: Final = 8
# While a thread makes many short system calls (it removes what was dropped, say), a request waits that long for the
# interpreter's lock. By default it is 5 ms: a client then wrote a third as many files.
_SWITCH_AFTER_S: Final = 0.0002


def serve(
    overlay: Overlay, mount: MountOptions, live: LiveMount, on_live: Callable[[], None], lifeline_fd: int | None
) -> None:
    """Serve until unmounted or told to end; the mount is gone after this. Owns the mount's descriptor."""
    service = _Service(overlay, mount, live, lifeline_fd)
    sys.setswitchinterval(_SWITCH_AFTER_S)
    try:
        service.serve(on_live)
    finally:
        service.copy_ups.finish_all()
        overlay.give_up_upper()  # first thing: others may wait for the upper
        live.unmount()  # before its descriptor is closed: nobody is to see a dead mount
        live.close()
        service.syncs.close()
        service.copy_ups.close()


class _Service:
    """One mount while it is served."""

    def __init__(self, overlay: Overlay, mount: MountOptions, live: LiveMount, lifeline_fd: int | None) -> None:
        self._overlay, self._mount, self._live = overlay, mount, live
        self._tasks = Tasks()
        waits, queues = mount.lane and mount.poll_us > 0, not overlay.writes_at_once
        self.syncs = Syncs(self._tasks, waits=waits, queues=queues)
        self.copy_ups = CopyUps(overlay, self.syncs)
        self._status = Status(overlay, mount.source)
        self._control = Control(overlay, self.copy_ups, lambda: live.fd)
        self._lifeline_fd = lifeline_fd

    def serve(self, on_live: Callable[[], None]) -> None:
        init_request = os.read(self._live.fd, abi.LONGEST_REQUEST)
        if self._mount.lane:
            self._serve_with_lane(init_request, on_live)
        else:
            self._loop(init_request).serve_alone(on_live, self._edit_reply)

    def _serve_with_lane(self, init_request: bytes, on_live: Callable[[], None]) -> None:
        wanted = self._wanted_flags(init_request)
        os.write(self._live.fd, abi.init_reply(init_request, wanted))
        self._live.widen_readahead()
        channel = Channel(self._live.fd)
        lane = FastLane(
            self._overlay,
            self.copy_ups,
            self.syncs,
            self._tasks,
            channel,
            poll_us=self._mount.poll_us,
            status=self._status,
            control=self._control,
            passes_through=bool(wanted & abi.FUSE_PASSTHROUGH),
        )
        self._status.transport_facts = lane.facts
        _collect_seldom()
        bare = BareLoop(
            lane,
            self._tasks,
            channel,
            self.syncs,
            self.copy_ups,
            self._overlay.claim,
            self._log_facts,
            self._lifeline_fd,
        )
        on_live()
        if not self._mount.bare:
            self._loop(init_request).serve_with_lane(lane, channel)
            return
        with _SpareDescriptors() as spare:
            while (end := bare.serve()) == NEEDS_LOOP:
                spare.close()
                if self._has_served_in_loop(init_request, lane, channel):
                    return
                channel.give_up()
                self._tasks.give_up()
                if self._overlay.claim is not None:
                    self._overlay.claim.stop_listening()
                spare.open()
        self._live.has_ended = end == MOUNT_ENDED

    def _has_served_in_loop(self, init_request: bytes, lane: FastLane, channel: Channel) -> bool:
        """False where there can be no loop: the program was removed since it was started, or a resource is used up."""
        loop = None
        try:
            loop = self._loop(init_request)
            loop.serve_with_lane(lane, channel)
        except Exception:
            if loop is not None and loop.has_started:
                raise
            log.exception("cannot start what serves this request: it fails, and the mount lives on")
            return False
        return True

    def _loop(self, init_request: bytes) -> Loop:
        gc.disable()  # what is imported is no garbage
        from .looping import Loop

        _collect_seldom()
        return Loop(
            self._overlay,
            self.copy_ups,
            self.syncs,
            self._tasks,
            self._status,
            self._control,
            self._live,
            init_request,
            self._lifeline_fd,
        )

    def _wanted_flags(self, init_request: bytes) -> int:
        """What the lane asks of the kernel, passthrough only where it can be had."""
        options = self._overlay.options
        wanted = _WANTED_FLAGS | self._flags_if_nothing_changes()
        wanted |= abi.FUSE_POSIX_ACL if options.acl else 0
        wanted |= abi.FUSE_WRITEBACK_CACHE if options.writeback else 0
        if self._mount.passthrough and not options.writeback and options.timeout_s != 0 and _is_administrator():
            wanted |= abi.FUSE_PASSTHROUGH & abi.init_flags(init_request)
        return wanted

    def _flags_if_nothing_changes(self) -> int:
        """A filesystem may give the number of a deleted symlink to the next one."""
        return abi.FUSE_CACHE_SYMLINKS if self._overlay.options.timeout_s != 0 else 0

    def _edit_reply(self, reply: bytes) -> bytes:
        return abi.edit_init_reply(reply, _CLEARED_FLAGS, abi.FUSE_DONT_MASK | self._flags_if_nothing_changes())

    def _log_facts(self) -> None:
        log.info("%s", self._status.document())


class _SpareDescriptors:
    """Descriptors that are held for what a loop opens, in case that there are no others by then."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        while len(self._held) < _LOOP_DESCRIPTORS:
            try:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                log.warning("too few descriptors for what is needed later: %s", error)
                return

    def close(self) -> None:
        while self._held:
            os.close(self._held.pop())


def _collect_seldom() -> None:
    """Inodes are many, live long and form no garbage cycles: looking through them for some only costs time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 1000)
    gc.enable()


def _is_administrator() -> bool:
    """True where the kernel lets us register backing files: with CAP_SYS_ADMIN outside of any user namespace."""
    with open("/proc/self/uid_map", "rb") as ranges:
        return os.geteuid() == 0 and ranges.read().split() == [b"0", b"0", b"4294967295"]
