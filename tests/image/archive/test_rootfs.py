"""Root filesystems come in and go out as they are."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import pytest

from overlayfs.image.archive.rootfs import export_image, export_rootfs, import_rootfs
from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.lowers import lower_directories
from overlayfs.image.store.store import Store
from tests.contract.tree import acl, build, char, directory, fifo, file, hardlink, symlink
from tests.image import tars
from tests.image.making import packed, put
from tests.image.snapshot import snapshot

TREE = {
    "bin": directory(0o755),
    "bin/su": file(b"su", 0o4755, xattrs={"user.note": b"\0\xff"}, mtime=1_234_567_890_123_456_789),
    "bin/also": hardlink("bin/su"),
    "tmp": directory(0o1777, 5, 6, mtime=1_000_000_007),
    "tmp/sparse": file(b"x" * 5000, size=3 << 20, sparse=True, mtime=5),
    "dev/null": char(1, 3, 0o666),
    "dev/pipe": fifo(0o600, 7, 8),
    "l": symlink("../../etc/passwd", 9, 10, mtime=77),
    "dé\udcff": file(b"name"),
    "acl": file(b"", 0o640, xattrs={"system.posix_acl_access": acl(6, 4, 0, 6, {1000: 6})}),
    "n" * 255: file(b"long"),
}
NAME = Reference.parse("rootfs")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    build(os.fsencode(top), TREE)
    os.utime(top, ns=(1, 1))
    return top


def test_directory_comes_in_and_goes_out_as_it_is(store: Store, tree: Path, tmp_path: Path) -> None:
    image = import_rootfs(store, tree, NAME)
    (layer,) = lower_directories(store, image)
    assert snapshot(layer) == snapshot(tree)
    with open(tmp_path / "out.tar", "wb") as out:
        export_image(store, image, out)
    (tmp_path / "again").mkdir()
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "-xpSf", tmp_path / "out.tar", "-C", tmp_path / "again"], check=True
    )
    assert snapshot(tmp_path / "again") == snapshot(tree)


@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
@pytest.mark.parametrize("is_piped", [False, True])
def test_tar_comes_in_as_it_is(store: Store, tree: Path, tmp_path: Path, kind: str | None, is_piped: bool) -> None:
    made = subprocess.run(
        ["tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--sort=name", "-cSf", "-", "-C", tree, "."],
        check=True,
        capture_output=True,
    )
    archive = tmp_path / "in.tar"
    archive.write_bytes(packed(made.stdout, kind))
    if is_piped:
        with subprocess.Popen(["cat", archive], stdout=subprocess.PIPE) as cat:
            assert cat.stdout is not None
            image = import_rootfs(store, cat.stdout, NAME)  # type: ignore[arg-type]
    else:
        image = import_rootfs(store, archive, NAME)
    (layer,) = lower_directories(store, image)
    assert snapshot(layer) == snapshot(tree)


def test_hostile_tar_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "evil.tar").write_bytes(tars.tar(tars.file(b"../evil", b"x")))
    with pytest.raises(InvalidError, match="leads out"):
        import_rootfs(store, tmp_path / "evil.tar", NAME)
    assert store.images() == []


def test_export_shows_the_layers_together(store: Store, tmp_path: Path) -> None:
    lower = tars.tar(tars.directory(b"./"), tars.file(b"gone", b"1"), tars.file(b"kept", b"2"))
    upper = tars.tar(tars.directory(b"./"), tars.file(b".wh.gone"), tars.file(b"new", b"3"))
    image = put(store, "a", lower, upper)
    out = io.BytesIO()
    export_rootfs(lower_directories(store, image), out)
    listed = subprocess.run(["tar", "tf", "-"], input=out.getvalue(), check=True, capture_output=True).stdout
    assert listed.split() == [b"./", b"kept", b"new"]
