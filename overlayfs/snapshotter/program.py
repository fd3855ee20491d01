"""`overlayfs-snapshotter`: serve containerd on a unix socket until a signal comes."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import socket
import sqlite3
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .._version import __version__
from .metadata import SnapshotError

_ROOT: Final = Path("/var/lib/overlayfs-snapshotter")
_ADDRESS: Final = Path("/run/overlayfs-snapshotter/snapshotter.sock")
_PROGRAM: Final = "overlayfs-mount"


class _StartError(Exception):
    """Why the service does not start; the text is for its administrator."""


def main() -> int:
    """Run the program; the exit status."""
    options = _options(sys.argv[1:])
    try:
        _serve(options.root.absolute(), options.address.absolute(), options.mount_program)
    except (_StartError, SnapshotError, OSError, sqlite3.Error) as error:
        print(f"overlayfs-snapshotter: {error}", file=sys.stderr)
        return 1
    return 0


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="overlayfs-snapshotter", description="A snapshotter for containerd.")
    parser.add_argument("--root", type=Path, default=_ROOT, help=f"where snapshots are kept (default: {_ROOT})")
    parser.add_argument("--address", type=Path, default=_ADDRESS, help=f"the socket (default: {_ADDRESS})")
    parser.add_argument(
        "--mount-program", default=_PROGRAM, help=f"name or path of the program that mounts (default: {_PROGRAM})"
    )
    parser.add_argument("--version", action="version", version=f"overlayfs-snapshotter {__version__}")
    return parser.parse_args(words)


def _serve(root: Path, address: Path, program: str) -> None:
    program = _mount_program(program)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _claimed(root):
        _refuse_used(address)
        _run(root, address, program)


def _run(root: Path, address: Path, program: str) -> None:
    try:
        from .server import Server
    except ModuleNotFoundError as error:
        raise _StartError(f"the Python module {error.name} is missing: pip install 'overlayfs[containerd]'") from error
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Server(root, address, program):
        ended.wait()


def _mount_program(named: str) -> str:
    """The absolute path of the mount program, after a look at what containerd needs to start it.

    It is looked for beside this program first: containerd's PATH need not have it.
    """
    for helper in ("mount.fuse3", "/bin/sh"):
        if not shutil.which(helper):
            raise _StartError(f"{helper} is not found, and containerd mounts through it (Debian package: fuse3)")
    beside = (os.path.dirname(os.path.abspath(sys.argv[0])), sysconfig.get_path("scripts"))
    found = shutil.which(named, path=os.pathsep.join((*beside, os.environ.get("PATH", os.defpath))))
    if not found:
        raise _StartError(f"the mount program {named} is not found: give its path with --mount-program")
    return os.path.abspath(found)


@contextmanager
def _claimed(root: Path) -> Iterator[None]:
    """Hold the root directory: two services would give the same ids."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _StartError(f"{root} is in use by another overlayfs-snapshotter") from error
        yield
    finally:
        os.close(fd)


def _refuse_used(address: Path) -> None:
    """Raise if a service answers on the socket, whose place gRPC would take silently, or if it is no socket."""
    if address.exists() and not address.is_socket():
        raise _StartError(f"{address} is in the way: it is not a socket")
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fspath(address))
        except (FileNotFoundError, ConnectionRefusedError):
            return
    raise _StartError(f"{address} is in use by another service")
