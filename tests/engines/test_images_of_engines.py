"""Images of a real podman and containerd, listed and mounted from their storage, beside what they mount themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from overlayfs.image.foreign.containerd import images_of_containerd
from overlayfs.image.foreign.stored_image import find, trees
from tests.cli.people import answer, run
from tests.container.small import layer_of
from tests.contract.tree import Tree, directory, file, hardlink, symlink
from tests.engines.containerd import OURS, Containerd, containerd_beside, write_oci_archive
from tests.engines.podman import Podman, archive_of, covered
from tests.image.snapshot import Seen, snapshot
from tests.snapshotter.service import Service, new_service

BASE: Tree = {
    "etc/kept": file(b"kept", 0o640, 33, 34),
    "etc/gone": file(b"x"),
    "opaque/old": file(b"old"),
    "linked/a": file(b"one"),
    "linked/b": hardlink("linked/a"),
    "link": symlink("etc/kept", 1, 2),
    "tmp": directory(0o1777),
}
OWN, OURS_ALONE, PACKED = (f"localhost/{name}:latest" for name in ("own", "ours", "packed"))
LAYERS = (
    {"etc/kept": b"first", "etc/gone": b"x", "dir/low": b"low"},
    {"etc/kept": b"kept", "etc/.wh.gone": b"", "dir/.wh..wh..opq": b"", "dir/new": b"", "top": b"top"},
)
CHANGE = "rm /etc/gone; rm -r /opaque; mkdir /opaque; echo new >/opaque/new; chown 5:6 /etc/kept"


def test_image_of_podman_is_mounted_as_podman_mounts_it(
    new_podman: Callable[..., Podman], top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    podman = new_podman("shared", ours=False)
    (top / "shared-base").mkdir()
    podman("import", "-q", archive_of(BASE, top / "shared-base"), "base")
    podman("run", "--name=changed", "base", "sh", "-ec", CHANGE)
    podman("commit", "-q", "changed", "changed:1")
    theirs = snapshot(Path(podman("image", "mount", "changed:1")))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(top / "shared/storage.conf"))
    names = {name for image in answer("images", "--from", "podman") for name in image["RepoTags"]}
    assert names == {"localhost/base:latest", "localhost/changed:1"}
    (tmp_path / "mnt").mkdir()
    run("mount", "podman:changed:1", tmp_path / "mnt")
    try:
        assert snapshot(tmp_path / "mnt") == theirs
        assert not os.path.lexists(tmp_path / "mnt/etc/gone")
        assert os.listdir(tmp_path / "mnt/opaque") == ["new"]
    finally:
        run("umount", tmp_path / "mnt")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with new_service() as service:
        service.start().close()
        yield service


@pytest.fixture(scope="module")
def containerd(service: Service) -> Iterator[Containerd]:
    """With one image that only its own snapshotter has, one that only ours has, and one that none has."""
    with containerd_beside(service) as containerd:
        for number, (name, snapshotter) in enumerate(((OWN, "overlayfs"), (OURS_ALONE, OURS))):
            write_oci_archive(
                service.top / "image.tar", name, [*map(layer_of, LAYERS), layer_of({"n": b"%d" % number})]
            )
            containerd("images", "import", "--snapshotter", snapshotter, service.top / "image.tar")
        write_oci_archive(service.top / "image.tar", PACKED, [layer_of({"packed": b""})])
        containerd("images", "import", "--no-unpack", service.top / "image.tar")
        yield containerd


@pytest.fixture
def configured(containerd: Containerd) -> Iterator[Containerd]:
    """A containerd that the program finds by its configuration."""
    with covered("/etc/containerd/config.toml", containerd.top / "config.toml"):
        yield containerd


def _mounted(mountpoint: Path, *words: str) -> dict[str, Seen]:
    mountpoint.mkdir()
    run("mount", *words, mountpoint)
    try:
        return snapshot(mountpoint)
    finally:
        run("umount", mountpoint)


@pytest.mark.parametrize(("name", "snapshotter"), [(OWN, "overlayfs"), (OURS_ALONE, OURS)])
def test_image_of_containerd_is_mounted_as_containerd_mounts_it(
    name: str, snapshotter: str, containerd: Containerd, service: Service, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    containerd("images", "mount", "--snapshotter", snapshotter, name, theirs)
    try:
        shown = snapshot(theirs)
    finally:
        containerd("images", "unmount", "--rm", "--snapshotter", snapshotter, theirs)
    layers = trees(find(images_of_containerd(containerd.top / "data", {OURS: service.root}, "default"), name))
    assert _mounted(tmp_path / "ours", *(word for layer in layers for word in ("--lower", str(layer)))) == shown
    assert {"etc/kept", "top"} < shown.keys()
    assert "etc/gone" not in shown


def test_images_of_containerd_are_found_by_its_configuration(configured: Containerd, tmp_path: Path) -> None:
    listed = {image["RepoTags"][0]: image for image in answer("images", "--from", "containerd")}
    assert len(listed[OWN]["Layers"]) == 3
    assert listed[PACKED]["Layers"] == []
    assert OURS_ALONE in listed
    assert OWN in run("images", "--from", "containerd").stdout
    assert "top" in _mounted(tmp_path / "mnt", f"containerd:{OWN}")
    assert "not unpacked" in run("mount", f"containerd:{PACKED}", tmp_path / "mnt", status=1).stderr


def test_images_of_containerd_are_whole_while_it_changes_them(containerd: Containerd) -> None:
    def change() -> None:
        for number in range(12):
            containerd("images", "tag", "--force", OWN, f"localhost/tag:{number % 3}")
            containerd("images", "rm", f"localhost/tag:{number % 3}")

    with ThreadPoolExecutor() as pool:
        changing = pool.submit(change)
        while not changing.done():
            images = list(images_of_containerd(containerd.top / "data", {}, "default"))
            assert len(find(images, OWN).layers) == 3
            assert find(images, OURS_ALONE) != find(images, PACKED)
        changing.result()


def test_images_of_containerd_are_read_while_it_is_down_and_refused_if_damaged(configured: Containerd) -> None:
    """The last test: containerd is ended, and its database damaged."""
    running = answer("images", "--from", "containerd")
    configured.end()
    assert answer("images", "--from", "containerd") == running
    database = configured.top / "data/io.containerd.metadata.v1.bolt/meta.db"
    data = database.read_bytes()
    for damaged in (b"", data[:8192], data[:4096] + bytes(4096), bytes(len(data))):
        database.write_bytes(damaged)
        assert str(database) in run("images", "--from", "containerd", status=1).stderr
