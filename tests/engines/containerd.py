"""A containerd with storage, state and a socket of its own, and our snapshotter beside its own ones."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from tests.engines.leftovers import words_of
from tests.snapshotter.service import Service

OURS = "overlayfs-fuse"
_PATIENCE_S = 120
_CONFIG = """
version = 2
root = "{top}/data"
state = "{top}/state"
{disabled}
[grpc]
address = "{top}/containerd"
[proxy_plugins.{name}]
type = "snapshot"
address = "{address}"
[plugins."io.containerd.internal.v1.opt"]
path = "{top}/opt"
"""
_CRI_CONFIG = """
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
stream_server_port = "0"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{top}/cni"
conf_dir = "{top}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
disable_snapshot_annotations = true
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


class Containerd:
    """Called with the words of ctr(1); the output. May be started, killed and started again."""

    def __init__(self, top: Path, service: Path, cri: str = "") -> None:
        self.top, self.address = top, top / "containerd"
        disabled = "" if cri else 'disabled_plugins = ["io.containerd.grpc.v1.cri"]'
        text = _CONFIG.format(top=top, disabled=disabled, name=OURS, address=service)
        (top / "config.toml").write_text(text + cri)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.top / "log").open("ab") as log:
            command = ["containerd", "--config", str(self.top / "config.toml")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def end(self, number: int = signal.SIGTERM) -> None:
        assert self._process
        process, self._process = self._process, None
        process.send_signal(number)
        process.wait(_PATIENCE_S)

    def close(self) -> None:
        """End it, and the shims that a failed test left."""
        if self._process:
            self.end()
        self.end_shims()

    def end_shims(self) -> None:
        for pid in self.shims():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def shims(self) -> list[int]:
        """The processes that were told our address: those of containers that are still there."""
        address = os.fsencode(self.address)
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if address in words_of(pid)[1:]]

    def __call__(self, *words: str | Path, binary: bool = False) -> str:
        command = ["ctr", "--address", self.address, "--connect-timeout", "60s", *words]
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.decode("latin-1" if binary else "utf-8")

    def snapshots(self, snapshotter: str) -> dict[str, str]:
        """Every snapshot and its kind."""
        rows = self("snapshots", "--snapshotter", snapshotter, "ls").splitlines()[1:]
        return {row.split()[0]: row.split()[-1] for row in rows}

    def diff(self, snapshotter: str, key: str) -> dict[str, tuple[object, ...]]:
        """What a snapshot changes, as the members of its layer."""
        data = self("snapshots", "--snapshotter", snapshotter, "diff", key, binary=True).encode("latin-1")
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return {member.name: _said(tar, member) for member in tar}


def _said(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[object, ...]:
    opened = tar.extractfile(member) if member.isreg() else None
    content = opened.read() if opened else b""
    return (member.type, member.mode, member.uid, member.gid, member.linkname, content)


@contextmanager
def containerd_beside(service: Service) -> Iterator[Containerd]:
    """Start a containerd that knows the service as `OURS`."""
    with _started(Containerd(service.top, service.address)) as containerd:
        yield containerd


@contextmanager
def containerd_with_cri(service: Service, snapshotter: str, pause: str) -> Iterator[Containerd]:
    """Start a containerd for pods, whose snapshots are those of a snapshotter; `pause` is the image of a sandbox."""
    cri = _CRI_CONFIG.format(top=service.top, snapshotter=snapshotter, pause=pause)
    with _started(Containerd(service.top, service.address, cri)) as containerd:
        yield containerd


@contextmanager
def _started(containerd: Containerd) -> Iterator[Containerd]:
    containerd.start()
    try:
        yield containerd
    finally:
        containerd.close()


def write_oci_archive(path: Path, name: str, layers: Sequence[bytes], command: Sequence[str] = ()) -> None:
    """An OCI archive with one image of these layers (tars, bottom first), for `ctr images import` and skopeo."""
    blobs: dict[str, bytes] = {}

    def descriptor(media_type: str, data: bytes) -> dict[str, object]:
        blobs[f"blobs/{digest_of(data).replace(':', '/')}"] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    diff_ids = [digest_of(layer) for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": rootfs,
        "config": {"Env": ["PATH=/bin"], "Cmd": [*command]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, json.dumps(config).encode()),
        "layers": [descriptor(OCI_LAYER, layer) for layer in layers],
    }
    named = descriptor(OCI_MANIFEST, json.dumps(manifest).encode())
    named["annotations"] = {"io.containerd.image.name": name}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    with tarfile.open(path, "w") as tar:
        for member, data in blobs.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
