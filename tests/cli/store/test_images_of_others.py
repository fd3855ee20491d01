"""An image that buildah made, in here by every way, and out again: the same tree as podman's, and the same digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from overlayfs.tree.syscalls import unmount
from tests.cli.store.test_store_commands import Kept
from tests.contract.tree import (
    EPOCH,
    Tree,
    acl,
    block,
    build,
    char,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
)
from tests.image.registry.docker_registry import docker_registry
from tests.image.snapshots import Snapshot, differences, snapshot

PATIENCE_S = 120
NAME = "localhost/made:1"
CAPABILITY = bytes.fromhex("0100000200000000000000000000000000000000")
BASE: Tree = {
    "": directory(0o755, mtime=EPOCH),
    "bin": symlink("usr/bin"),
    "usr": directory(0o755, mtime=EPOCH + 1),
    "usr/bin/su": file(b"su", 0o4755),
    "usr/bin/ping": file(b"ping", 0o755, xattrs={"security.capability": CAPABILITY}),
    "usr/bin/ping6": hardlink("usr/bin/ping"),
    "usr/share/doc/a/copyright": file(b"a" * 9000),
    "usr/share/doc/b": directory(0o2775, 3, 4),
    "etc/passwd": file(b"root:x:0:0::/:/bin/sh\n", 0o644, mtime=EPOCH + 123_456_789),
    "etc/shadow": file(b"", 0o640, 0, 42),
    "etc/acl": file(b"1", 0o664, xattrs={"system.posix_acl_access": acl(6, 4, 4, mask=6, users={7: 6})}),
    "etc/acls": directory(xattrs={"system.posix_acl_default": acl(7, 5, 5, mask=5, users={7: 5})}),
    "etc/note": file(b"n", xattrs={"user.note": b"\0=\n"}),
    "dev/null": char(1, 3, 0o666),
    "dev/loop0": block(7, 0),
    "run/initctl": fifo(0o600),
    "home/user": directory(0o700, 70_000, 2_000_000),
    "home/user/" + "ü" * 120: file(b"long", 0o600, 70_000, 2_000_000),
    "tmp": directory(0o1777),
    "var/old/x/y": file(b"y"),
    "var/link": symlink("/no/where", 5, 6),
    "sparse": file(b"x" * 5000, size=1 << 20, sparse=True),
    "raw\udcff": file(b"not UTF-8"),
}


def tool(*arguments: str | Path) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout.strip()


def second(root: Path) -> None:
    """Of the second layer: names gone, changed, and new where others were."""
    (root / "usr/share/doc/a/copyright").unlink()
    shutil.rmtree(root / "var/old")
    (root / "var/old").mkdir(0o711)
    (root / "var/old/new").write_text("new")
    (root / "etc/passwd").chmod(0o600)
    os.chown(root / "home/user", 1, 2)
    (root / "run/initctl").unlink()
    (root / "run/initctl").mkdir()
    os.link(root / "etc/note", root / "etc/note-too")
    os.setxattr(root / "usr", "user.second", b"2")


def third(root: Path) -> None:
    """Of the third: what the second did is undone in part."""
    (root / "usr/share/doc/a/copyright").write_text("again")
    (root / "var/old/new").unlink()
    shutil.rmtree(root / "home/user")
    (root / "home/user").symlink_to("/root")
    (root / "etc/shadow").rename(root / "etc/shadow-")
    (root / "usr/bin/ping6").unlink()
    os.mknod(root / "dev/zero", 0o20666, os.makedev(1, 5))


@dataclass(frozen=True)
class Made:
    """The image as podman shows it, and what skopeo made of it."""

    seen: Snapshot
    digest: str
    id: str
    archives: dict[str, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    top = tmp_path_factory.mktemp("made")
    (top / "storage.conf").write_text(f'[storage]\ndriver="overlay"\nrunroot="{top}/run"\ngraphroot="{top}/root"\n')
    (top / "containers.conf").write_text('[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\nevents_logger="file"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", str(top / "storage.conf"))
        patch.setenv("CONTAINERS_CONF", str(top / "containers.conf"))
        try:
            yield make(top)
        finally:
            for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
                if (point := line.split()[4]).startswith(f"{top}/"):
                    unmount(os.fsencode(point), lazy=True)


def make(top: Path) -> Made:
    build(os.fsencode(top / "tree"), BASE)
    packed = ("tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")
    tool(*packed, "-cf", top / "base.tar", "-C", top / "tree", ".")
    image = "scratch"
    for number, change in enumerate((None, second, third)):
        container = tool("buildah", "from", "--pull-never", image)
        if change is None:
            tool("buildah", "add", container, top / "base.tar", "/")
        else:
            change(Path(tool("buildah", "mount", container)))
        image = f"localhost/step:{number}"
        tool("buildah", "commit", "-q", "--rm", container, image)
    archives = {kind: top / f"{kind}.tar" for kind in ("oci-archive", "docker-archive")}
    for kind, path in archives.items():
        tool("skopeo", "copy", "-q", f"containers-storage:{image}", f"{kind}:{path}:{NAME}")
    tool("podman", "rmi", "-a", "-f")
    tool("podman", "load", "-q", "-i", archives["oci-archive"])
    raw = tool("skopeo", "inspect", "--raw", f"oci-archive:{archives['oci-archive']}")
    seen = snapshot(Path(tool("podman", "image", "mount", NAME)))
    return Made(seen, digest_of(archives["oci-archive"]), json.loads(raw)["config"]["digest"], archives)


def digest_of(archive: Path) -> str:
    raw = subprocess.run(["skopeo", "inspect", "--raw", f"oci-archive:{archive}"], capture_output=True, check=True)
    return f"sha256:{hashlib.sha256(raw.stdout).hexdigest()}"


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory where fsync costs nothing."""
    with tempfile.TemporaryDirectory(prefix="overlayfs-others-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_image_of_buildah_is_mounted_as_podman_mounts_it(made: Made, memory: Path, kind: str) -> None:
    ours, point = Kept(memory), memory / "mnt"
    point.mkdir()
    (loaded,) = ours.answer("load", "-i", made.archives[kind])
    assert loaded["Name"] == NAME
    ours.pipe("mount", NAME, point)
    try:
        seen = snapshot(point)
    finally:
        ours.run("umount", point)
    assert differences({**seen, b"": ()}, {**made.seen, b"": ()}) == []  # podman shows a root of its own
    assert ours.run("verify") == []


def test_digests_stay_through_the_store_and_a_registry(
    made: Made, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(memory / "auth.json"))
    first, other, saved = Kept(memory / "first"), Kept(memory / "other"), memory / "saved.tar"
    first.run("load", "-i", made.archives["oci-archive"], "--no-unpack")
    with docker_registry(memory) as running:
        name = f"{running.name}/made:1"
        first.run("tag", NAME, name)
        first.run("push", "--insecure", "--quiet", name)
        shown = ("--tls-verify=false", "--format", "{{.Digest}}", f"docker://{name}")
        assert tool("skopeo", "inspect", *shown) == made.digest
        other.run("pull", "--insecure", "--quiet", name)
    other.run("save", name, "-o", saved)
    assert digest_of(saved) == made.digest
    assert other.answer("inspect", name)[0]["Id"] == made.id
