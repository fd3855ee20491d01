"""What the contract is played on: the engine alone, our mount, and the kernel's overlayfs.

A target turns the directories of a case into a mounted tree and hands out a client of it; leaving
the context unmounts for good, so that the same directories can be mounted again at once.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlayfs.fuse.session import MountOptions
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import IdRange, MountError, OverlayOptions, RedirectDir, WhiteoutFormat

from . import libc
from .client import Client
from .engine_client import EngineClient
from .posix_client import PosixClient
from .tree import Format

REPOSITORY = Path(__file__).resolve().parents[2]
_STUCK_S = 60.0


class MountRefusedError(Exception):
    """The target would not mount these layers."""


@dataclass(frozen=True, slots=True)
class Directories:
    """Where a case's layers lie: all below `base`, which the kernel's options need short."""

    base: bytes
    lowers: tuple[bytes, ...]
    data_lowers: tuple[bytes, ...] = ()
    upper: bytes | None = b"upper"
    work: bytes = b"work"
    mountpoint: bytes = b"merged"

    def at(self, name: bytes) -> bytes:
        """The absolute path of one of the directories."""
        return os.path.join(self.base, name)

    def make(self) -> None:
        """Create those that are not there."""
        upper = () if self.upper is None else (self.upper, self.work)
        for name in (*self.lowers, *self.data_lowers, *upper, self.mountpoint):
            os.makedirs(self.at(name), exist_ok=True)


class Target(ABC):
    """One implementation of the overlay."""

    name: str

    @abstractmethod
    @contextmanager
    def mounted(self, places: Directories, form: Format, options: Mapping[str, Any]) -> Iterator[Client]:
        """Mount, hand out a client, unmount; MountRefusedError if it will not mount."""


def overlay_options(places: Directories, form: Format, options: Mapping[str, Any]) -> OverlayOptions:
    """The options of our engine; `redirect_dir` is given by its value, the rest by field."""
    chosen = dict(options)
    if "redirect_dir" in chosen:
        chosen["redirect_dir"] = RedirectDir(chosen["redirect_dir"])
    upper = places.upper
    return OverlayOptions(
        lowers=tuple(map(places.at, places.lowers)),
        data_lowers=tuple(map(places.at, places.data_lowers)),
        upper=None if upper is None else places.at(upper),
        work=None if upper is None else places.at(places.work),
        whiteout=None if upper is None else WhiteoutFormat(form.value),
        **chosen,
    )


class EngineTarget(Target):
    """The engine, called without a mount."""

    name = "engine"

    @contextmanager
    def mounted(self, places: Directories, form: Format, options: Mapping[str, Any]) -> Iterator[Client]:
        umask = os.umask(0)
        try:
            overlay = Overlay.open(overlay_options(places, form, options))
        except MountError as refusal:
            os.umask(umask)
            raise MountRefusedError(str(refusal)) from refusal
        client = EngineClient(overlay)
        try:
            yield client
            client.finish()
        finally:
            overlay.close()
            os.umask(umask)


class FuseTarget(Target):
    """Our daemon behind a real mount, answered by the fast lane or, without it, by pyfuse3 alone.

    The lane serves bare until a request needs the event loop, and with `bare` False in the loop from the start.
    """

    name = "fuse"

    def __init__(self, *, lane: bool = True, bare: bool = True) -> None:
        self._lane, self._bare = lane, bare
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.mount_server"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @contextmanager
    def mounted(self, places: Directories, form: Format, options: Mapping[str, Any]) -> Iterator[Client]:
        mountpoint = places.at(places.mountpoint)
        self._mount(overlay_options(places, form, options), mountpoint)
        daemon = _daemon_of(mountpoint)
        client = PosixClient(mountpoint)
        watchdog = threading.Timer(_STUCK_S, libc.unmount, (mountpoint, libc.MNT_FORCE))
        watchdog.start()
        try:
            yield client
        finally:
            client.finish()
            libc.unmount(mountpoint, libc.MNT_DETACH)
            select.select([daemon], [], [])
            os.close(daemon)
            watchdog.cancel()
            watchdog.join()

    def _mount(self, overlay: OverlayOptions, mountpoint: bytes) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        flags = 1 if overlay.upper is None else 0
        fuse_options = ("allow_other", "suid", "dev")
        mount = MountOptions(mountpoint, flags=flags, fuse_options=fuse_options, lane=self._lane, bare=self._bare)
        pickle.dump((overlay, mount), self._server.stdin)
        self._server.stdin.flush()
        refusal = pickle.load(self._server.stdout)
        if refusal is not None:
            raise MountRefusedError(refusal)

    def close(self) -> None:
        """The server ends when its input does; no mount is left by then."""
        self._server.communicate()


def _daemon_of(mountpoint: bytes) -> int:
    """A pidfd of the daemon that serves the mount."""
    status = json.loads(os.getxattr(mountpoint, "user.overlayfs.status"))
    return os.pidfd_open(status["pid"])


class KernelTarget(Target):
    """The kernel's overlayfs."""

    name = "kernel"

    @contextmanager
    def mounted(self, places: Directories, form: Format, options: Mapping[str, Any]) -> Iterator[Client]:
        ids = _mapped_ids(places.base, options) if "uid_map" in options else nullcontext()
        with ids, self._mounted(places, {"index": True, "redirect_dir": "on", "metacopy": False, **options}) as client:
            yield client

    @contextmanager
    def _mounted(self, places: Directories, options: Mapping[str, Any]) -> Iterator[Client]:
        data = _kernel_data(places, options)
        here = os.open(".", os.O_PATH)
        # short names: the options must fit one page
        os.chdir(places.base)
        try:
            libc.mount(b"overlay", places.mountpoint, b"overlay", data, 1 if places.upper is None else 0)
        except OSError as error:
            raise MountRefusedError(str(error)) from error
        finally:
            os.fchdir(here)
            os.close(here)
        client = PosixClient(places.at(places.mountpoint))
        try:
            yield client
        finally:
            client.finish()
            libc.unmount(client.root)


@contextmanager
def _mapped_ids(base: bytes, options: Mapping[str, Any]) -> Iterator[None]:
    """Layers whose ids the kernel maps as our options say: what it calls idmapped mounts."""
    command = ["unshare", "--user", "sh", "-c", "echo ready; cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{name}").write_text(_lines(options[name]))
        namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
        try:
            libc.mount_with_ids(base, namespace)
        finally:
            os.close(namespace)
        holder.communicate()
    try:
        yield
    finally:
        libc.unmount(base, libc.MNT_DETACH)


def _lines(ranges: Sequence[IdRange]) -> str:
    """user_namespaces(7): on an idmapped mount the first id is the one on disk, the second the one that is shown."""
    return "".join(f"{item.disk} {item.shown} {item.size}\n" for item in ranges)


def _kernel_data(places: Directories, options: Mapping[str, Any]) -> bytes:
    lowers = b":".join(places.lowers)
    if places.upper is None and len(places.lowers) == 1:
        # the kernel wants two layers at least
        os.makedirs(places.at(b"empty"), exist_ok=True)
        lowers += b":empty"
    if places.data_lowers:
        lowers += b"::" + b"::".join(places.data_lowers)
    parts = [b"lowerdir=" + lowers]
    if places.upper is not None:
        parts += [b"upperdir=" + places.upper, b"workdir=" + places.work]
        parts += [b"index=on"] if options["index"] else [b"index=off"]
    parts.append(b"redirect_dir=" + str(options["redirect_dir"]).encode())
    parts.append(b"metacopy=on" if options["metacopy"] else b"metacopy=off")
    if options.get("user_xattr"):
        parts = [part for part in parts if not part.startswith((b"redirect_dir", b"metacopy"))]
        parts.append(b"userxattr")
    return b",".join(parts)
