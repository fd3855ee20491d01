"""How do requests reach the lane, and how does pyfuse3 get the requests that it answers?

The lane is the only reader of the kernel's descriptor. pyfuse3's session, once there is one, reads from one end of a
seqpacket socket pair as if it were that descriptor; what it writes there is relayed to the kernel. Nothing here blocks,
and nothing needs an event loop.
"""

from __future__ import annotations

import errno
import os
from collections import deque

from overlayfs._log import Log
from overlayfs._typing import TYPE_CHECKING, Final

from . import abi

if TYPE_CHECKING:
    import socket

log = Log(__name__)

# The kernel's errors for a reply that no caller waits for any more, and for any write once the mount is gone.
_NOBODY_WAITS: Final = (errno.ENOENT, errno.ENODEV, errno.EPERM)


class Channel:
    """The kernel's descriptor and, once `connect` was called, our end of the pair; both belong to the caller."""

    def __init__(self, device_fd: int) -> None:
        self.device_fd = device_fd
        self._ours: socket.socket | None = None
        self._waiting: deque[bytes] = deque()
        self._unsent: deque[bytes] = deque()
        self.in_flight = 0  # requests that pyfuse3 is to answer and has not answered
        os.set_blocking(device_fd, False)

    def answer(self, unique: int, body: bytes) -> None:
        """Send a reply."""
        self._write(abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), 0, unique) + body)

    def refuse(self, unique: int, code: int) -> None:
        """Send an errno."""
        self._write(abi.OUT_HEADER.pack(abi.OUT_HEADER.size, -code, unique))

    def forget_attributes(self, node: int) -> None:
        """Invalidate the kernel's cached attributes of an inode, which changed without its knowledge."""
        body = abi.NOTIFY_INVAL_INODE_OUT.pack(node, -1, 0)
        header = abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), abi.FUSE_NOTIFY_INVAL_INODE, 0)
        try:
            os.write(self.device_fd, header + body)
        except OSError as error:  # ENOENT: it knows none
            if error.errno not in _NOBODY_WAITS:
                log.warning("the kernel keeps attributes that have changed: %s", error)

    def _write(self, reply: bytes) -> None:
        try:
            os.write(self.device_fd, reply)
        except OSError as error:
            self.note(abi.OUT_HEADER.unpack_from(reply)[2], error.errno or errno.EIO)

    def note(self, unique: int, code: int) -> None:
        """Log a refused reply and queue an EIO in its place, so the caller does not hang."""
        if code not in _NOBODY_WAITS:
            log.error("the kernel does not take an answer: %s", os.strerror(code))
            self._unsent.append(abi.OUT_HEADER.pack(abi.OUT_HEADER.size, -errno.EIO, unique))

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def retry(self) -> None:
        """Retry the EIO replies that the kernel refused before."""
        for _ in range(len(self._unsent)):
            self._write(self._unsent.popleft())

    # -- pyfuse3

    def connect(self, ours: socket.socket) -> None:
        """Connect pyfuse3 to the socket pair, and send it the requests that were forwarded before."""
        ours.setblocking(False)
        self._ours = ours
        self._send_waiting()

    @property
    def pair_fd(self) -> int:
        """Our end of the pair."""
        assert self._ours is not None
        return self._ours.fileno()

    def forward(self, request: bytes, *, has_reply: bool) -> None:
        """Hand a request to pyfuse3, in order."""
        self.in_flight += has_reply
        self._waiting.append(request)
        if len(self._waiting) == 1 and self._ours is not None:
            self._send_waiting()

    def give_up(self) -> None:
        """pyfuse3 cannot be started: answer every forwarded request with EIO."""
        while self._waiting:
            _, opcode, unique, *_rest = abi.IN_HEADER.unpack_from(self._waiting.popleft())
            if opcode not in abi.WITHOUT_REPLY:
                self.in_flight -= 1
                self.refuse(unique, errno.EIO)

    def relay(self) -> None:
        """Pass one answer of pyfuse3's to the kernel, and requests to pyfuse3 that it had no room for.

        BlockingIOError where there is no answer yet.
        """
        assert self._ours is not None
        reply = self._ours.recv(abi.LONGEST_REQUEST)
        self.in_flight -= 1
        self._write(reply)
        self._send_waiting()

    def _send_waiting(self) -> None:
        """Send queued requests, as pyfuse3 has room after each reply. A request that cannot be sent is answered with
        EIO."""
        assert self._ours is not None
        while self._waiting:
            request = self._waiting[0]
            try:
                self._ours.send(request)
            except BlockingIOError:
                return
            except OSError as error:
                log.error("cannot pass on a request: %s", error)
                _, opcode, unique, *_rest = abi.IN_HEADER.unpack_from(request)
                if opcode not in abi.WITHOUT_REPLY:
                    self.in_flight -= 1
                    self.refuse(unique, errno.EIO)
            self._waiting.popleft()
