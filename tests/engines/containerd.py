"""A containerd with storage, state and a socket of its own, and our snapshotter beside its own ones."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from tests.snapshotter.service import Service

OURS = "overlayfs-fuse"
_PATIENCE_S = 120
_CONFIG = """
version = 2
root = "{top}/data"
state = "{top}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{top}/containerd"
[proxy_plugins.{name}]
type = "snapshot"
address = "{address}"
"""


class Containerd:
    """Called with the words of ctr(1); the output."""

    def __init__(self, top: Path) -> None:
        self._address = top / "containerd"

    def __call__(self, *words: str | Path, binary: bool = False) -> str:
        command = ["ctr", "--address", self._address, "--connect-timeout", "60s", *words]
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
    top = service.top
    (top / "config.toml").write_text(_CONFIG.format(top=top, name=OURS, address=service.address))
    with (top / "log").open("wb") as log:
        process = subprocess.Popen(["containerd", "--config", top / "config.toml"], stdout=log, stderr=log)
    try:
        yield Containerd(top)
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def write_oci_archive(path: Path, name: str, layers: Sequence[bytes]) -> None:
    """An OCI archive with one image of these layers (tars, bottom first), for `ctr images import`."""
    blobs: dict[str, bytes] = {}

    def descriptor(media_type: str, data: bytes) -> dict[str, object]:
        blobs[f"blobs/{digest_of(data).replace(':', '/')}"] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    diff_ids = [digest_of(layer) for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs, "config": {"Env": ["PATH=/bin"]}}
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
