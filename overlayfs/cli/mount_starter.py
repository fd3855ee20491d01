"""Mounts made without waiting for a Python to start: a process that has everything imported forks for each mount.

`overlayfs-snapshotter` runs it, with one end of a socket as standard input. A request is a packet with the arguments of
`overlayfs-mount`, separated by NULs, and a descriptor for the answer: what the mount program says on standard error,
then a NUL and its exit status. The process ends when the other end of the socket is closed; its mounts go on.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback

from overlayfs.cli import mount_program
from overlayfs.fuse import ahead, session  # noqa: F401 - which the mount program imports late

_PACKET_BYTES = 1 << 18  # 500 layers with long names are less


def serve(requests: socket.socket) -> None:
    """Answer requests until their socket is closed."""
    _import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then forgets children by itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service ends at it, and this process with the service
    while True:
        packet, descriptors, _, _ = socket.recv_fds(requests, _PACKET_BYTES, 1)
        if not packet:
            return
        (answer,) = descriptors
        if os.fork() == 0:
            _mount(packet, answer)
        os.close(answer)


def _import_everything() -> None:
    ahead.load_engine()
    gc.collect()
    gc.freeze()  # so that collections do not touch the pages that forks share


def _mount(packet: bytes, answer: int) -> None:
    """In the child, which ends here."""
    status = 1
    try:
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(answer, 2)
        status = mount_program.main([os.fsdecode(word) for word in packet.split(b"\0")])
    except Exception:  # noqa: BLE001  it is the client who is told
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os.write(answer, b"\0%d" % status)
        os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=0))
