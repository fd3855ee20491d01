"""How does the command of a RUN reach an ssh agent of the user? By a socket of its own, whose bytes are passed on.

The user's socket itself keeps its owner and mode, with which only root of the image could use it. The passing process
ends with the step.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingMixIn, UnixStreamServer
from threading import Thread
from typing import Final

from .children import Child

_CHUNK: Final = 1 << 16


def forward(agent: Path, place: Path) -> Child:
    """Listen at `place`, where nothing is yet, for clients of the agent; the process that serves them."""
    directory = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # by the descriptor, as the path of a socket has at most 108 bytes: unix(7)
        server = _Server(f"/proc/self/fd/{directory}/{place.name}", agent)
    finally:
        os.close(directory)
    with server.socket:
        return Child(server.serve)


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True

    def __init__(self, place: str, agent: Path) -> None:
        self.agent = str(agent)
        super().__init__(place, _Client)

    def serve(self) -> bytes:
        self.serve_forever()
        return b""


class _Client(BaseRequestHandler):
    server: _Server
    request: socket.socket

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as agent:
            try:
                agent.connect(self.server.agent)
            except OSError:  # the agent has ended: the client sees its connection closed
                return
            answers = Thread(target=_pass_on, args=(agent, self.request))
            answers.start()
            _pass_on(self.request, agent)
            answers.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # one side hung up
        while data := source.recv(_CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
