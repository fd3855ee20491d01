"""What we commit, as umoci and podman unpack it, beside what the kernel's overlayfs shows of the same upper."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayfs.image.make.commit import Making, append, commit, squash
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.lowers import lower_directories
from overlayfs.image.store.store import Store
from overlayfs.overlay.changes import Comparison
from overlayfs.tree.syscalls import unmount
from tests.contract.tree import (
    EPOCH,
    SECOND,
    Tree,
    acl,
    block,
    build,
    char,
    directory,
    fifo,
    file,
    hardlink,
    opaque_dir,
    symlink,
    whiteout,
)
from tests.image.snapshots import Snapshot, differences, kernel_snapshot, snapshot

CAPABILITY = bytes.fromhex("0100000200000000000000000000000000000000")
ROOT = {"": directory(0o755, mtime=EPOCH + 5)}

LOWER: Tree = {
    **ROOT,
    "etc/passwd": file(b"root"),
    "d/gone": file(),
    "d/kept": file(b"1"),
    "o/a": file(),
    "o/b/c": file(),
    "same": file(b"x" * 9000),
    "to-directory": file(),
    "to-file/x": file(),
    "links/a": file(b"linked"),
    "links/b": hardlink("links/a"),
    "deep/er/f": file(b"1", 0o600),
    "restricted": directory(0o700, 3, 4),
    "restricted/f": file(b"1"),
    "gone-directory/x/y": file(),
}
UPPER: Tree = {
    **ROOT,
    "d": directory(),
    "d/gone": whiteout(),
    "gone-directory": whiteout(),
    "o": opaque_dir(),
    "o/new": file(b"5"),
    "same": file(b"x" * 9000),
    "new-name-of-same": hardlink("same"),
    "to-directory": directory(),
    "to-directory/y": symlink("../x"),
    "to-file": file(b"u"),
    "restricted": directory(0o700, 3, 4),
    "restricted/f": file(b"22"),
    "deep/er/f": file(b"2", 0o600),
    "h1": file(b"link", xattrs={"user.k": b"\0=\nv", "trusted.x": b"1"}),
    "z/h2": hardlink("h1"),
    "fifo": fifo(0o600, 1, 1),
    "char": char(1, 3),
    "block": block(7, 3),
    "setuid": file(b"x", 0o4755, 3, 4),
    "capable": file(b"x", 0o755, xattrs={"security.capability": CAPABILITY}),
    "acl": file(b"x", 0o664, xattrs={"system.posix_acl_access": acl(6, 4, 4, mask=6, users={7: 6})}),
    "default-acl": directory(xattrs={"system.posix_acl_default": acl(7, 5, 5, mask=5, users={7: 5})}),
    "raw\udcff\udcfe": file(b"not UTF-8"),
    "ü" * 120: file(b"long"),
    "e" * 255: file(),
    "/".join(["deep"] * 30) + "/f": file(b"far below"),
    "sparse": file(b"x", size=3 << 20, sparse=True),
    "long-link": symlink("x" * 300),
    "owned-link": symlink("x", 1000, 70000),
    "fraction": file(mtime=EPOCH + 123_456_789),
    "far-future": file(mtime=4_500_000_000 * SECOND + 9),
    "large-owner": file(b"", 0o644, 3_000_000, 4_000_000_000),
}
BEFORE_1970: Tree = {"old": file(mtime=-5 * SECOND), "older": file(mtime=-5 * SECOND + 250_000_000)}


class Site:
    """A lower and an upper, their image in a store, and how the kernel shows them."""

    def __init__(self, top: Path, upper: Tree) -> None:
        self.top = top
        self.paths = [top / "lower", top / "upper"]
        for path, tree in zip(self.paths, (LOWER, upper), strict=True):
            build(os.fsencode(path), tree)
        below, above = map(os.fsencode, self.paths)
        self.expected = kernel_snapshot(top / "kernel", [below], above)

    @contextmanager
    def store(self) -> Iterator[Store]:
        with Store.open(self.top / "store") as store:
            yield store

    def commit(self, compression: str | None = "gzip") -> None:
        """The image app:1 of two layers."""
        lower, upper = self.paths
        with self.store() as store, Comparison.open(os.fsencode(upper), [os.fsencode(lower)]) as comparison:
            base = append(store, None, lower, Reference.parse("app:0"), Making(compression=compression))
            making = Making(compression=compression, changes=["CMD sh"])
            commit(store, base.image, comparison, Reference.parse("app:1"), making)


def umoci_unpack(site: Site, name: str) -> Snapshot:
    layout, target = site.top / "store", site.top / "umoci"
    command = ["umoci", "raw", "unpack", "--image", f"{layout}:docker.io/library/{name}", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return snapshot(target)


@pytest.mark.parametrize("compression", ["gzip", None])
def test_umoci_unpacks_what_the_kernel_shows(tmp_path: Path, compression: str | None) -> None:
    site = Site(tmp_path, {**UPPER, **BEFORE_1970})
    site.commit(compression)
    assert differences(umoci_unpack(site, "app:1"), site.expected) == []


def test_umoci_unpacks_what_is_squashed(tmp_path: Path) -> None:
    site = Site(tmp_path, {**UPPER, **BEFORE_1970})
    site.commit()
    with site.store() as store:
        squashed = squash(store, store.find("app:1"), Reference.parse("app:2"), Making())
        assert len(squashed.image.manifest.layers) == 1
    assert differences(umoci_unpack(site, "app:2"), site.expected) == []


def test_our_own_unpacking_of_what_we_commit(tmp_path: Path) -> None:
    site = Site(tmp_path, {**UPPER, **BEFORE_1970})
    site.commit("zstd")
    with site.store() as store:
        lowers = [os.fsencode(path) for path in lower_directories(store, store.find("app:1"))]
    assert differences(kernel_snapshot(tmp_path / "unpacked", lowers), site.expected) == []


def test_podman_loads_what_the_kernel_shows(tmp_path: Path) -> None:
    site = Site(tmp_path, UPPER)  # without the times before 1970, which it makes 1970
    site.commit()
    archive = tmp_path / "app.tar"
    run(
        "skopeo",
        "copy",
        "-q",
        f"oci:{tmp_path}/store:docker.io/library/app:1",
        f"oci-archive:{archive}:localhost/app:1",
    )
    podman = Podman(tmp_path / "podman")
    try:
        podman("load", "-q", "-i", str(archive))
        seen = snapshot(Path(podman("image", "mount", "localhost/app:1")))
        podman("image", "umount", "localhost/app:1")
    finally:
        podman.close()
    # its mount of an image shows a root of its own
    # its mount of an image shows a root of its own
    assert differences({**seen, b"": ()}, {**site.expected, b"": ()}) == []


def run(*command: str, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(environ or {})})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Podman:
    """One with a store of its own."""

    def __init__(self, top: Path) -> None:
        top.mkdir()
        storage, containers = top / "storage.conf", top / "containers.conf"
        storage.write_text(f'[storage]\ndriver="overlay"\nrunroot="{top}/run"\ngraphroot="{top}/root"\n')
        containers.write_text('[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\nevents_logger="file"\n')
        self._environ = {"CONTAINERS_STORAGE_CONF": str(storage), "CONTAINERS_CONF": str(containers)}
        self._root = top / "root"

    def __call__(self, *arguments: str) -> str:
        return run("podman", *arguments, environ=self._environ)

    def close(self) -> None:
        """Unmount what it keeps mounted."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            point = line.split()[4]
            if point.startswith(str(self._root)):
                unmount(os.fsencode(point), lazy=True)
