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
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from .._version import __version__
from .metadata import SnapshotError
from .own_mounts import OurProgram, Program

_ROOT: Final = Path("/var/lib/overlayfs-snapshotter")
_ADDRESS: Final = Path("/run/overlayfs-snapshotter/snapshotter.sock")
_PROGRAM: Final = "overlayfs-mount"
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class _StartError(Exception):
    """Why the service does not start; the text is for its administrator."""


def main() -> int:
    """Run the program; the exit status."""
    options = _options(sys.argv[1:])
    try:
        _serve(options)
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
    parser.add_argument(
        "--self-mount",
        action="store_true",
        help="mount here, once for each snapshot, and let containerd bind the mounts",
    )
    parser.add_argument("--version", action="version", version=f"overlayfs-snapshotter {__version__}")
    return parser.parse_args(words)


def _serve(options: argparse.Namespace) -> None:
    root, address = options.root.absolute(), options.address.absolute()
    if not options.self_mount:
        _require_helpers()
    program = _mount_program(options.mount_program)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _claimed(root):
        _refuse_used(address)
        with _own_program(options, program) as own:
            _run(root, address, program, own)


@contextmanager
def _own_program(options: argparse.Namespace, path: str) -> Iterator[Program | None]:
    """The program to mount with; none where containerd mounts."""
    if not options.self_mount:
        yield None
        return
    with closing(OurProgram(path) if options.mount_program == _PROGRAM else Program(path)) as program:
        yield program


def _run(root: Path, address: Path, program: str, own: Program | None) -> None:
    try:
        from .server import Server
    except ModuleNotFoundError as error:
        raise _StartError(f"the Python module {error.name} is missing: pip install 'overlayfs[containerd]'") from error
    with _ending() as ended, Server(root, address, program, own):
        os.read(ended, 1)


@contextmanager
def _ending() -> Iterator[int]:
    """A descriptor that is readable once a signal has come that ends the program.

    Python's handler in C writes to it, whichever thread it runs in. A handler in Python runs only when the system call
    of the main thread ends, and a signal that comes just before the call, or to another thread, does not end it.
    """
    ended, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in _ENDING:
        signal.signal(number, lambda *_: None)
    try:
        yield ended
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(write)
        os.close(ended)


def _require_helpers() -> None:
    """Raise if what containerd starts the mount program with is missing."""
    for helper in ("mount.fuse3", "/bin/sh"):
        if not shutil.which(helper):
            raise _StartError(
                f"{helper} is not found, and containerd mounts through it:"
                " install the package fuse3, or give --self-mount"
            )


def _mount_program(named: str) -> str:
    """The absolute path of the mount program.

    It is looked for beside this program first: containerd's PATH need not have it.
    """
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
