"""The gRPC server of the snapshots service, on a unix socket that only its owner may connect to."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

import grpc

from .own_mounts import Program
from .service import handler
from .snapshots import Snapshots

_THREADS: Final = 8
_GRACE_S: Final = 10.0  # for requests that are being answered when the service ends


class Server:
    """Serves the snapshots under a root directory while its context lasts."""

    def __init__(self, root: Path, address: Path, program: str, own: Program | None) -> None:
        address.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        with ExitStack() as undo:
            snapshots = Snapshots(root, program, own)
            undo.callback(snapshots.close)
            self._server = grpc.server(ThreadPoolExecutor(_THREADS), handlers=[handler(snapshots)])
            _bind(self._server, address)
            self._ends = undo.pop_all()

    def __enter__(self) -> None:
        self._server.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Answer what was asked, close the socket and the database."""
        with self._ends:
            self._server.stop(_GRACE_S).wait()


def _bind(server: grpc.Server, address: Path) -> None:
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{address}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    finally:
        os.umask(before)
