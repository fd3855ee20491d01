"""How are hot requests taken from the kernel before pyfuse3 sees them?

The lane reads the kernel's descriptor, answers what its methods answer, and forwards the rest unchanged. A request is
forwarded before the engine has done anything for it, or not at all. What waits for a disk becomes a task. All of it
happens on the thread that owns the engine, in one of two loops: `bare`, which has neither tasks nor pyfuse3 and ends as
soon as one of them is needed, and then `looping`, which runs on trio.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ..overlay.engine import Overlay
from . import abi
from .abi import Opcode
from .channel import Channel
from .setattr import Asker
from .tasks import Tasks

log = logging.getLogger(__name__)

RETRY_S: Final = 0.05  # after the kernel or pyfuse3 did not take or give a message

# What `take` found.
HANDLED, NOTHING, UNMOUNTED, FAILED = range(4)

_Method = Callable[[int, memoryview, Asker], bytes | None]
_Work = Callable[[], Coroutine[Any, Any, bytes]]


class Forwarded(Exception):
    """This request is pyfuse3's."""


class Lane:
    """Takes requests and knows who answers them: a subclass has a method `_<opcode>` for each that the lane answers."""

    def __init__(self, overlay: Overlay, tasks: Tasks, channel: Channel, poll_us: int) -> None:
        self._overlay = overlay
        self._tasks = tasks
        self._channel = channel
        self.poll_ns = poll_us * 1000
        self._buffer = bytearray(abi.LONGEST_REQUEST)
        self._view = memoryview(self._buffer)
        self._buffers = [self._buffer]
        self._unique = 0
        self.pending = 0  # requests that are answered later
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

    def take(self) -> int:
        """Answer or forward the next request: HANDLED; NOTHING where there is none, UNMOUNTED where none will come,
        FAILED where the kernel cannot give one yet."""
        try:
            length = os.readv(self._channel.device_fd, self._buffers)
        except BlockingIOError:
            return NOTHING
        except OSError as error:
            if error.errno == errno.ENODEV:
                return UNMOUNTED
            if error.errno in (errno.EINTR, errno.ENOENT):  # ENOENT: the request was taken back meanwhile
                return HANDLED
            log.error("cannot read a request yet: %s", error)
            return FAILED
        self._handle(length)
        return HANDLED

    def rest(self) -> None:
        """There is nothing to do for a moment."""
        self._overlay.give_memory_back()

    def _handle(self, length: int) -> None:
        """Answer or forward the request in the buffer; whatever happens, the lane goes on."""
        if length < abi.IN_HEADER.size:
            log.error("a request of %d bytes is none", length)
            return
        _, opcode, unique, node, uid, gid, pid, _, _ = abi.IN_HEADER.unpack_from(self._buffer)
        method = self._table[opcode] if opcode < abi.OPCODE_LIMIT else None
        self._unique = unique
        try:
            if method is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
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
        self.answered[min(opcode, abi.OPCODE_LIMIT - 1)] += 1

    def _forward(self, opcode: int, length: int) -> None:
        self.forwarded[opcode] += 1
        self._channel.forward(bytes(self._view[:length]), has_reply=opcode not in abi.WITHOUT_REPLY)

    def _later(self, work: _Work) -> None:
        """Answer the current request by a task."""
        self.pending += 1
        unique = self._unique

        def give_up() -> None:
            self.pending -= 1
            self._channel.refuse(unique, errno.EIO)

        self._tasks.begin(lambda: self._finish(unique, work), give_up)

    def _refuse(self, unique: int, failure: BaseException) -> None:
        if not isinstance(failure, OSError):
            log.error("a request failed", exc_info=failure)
        self._channel.refuse(unique, getattr(failure, "errno", None) or errno.EIO)

    async def _finish(self, unique: int, work: _Work) -> None:
        try:
            reply = await work()
        except Exception as failure:  # noqa: BLE001 - whoever waits is answered, and it is logged
            self._refuse(unique, failure)
        else:
            self._channel.answer(unique, reply)
        finally:
            self.pending -= 1
