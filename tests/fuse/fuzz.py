"""Does the lane survive any message? A process that plays rounds, each on a fresh overlay, and ends at the first fault.

`python -m tests.fuse.fuzz FIRST_SEED ROUNDS` prints the seed of each round before it plays it, so that a round which
crashes the process is known and can be played again. The lane is the real one, with a socket in the place of /dev/fuse,
and a second one where pyfuse3 would be.

No reply and no file may hold the bytes that a longer message left in the lane's buffer behind a shorter one, nor a
reply those of a longer reply. So both buffers are filled with patterns now and then. In a build with AddressSanitizer
the lane itself forbids access to the bytes behind a message.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import sys
from typing import Final

import trio

from overlayfs.fuse import abi
from overlayfs.fuse.abi import Opcode
from overlayfs.fuse.channel import Channel
from overlayfs.fuse.control import Control
from overlayfs.fuse.copying import CopyUps
from overlayfs.fuse.fastlane import FastLane
from overlayfs.fuse.status import Status
from overlayfs.fuse.syncing import Syncs
from overlayfs.fuse.tasks import Tasks
from overlayfs.overlay.engine import Overlay

from .fuzz_layers import LEFT_BEHIND_A_REPLY, PATTERN, base_of_round, make_layers, untouchable, written
from .random_messages import Messages, Nodes

ROUND: Final = 5_000  # messages
_BETWEEN_PATTERNS: Final = 8  # messages
_LEFT_BEHIND_A_MESSAGE: Final = b"\xc5behind-a-message\x5c"
_LONGEST_FILE: Final = 4 << 20  # whatever a write, a truncate or a fallocate asks for
_DEADLINE_S: Final = 60  # for tasks
_NO_OPCODE: Final = 63
_UNIQUE: Final = 1 << 40  # of the fuzzer's own requests

_ENTRY: Final = abi.ENTRY_SIZE
_ATTRIBUTES: Final = abi.ATTR_TIMES.size + 88
_MODE_AT: Final = abi.OUT_HEADER.size + _ENTRY - 88 + 60
# How long the body of a reply is that tells of no error. READ and its like are at most as long as was asked for.
_SIZES: Final = {
    Opcode.LOOKUP: _ENTRY, Opcode.SYMLINK: _ENTRY, Opcode.MKNOD: _ENTRY, Opcode.MKDIR: _ENTRY, Opcode.LINK: _ENTRY,
    Opcode.CREATE: _ENTRY + abi.OPEN_OUT.size, Opcode.TMPFILE: _ENTRY + abi.OPEN_OUT.size,
    Opcode.GETATTR: _ATTRIBUTES, Opcode.SETATTR: _ATTRIBUTES, Opcode.STATX: abi.STATX_OUT.size,
    Opcode.STATFS: abi.STATFS_OUT.size, Opcode.WRITE: 8, Opcode.LSEEK: 8, Opcode.COPY_FILE_RANGE: 8,
    Opcode.COPY_FILE_RANGE_64: 8, Opcode.OPEN: abi.OPEN_OUT.size, Opcode.OPENDIR: abi.OPEN_OUT.size,
    Opcode.UNLINK: 0, Opcode.RMDIR: 0, Opcode.RENAME: 0, Opcode.RENAME2: 0, Opcode.RELEASE: 0, Opcode.RELEASEDIR: 0,
    Opcode.FSYNC: 0, Opcode.FSYNCDIR: 0, Opcode.FALLOCATE: 0, Opcode.SETXATTR: 0, Opcode.REMOVEXATTR: 0,
    Opcode.SYNCFS: 0,
}  # fmt: skip
_DATA: Final = {Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS}
_XATTRS: Final = {Opcode.GETXATTR, Opcode.LISTXATTR}
_MAKES_ENTRY: Final = {opcode for opcode, size in _SIZES.items() if size in (_ENTRY, _ENTRY + abi.OPEN_OUT.size)}


class Fault(Exception):
    """The lane did what it must not do."""


class Kernel:
    """What is behind /dev/fuse: sends one message, takes its reply, and knows what is wrong with it."""

    def __init__(self, lane: FastLane, channel: Channel, device: socket.socket, behind: socket.socket) -> None:
        self._lane, self._channel = lane, channel
        self._device, self._behind = device, behind
        self.nodes = Nodes()
        self._patterns: list[bytes] = []
        self._pattern_node = b""

    async def prepare(self) -> None:
        """Find the file with the pattern, which none of the random messages does."""
        self._device.send(abi.IN_HEADER.pack(0, Opcode.LOOKUP, _UNIQUE, 1, 0, 0, 1, 0, 0) + PATTERN + b"\0")
        self._lane.serve_turn(0, False)
        self._pattern_node = self._device.recv(abi.LONGEST_REQUEST)[16:24]
        node = int.from_bytes(self._pattern_node, "little")
        read = abi.READ_IN.pack(0, 0, 8192, 0, 0, 0, 0)
        self._patterns = [
            abi.IN_HEADER.pack(0, Opcode.READ, _UNIQUE, node, 0, 0, 1, 0, 0) + read,
            abi.IN_HEADER.pack(0, _NO_OPCODE, _UNIQUE, 1, 0, 0, 1, 0, 0) + _LEFT_BEHIND_A_MESSAGE * 400,
        ]

    async def leave_patterns(self) -> None:
        """Fill the buffer of replies and that of messages beyond what most of them take."""
        for message in self._patterns:
            await self.ask(message)

    async def ask(self, message: bytes) -> None:
        """One message and its reply, if it is to have one."""
        self._device.send(message)
        self._lane.serve_turn(0, False)
        if self._channel.in_flight or self._lane.pending or self._channel.has_unsent:
            await self._finish()
        reply = self._receive()
        is_whole = len(message) >= abi.IN_HEADER.size
        _, opcode, unique = abi.IN_HEADER.unpack_from(message)[:3] if is_whole else (0, 0, 0)
        if not is_whole or opcode in abi.WITHOUT_REPLY:
            if reply is not None:
                raise Fault(f"a reply to what has none: {reply!r}")
        elif reply is not None:
            self._check(opcode, unique, message, reply)
        elif unique:
            raise Fault("no reply")

    def _receive(self) -> bytes | None:
        """The next reply that is no notification."""
        try:
            while True:
                reply = self._device.recv(abi.LONGEST_REQUEST)
                if any(reply[8:16]):
                    return reply
        except BlockingIOError:
            return None

    def _check(self, opcode: int, unique: int, message: bytes, reply: bytes) -> None:
        length, error, answered = abi.OUT_HEADER.unpack_from(reply)
        if answered != unique or length != len(reply):
            raise Fault(f"a reply of {len(reply)} bytes says {length}, and is for {answered:#x}, not {unique:#x}")
        if _LEFT_BEHIND_A_MESSAGE in reply or (LEFT_BEHIND_A_REPLY in reply and message[16:24] != self._pattern_node):
            raise Fault(f"a reply tells of others: {reply[:200]!r}")
        if error:
            if length != abi.OUT_HEADER.size or -error not in errno.errorcode:
                raise Fault(f"a wrong refusal: errno {-error} in {length} bytes")
            return
        size = length - abi.OUT_HEADER.size
        if opcode in _DATA or opcode in _XATTRS:
            asked = int.from_bytes(message[56:60] if opcode in _DATA else message[40:44], "little")
            if size > (asked or 8):
                raise Fault(f"{size} bytes of reply, where {asked} were asked for")
        elif size != _SIZES.get(Opcode(opcode), size):
            raise Fault(f"a reply with {size} bytes after its header")
        if opcode in _MAKES_ENTRY:
            node = int.from_bytes(reply[16:24], "little")
            if node:
                self.nodes.note(node, int.from_bytes(reply[_MODE_AT : _MODE_AT + 4], "little"))

    async def _finish(self) -> None:
        """Have tasks end, and answer what was forwarded as pyfuse3 would refuse it."""
        while self._channel.in_flight:
            request = self._behind.recv(abi.LONGEST_REQUEST)
            unique = abi.IN_HEADER.unpack_from(request)[2]
            self._behind.send(abi.OUT_HEADER.pack(abi.OUT_HEADER.size, -errno.ENOTTY, unique))
            self._channel.relay()
        with trio.fail_after(_DEADLINE_S):
            while self._lane.pending:
                await trio.lowlevel.checkpoint()
        self._channel.retry()


async def _serve(seed: int, overlay: Overlay, device: socket.socket, lane_end: socket.socket) -> None:
    behind, ours = _pair()
    tasks, channel = Tasks(), Channel(lane_end.fileno())
    syncs = Syncs(tasks)
    status = Status(overlay, "fuzz")
    with behind, ours:
        channel.connect(ours)
        copy_ups = CopyUps(overlay, syncs)
        control = Control(overlay, copy_ups, lane_end.fileno)
        lane = FastLane(
            overlay, copy_ups, syncs, tasks, channel, poll_us=0, status=status, control=control, passes_through=False
        )
        status.transport_facts = lane.facts
        async with trio.open_nursery() as nursery:
            tasks.run_in(nursery)
            nursery.start_soon(syncs.serve)
            await _send_all(seed, Kernel(lane, channel, device, behind))
            nursery.cancel_scope.cancel()
    syncs.close()


async def _send_all(seed: int, kernel: Kernel) -> None:
    await kernel.prepare()
    messages = Messages(seed, kernel.nodes)
    for number in range(ROUND):
        if number % _BETWEEN_PATTERNS == 0:
            await kernel.leave_patterns()
        message = messages.next()
        try:
            await kernel.ask(message)
        except Exception as fault:
            fault.add_note(f"message {number} of seed {seed}: {message[:300].hex()}")
            raise


def _pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        end.setblocking(False)
    return ends


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def play(seed: int) -> None:
    """One round; raises Fault, or whatever else went wrong."""
    with base_of_round() as base:
        options = make_layers(base, seed)
        before, open_before = untouchable(base), _descriptors()
        overlay = Overlay.open(options)
        device, lane_end = _pair()
        try:
            with device, lane_end:
                trio.run(_serve, seed, overlay, device, lane_end)
        finally:
            overlay.close()
        after = untouchable(base)
        if after != before:
            raise Fault(f"what no message may change is now {[found for found in after if found not in before]}")
        if _descriptors() != open_before:
            raise Fault(f"{_descriptors()} descriptors are open, and {open_before} were before")
        for found in written(base / "upper"):
            if _LEFT_BEHIND_A_MESSAGE in found:
                raise Fault(f"the upper holds what was left behind a message: {found[:200]!r}")


def main() -> None:
    """FIRST_SEED ROUNDS"""
    first, rounds = map(int, sys.argv[1:])
    logging.disable()  # each message that is none leaves a line, with a traceback
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LONGEST_FILE, _LONGEST_FILE))
    os.umask(0)
    for seed in range(first, first + rounds):
        print(f"seed {seed}", flush=True)
        play(seed)


if __name__ == "__main__":
    main()
