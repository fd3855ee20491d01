"""A context with everything that the Dockerfiles copy, and one build by each program, described alike."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Final

from overlayfs.image.archive.load import load
from overlayfs.image.archive.rootfs import export_image, import_rootfs
from overlayfs.image.make.commit import Making
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Image, Store
from tests.container.small import small_image

TEXTS: Final = {
    "a": "hi\n",
    "p.txt": "p\n",
    "q.txt": "q\n",
    "long.txt": "l\n",
    "with space": "s\n",
    "d/b": "there\n",
    "d/deep/c": "deep\n",
    "e/deep/d": "deeper\n",
    "links/file": "f\n",
}
_PACKED: Final = {"t.tar": "w", "t.tar.gz": "w:gz", "t.tar.bz2": "w:bz2", "t.tar.xz": "w:xz"}
_OF_BUILDAH: Final = ("Image", "Hostname")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Facts = dict[str, Any]


def fill(context: Path) -> None:
    """Make the files of the context."""
    for name, text in TEXTS.items():
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(text)
    (context / "run.sh").write_text("#!/bin/sh\n")
    (context / "run.sh").chmod(0o755)
    (context / "d").chmod(0o750)
    (context / "link").symlink_to("a")
    (context / "tod").symlink_to("d")
    (context / "links/inner").symlink_to("file")
    (context / "links/out").symlink_to("/etc/passwd")
    for name, mode in _PACKED.items():
        with tarfile.open(context / name, mode) as archive:  # type: ignore[call-overload]
            for member, content in (("in", None), ("in/file", b"packed\n")):
                info = tarfile.TarInfo(member)
                info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
                info.mode, info.uid, info.gid = (0o755 if content is None else 0o640), 5, 6
                info.size = len(content or b"")
                archive.addfile(info, io.BytesIO(content or b""))


def base_image(store: Store, top: Path, reference: Reference) -> Image:
    """A small image with a history, as buildah needs one, and with the places on which buildah mounts."""
    places = {name: tarfile.TarInfo(name) for name in ("dev", "proc", "sys", "run", "run/secrets")}
    for info in places.values():
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    image = small_image(store, None, {**places, "etc/hosts": b"", "etc/resolv.conf": b"", "etc/hostname": b""})
    with open(top / "small.tar", "wb") as out:
        export_image(store, image, out)
    making = Making(changes=[f"ENV PATH={PATH}"], created_by="import")
    return import_rootfs(store, top / "small.tar", reference, making)


def described(store: Store, image: Image) -> Facts:
    """Configuration and tree, without what is different in each build."""
    raw = json.loads(store.read_blob(image.manifest.config))
    config = {name: member for name, member in raw["config"].items() if member and name not in _OF_BUILDAH}
    config.get("Labels", {}).pop("io.buildah.version", None)
    if not config.get("Labels"):
        config.pop("Labels", None)
    facts: Facts = {f"config {name}": member for name, member in config.items()}
    facts["config Env"] = sorted(config.get("Env", []))
    facts["author"] = raw.get("author", "")
    return facts | tree_of(store, image)


def tree_of(store: Store, image: Image) -> Facts:
    """Each path with type, mode, owner and content; times are left out."""
    out = io.BytesIO()
    export_image(store, image, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        return {f"/{member.name}": _member(archive, member) for member in archive}


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[object, ...]:
    file = archive.extractfile(member) if member.isreg() else None
    content = file.read() if file else b""
    shown = content if len(content) < 1000 else len(content)
    return (member.type, oct(member.mode), member.uid, member.gid, member.linkname, shown)


def by_buildah(site: Path, context: Path, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return buildah(site, "bud", "--isolation", "chroot", "-t", "made", "-f", context / "Dockerfile", *words, context)


def buildah(site: Path, verb: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run buildah on a storage of its own."""
    places = [f"--root={site}/root", f"--runroot={site}/runroot"]
    return subprocess.run(
        ["buildah", *places, "--storage-driver=vfs", verb, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=words[-1] if verb == "bud" else None,
        env={**os.environ, "BUILDAH_FORMAT": "docker"},
        stdin=subprocess.DEVNULL,
    )


def taken_over(site: Path, store: Store) -> Image:
    """What buildah has made, in our store."""
    archive = site / "made.tar"
    archive.unlink(missing_ok=True)
    pushed = buildah(site, "push", "localhost/made", f"docker-archive:{archive}:localhost/theirs:latest")
    assert pushed.returncode == 0, pushed.stderr
    load(store, archive)
    return store.find("localhost/theirs")
