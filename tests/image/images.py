"""Images made from data: layers as tar files written by Python's tarfile, put into a store."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field

from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import OCI_CONFIG, OCI_LAYER, Descriptor, History, ImageConfig, Manifest, RootFS
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Image, Store

MTIME = 1_700_000_000
_TYPES = {
    "f": tarfile.REGTYPE,
    "d": tarfile.DIRTYPE,
    "l": tarfile.SYMTYPE,
    "h": tarfile.LNKTYPE,
    "p": tarfile.FIFOTYPE,
    "c": tarfile.CHRTYPE,
}


@dataclass(frozen=True)
class Member:
    """One member of a layer; `kind` is a letter as in the file index."""

    name: str
    kind: str = "f"
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, str] = field(default_factory=dict)
    mtime: int = MTIME


def directory(name: str, mode: int = 0o755) -> Member:
    return Member(name, "d", mode=mode)


def symlink(name: str, target: str) -> Member:
    return Member(name, "l", mode=0o777, target=target)


def layer_tar(members: Sequence[Member]) -> bytes:
    """The layer, not compressed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.mode, info.size = _TYPES[member.kind], member.mode, len(member.data)
            info.uid, info.gid, info.mtime, info.linkname = member.uid, member.gid, member.mtime, member.target
            info.devmajor, info.devminor = member.device
            info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in member.xattrs.items()}
            tar.addfile(info, io.BytesIO(member.data))
    return out.getvalue()


def add_image(store: Store, name: str, *layers: Sequence[Member], steps: Sequence[str] = ()) -> Image:
    """Keep an image of gzip layers, bottom first, each made by its step."""
    tars = [layer_tar(members) for members in layers]
    blobs = [store.add_blob(gzip.compress(tar, mtime=0), f"{OCI_LAYER}+gzip") for tar in tars]
    config = ImageConfig(
        "amd64",
        "linux",
        RootFS("layers", [digest_of(tar) for tar in tars]),
        history=[History("2026-11-01T10:00:00Z", step) for step in steps or [f"step {n}" for n in range(len(tars))]],
        created="2026-11-01T10:00:00Z",
    )
    unset = Descriptor(OCI_CONFIG, digest_of(b""), 0)
    return store.put_image(Manifest(2, unset, blobs), config, Reference.parse(name))
