"""A small image that programs run in, made of this machine's own shell and tools."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from overlayfs.container.users import GROUP, PASSWD
from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import OCI_LAYER, ImageConfig, Manifest, RootFS, RunConfig
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Image, Store

PROGRAMS: Final = ("sh", "cat", "chown", "id", "ln", "ls", "mkdir", "pwd", "rm", "sleep", "stat", "touch", "tty")
Files = Mapping[str, bytes | tarfile.TarInfo]
USERS: Final = b"root:x:0:0:root:/root:/bin/sh\nbob:x:33:44:Bob:/home/bob:/bin/sh\n"
GROUPS: Final = b"root:x:0:\nbobs:x:44:\nothers:x:50:bob,root\n"


def layer_of(files: Files) -> bytes:
    """A tar with these files, owned by root, and their directories."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in sorted({*_parents(files), *files}):
            content = files.get(name)
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                tar.addfile(_info(name, content), None if content is None else io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    """A symlink."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def fifo(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.FIFOTYPE, 0o644
    return info


def _parents(files: Mapping[str, object]) -> set[str]:
    return {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}


def _info(name: str, content: bytes | None) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    if content is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
    else:
        info.size, info.mode = len(content), 0o755 if name.startswith(("bin/", "lib")) else 0o644
    return info


def programs(*more: str) -> dict[str, bytes]:
    """This machine's `PROGRAMS`, and `more`, in bin, and the libraries that they need."""
    files = {}
    for name in (*PROGRAMS, *more):
        found = shutil.which(name)
        assert found is not None
        files[f"bin/{name}"] = Path(found).read_bytes()
        listed = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(", listed):
            files[library.lstrip("/")] = Path(library).read_bytes()
    return files


def small_image(store: Store, config: RunConfig | None = None, *layers: Files) -> Image:
    """`small:latest` in the store: the programs, two users, a writable /tmp; then these layers."""
    base: dict[str, bytes | tarfile.TarInfo] = {**programs(), PASSWD.decode().lstrip("/"): USERS}
    base |= {GROUP.decode().lstrip("/"): GROUPS, "tmp/": tarfile.TarInfo("tmp")}
    base["tmp/"] = _info("tmp", None)
    return image_of(store, "small", config or RunConfig(cmd=["sh"]), base, *layers)


def image_of(
    store: Store,
    name: str,
    config: RunConfig,
    *layers: Files,
    base: Image | None = None,
) -> Image:
    """An image of these layers, on those of `base`."""
    tars = [layer_of(layer) for layer in layers]
    blobs = [*(base.manifest.layers if base else ()), *(store.add_blob(tar, OCI_LAYER) for tar in tars)]
    diff_ids = [*(base.config.rootfs.diff_ids if base else ()), *map(digest_of, tars)]
    document = ImageConfig(architecture="amd64", os="linux", rootfs=RootFS("layers", diff_ids), config=config)
    return store.put_image(Manifest(2, blobs[0], blobs), document, Reference.parse(name))


def can_be_entered(path: Path) -> bool:
    """Whether every user may pass through all directories above `path`."""
    return all(os.stat(parent).st_mode & 0o001 for parent in path.resolve().parents)
