"""The snapshotter in a process of its own, its client, and mounts as containerd makes them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from overlayfs.snapshotter.messages import SERVICE, Empty, message
from overlayfs.tree.mount_table import mount_entries
from overlayfs.tree.syscalls import mount, unmount

PATIENCE_S = 60
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 32, 4096, 16384
_NO_BACKOFF = [(f"grpc.{name}_reconnect_backoff_ms", 100) for name in ("initial", "min", "max")]
_MESSAGES = {
    "Prepare": ("PrepareSnapshotRequest", "PrepareSnapshotResponse"),
    "View": ("ViewSnapshotRequest", "ViewSnapshotResponse"),
    "Mounts": ("MountsRequest", "MountsResponse"),
    "Commit": ("CommitSnapshotRequest", None),
    "Remove": ("RemoveSnapshotRequest", None),
    "Stat": ("StatSnapshotRequest", "StatSnapshotResponse"),
    "Update": ("UpdateSnapshotRequest", "UpdateSnapshotResponse"),
    "Usage": ("UsageRequest", "UsageResponse"),
    "Cleanup": ("CleanupRequest", None),
}


def _serialized(request: Any) -> bytes:
    return bytes(request.SerializeToString())


class Client:
    """Calls the service by the names of its protocol; what fails raises grpc.RpcError."""

    def __init__(self, address: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{address}", options=_NO_BACKOFF)

    def wait_until_ready(self) -> None:
        grpc.channel_ready_future(self._channel).result(timeout=PATIENCE_S)

    def __call__(self, method: str, **fields: Any) -> Any:
        asked, answered = _MESSAGES[method]
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=_serialized,
            response_deserializer=(message(answered) if answered else Empty).FromString,
        )
        return call(message(asked)(**fields), timeout=PATIENCE_S)

    def infos(self, *filters: str) -> list[Any]:
        return list(self.walk(*filters))

    def walk(self, *filters: str) -> Iterator[Any]:
        """The snapshots, as the answers come."""
        call = self._channel.unary_stream(
            f"/{SERVICE}/List",
            request_serializer=_serialized,
            response_deserializer=message("ListSnapshotsResponse").FromString,
        )
        for answer in call(message("ListSnapshotsRequest")(filters=filters), timeout=PATIENCE_S):
            yield from answer.info

    def names(self, *filters: str) -> list[str]:
        return [info.name for info in self.infos(*filters)]

    def mount(self, key: str) -> Any:
        """The one mount of a snapshot."""
        (only,) = self("Mounts", key=key).mounts
        return only

    def add(self, name: str, parent: str = "", labels: Mapping[str, str] | None = None) -> None:
        """Commit an empty snapshot."""
        self("Prepare", key=f"{name}-active", parent=parent)
        self("Commit", key=f"{name}-active", name=name, labels=labels or {})

    def close(self) -> None:
        self._channel.close()


class Service:
    """The service in a root directory, which may be started, killed and started again, each time with `options`."""

    def __init__(self, top: Path, *options: str) -> None:
        self.options = options
        self.top, self.root, self.address = top, top / "root", top / "socket"
        self._process: subprocess.Popen[str] | None = None

    @property
    def layers(self) -> Path:
        return self.root / "snapshots"

    def start(self) -> Client:
        """Start the program, and wait until it answers."""
        self._process = self.run()
        client = Client(self.address)
        client.wait_until_ready()
        return client

    def run(self, *options: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start the program; later options take the place of earlier ones."""
        words = ["--root", self.root, "--address", self.address, *self.options, *options]
        return subprocess.Popen(
            [sys.executable, "-m", "overlayfs.snapshotter", *words], stderr=subprocess.PIPE, text=True, env=env
        )

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait: the exit status and what the program said."""
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Wait until the program ends: the exit status and what it said."""
        assert self._process
        process, self._process = self._process, None
        try:
            _, said = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()  # one that does not end; nothing is done to one that has
        return process.returncode, said

    def close(self) -> None:
        if self._process:
            self.end(signal.SIGKILL)


@contextmanager
def new_service(*options: str) -> Iterator[Service]:
    """A service that is not started yet; the path is short, as that of a socket must be."""
    service = Service(Path(tempfile.mkdtemp(prefix="snapshotter-")), *options)
    try:
        yield service
    finally:
        service.close()
        for point in mounts_below(service.top):
            unmount(os.fsencode(point), lazy=True)
        shutil.rmtree(service.top)


def mounts_below(top: Path) -> list[Path]:
    """Where something is mounted below a directory, the latest first."""
    points = [Path(os.fsdecode(entry.mountpoint)) for entry in mount_entries()]
    return [point for point in reversed(points) if point.is_relative_to(top)]


@contextmanager
def mounted(what: Any, target: Path) -> Iterator[Path]:
    """Mount as containerd does: bind, or through mount.fuse3."""
    target.mkdir(exist_ok=True)
    if what.type == "bind":
        _bind(what.source, target, what.options)
    else:
        options = [word for option in what.options for word in ("-o", option)]
        kind = what.type.removeprefix("fuse3.")
        command = ["mount.fuse3", what.source, target, *options, "-t", kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
    try:
        yield target
    finally:
        unmount(os.fsencode(target))


def _bind(source: str, target: Path, options: Sequence[str]) -> None:
    mount(os.fsencode(source), os.fsencode(target), b"", _MS_BIND | _MS_REC, b"")
    if "ro" in options:
        mount(b"none", os.fsencode(target), b"", _MS_REMOUNT | _MS_BIND | _MS_RDONLY, b"")
