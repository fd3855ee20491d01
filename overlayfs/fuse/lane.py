"""How are hot requests taken from the kernel before pyfuse3 sees them?

The lane reads the kernel's descriptor, answers what its methods answer, and forwards the rest unchanged. A request is
forwarded before the engine has done anything for it, or not at all. All on the trio thread that owns the engine; what
waits for a disk does so in a worker thread, in a task of the nursery that `serve` is given.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..overlay.engine import Overlay
from . import abi
from .abi import Opcode
from .channel import Channel
from .setattr import Asker

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.05
_TURN_NS: Final = 300_000  # how long others wait for the thread while they have something to do
_LONG_TURN_NS: Final = 20_000_000  # and while nothing of theirs is known: signals

_Method = Callable[[int, memoryview, Asker], bytes | None]


class Forwarded(Exception):
    """This request is pyfuse3's."""


class Lane:
    """The loop, and who answers what: a subclass has a method `_<opcode>` for each request that it answers."""

    def __init__(self, overlay: Overlay, channel: Channel, poll_us: int) -> None:
        self._overlay = overlay
        self._channel = channel
        self._poll_ns = poll_us * 1000
        self._buffer = bytearray(abi.LONGEST_REQUEST)
        self._view = memoryview(self._buffer)
        self._unique = 0
        self._tasks = 0
        self._nursery: trio.Nursery | None = None
        self.answered = [0] * abi.OPCODE_LIMIT  # by opcode
        self.forwarded = [0] * abi.OPCODE_LIMIT
        self._table: list[_Method | None] = [None] * abi.OPCODE_LIMIT
        for opcode in Opcode:
            self._table[opcode] = getattr(self, f"_{opcode.name.lower()}", None)

    def facts(self) -> dict[str, object]:
        """How many requests of each kind came, and who answered them."""
        counts = {
            opcode.name: {"lane": self.answered[opcode], "forwarded": self.forwarded[opcode]}
            for opcode in Opcode
            if self.answered[opcode] or self.forwarded[opcode]
        }
        return {"lane": True, "requests": counts}

    async def serve(self, nursery: trio.Nursery) -> None:
        """Serve until the kernel ends the session."""
        self._nursery = nursery
        fd, buffers, channel = self._channel.device_fd, [self._buffer], self._channel
        turn = started = time.perf_counter_ns()
        while True:
            try:
                length = os.readv(fd, buffers)
            except BlockingIOError:
                now = time.perf_counter_ns()
                busy = channel.in_flight or channel.has_unsent or self._tasks
                if now - started < self._poll_ns and not busy:
                    os.sched_yield()
                    continue
                self._overlay.give_memory_back()
                await channel.wait_for_request()
                turn = started = time.perf_counter_ns()
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno not in (errno.EINTR, errno.ENOENT):  # ENOENT: the request was taken back meanwhile
                    log.error("cannot read a request yet: %s", error)
                    await trio.sleep(_RETRY_S)
                continue
            self._handle(length)
            started = time.perf_counter_ns()
            if started - turn > (_TURN_NS if channel.in_flight or self._tasks else _LONG_TURN_NS):
                await trio.lowlevel.checkpoint()
                turn = started = time.perf_counter_ns()

    def _handle(self, length: int) -> None:
        """Answer or forward the request in the buffer; whatever happens, the lane goes on."""
        if length < abi.IN_HEADER.size:
            log.error("a request of %d bytes is none", length)
            return
        _, opcode, unique, node, uid, gid, pid, _, _ = abi.IN_HEADER.unpack_from(self._buffer)
        method = self._table[opcode] if opcode < abi.OPCODE_LIMIT else None
        if method is None:
            self._forward(opcode, length)
            return
        self._unique = unique
        try:
            reply = method(node, self._view[abi.IN_HEADER.size : length], (uid, gid, pid))
        except OSError as error:
            if opcode not in abi.WITHOUT_REPLY:
                self._channel.refuse(unique, error.errno or errno.EIO)
        except Forwarded:
            self._forward(opcode, length)
            return
        except Exception:
            log.exception("%s failed", Opcode(opcode).name)
            if opcode not in abi.WITHOUT_REPLY:
                self._channel.refuse(unique, errno.EIO)
        else:
            if reply is not None:
                self._channel.answer(unique, reply)
        self.answered[opcode] += 1

    def _forward(self, opcode: int, length: int) -> None:
        self.forwarded[min(opcode, abi.OPCODE_LIMIT - 1)] += 1
        self._channel.forward(bytes(self._view[:length]), has_reply=opcode not in abi.WITHOUT_REPLY)

    def _later(self, work: Callable[[], Awaitable[bytes]]) -> None:
        """Answer the current request by a task."""
        assert self._nursery is not None
        self._tasks += 1
        self._nursery.start_soon(self._finish, self._unique, work)

    def _refuse(self, unique: int, failure: BaseException) -> None:
        if not isinstance(failure, OSError):
            log.error("a request failed", exc_info=failure)
        self._channel.refuse(unique, getattr(failure, "errno", None) or errno.EIO)

    async def _finish(self, unique: int, work: Callable[[], Awaitable[bytes]]) -> None:
        try:
            reply = await work()
        except Exception as failure:  # noqa: BLE001 - whoever waits is answered, and it is logged
            self._refuse(unique, failure)
        else:
            self._channel.answer(unique, reply)
        finally:
            self._tasks -= 1
