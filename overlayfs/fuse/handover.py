"""How does a daemon answer another mount that wants its upper, and release the upper once its own mount is detached?

Users of the detached mount (a working directory below a lazily unmounted tree, a copy of the mount in another mount
namespace) get ENOTCONN once the daemon ends. Before that, the kernel writes back its dirty pages, so all written data
is in the upper.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final

import trio

from overlayfs._log import Log

from ..overlay.claim import LET_GO, Claim, Standing
from ..overlay.engine import Overlay
from . import abi
from .mounting import LiveMount

log = Log(__name__)

_ASKS_WITHIN_S: Final = 30.0
_KEPT: Final = b"files of a former mount are open, which the kernel writes to by itself (passthrough=on)\n"
_STANDS: Final = b"it is mounted again\n"


class Handover:
    """Answers other mounts on the claim socket. `end` ends the daemon; `device_fd` returns the /dev/fuse descriptor."""

    def __init__(
        self, overlay: Overlay, claim: Claim, live: LiveMount, device_fd: Callable[[], int], end: Callable[[], None]
    ) -> None:
        self._overlay = overlay
        self._claim = claim
        self._live = live
        self._device_fd = device_fd
        self._end = end

    async def serve(self, nursery: trio.Nursery) -> None:
        """Accept and answer connections as long as the socket exists."""
        listener = self._claim.listener
        if listener is None:
            return
        listener.setblocking(False)
        self._claim.before_closing = trio.lowlevel.notify_closing
        while True:
            try:
                await trio.lowlevel.wait_readable(listener)
                connection = self._claim.accept()
            except trio.ClosedResourceError:
                log.warning("too few descriptors: the socket that tells other mounts who holds the upper is closed")
                return
            except OSError as error:  # it went away again, or there are too few descriptors
                log.info("no connection was accepted: %s", error)
                await trio.sleep(0.1)
                continue
            nursery.start_soon(self._answer, connection)

    async def _answer(self, connection: socket.socket) -> None:
        has_let_go = False
        try:
            has_let_go = await self._speak(trio.SocketStream(trio.socket.from_stdlib_socket(connection)))
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.info("a mount that asked for the upper closed the connection: %s", error)
        except Exception:
            log.exception("a mount that asked for the upper was not answered")
        finally:
            if has_let_go:
                self._claim.keep_waiting(connection)
                self._end()
            else:
                connection.close()

    async def _speak(self, stream: trio.SocketStream) -> bool:
        """True if the daemon must end to let the peer have the upper."""
        with trio.fail_after(_ASKS_WITHIN_S):
            await stream.send_all(Standing(self._live.device, self._live.stands_at).to_line())
            if await stream.receive_some(len(LET_GO)) != LET_GO:
                return False
        reason = self._why_not() or await self._write_back()
        if reason is not None:
            await stream.send_all(reason)
        return reason is None

    def _why_not(self) -> bytes | None:
        if self._live.stands_at is not None:
            return _STANDS
        return _KEPT if self._overlay.passes_through else None

    async def _write_back(self) -> bytes | None:
        """Write back all dirty data to the upper; returns the reason why the upper cannot be released, if any."""
        log.warning("another mount takes the upper over: what is still open of this one is cut off")
        numbers = self._overlay.files_known_to_kernel()
        try:
            # abandoned when the daemon ends meanwhile, as then nobody answers the requests that it waits for
            await trio.to_thread.run_sync(_write_back, self._device_fd(), numbers, abandon_on_cancel=True)
        finally:
            numbers.clear()
        return self._why_not()


def _write_back(device_fd: int, numbers: list[int]) -> None:
    """Have the kernel write back the dirty pages of these files, also of mappings, and drop their page cache.

    It asks the daemon to write meanwhile, so this is for a thread, which goes on until `numbers` is empty.
    """
    while numbers:
        number = numbers.pop()
        try:
            os.write(device_fd, abi.invalidation(number))
        except FileNotFoundError:  # the kernel has forgotten it
            continue
        except OSError as error:
            log.error("file %d may not be written back whole: %s", number, error)
