"""Images of our store in podman: it runs them on our own layers, as those that it has loaded itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs.image.oci.digest import digest_of
from overlayfs.image.store.podman import publish
from overlayfs.image.store.podman_records import layers_file
from overlayfs.image.store.pruning import remove_image
from overlayfs.image.store.store import Store
from tests.cli.people import answer, run
from tests.container.small import layer_of, programs
from tests.engines.conftest import USER
from tests.engines.containerd import write_oci_archive
from tests.engines.podman import Podman
from tests.image.making import put, put_changed
from tests.image.snapshot import Seen, snapshot
from tests.image.tars import file, symlink

IMAGE, OTHER = "localhost/small:1", "localhost/other:1"
CHANGE = """
cat /etc/kept /dir/new /etc/owned
rm /etc/kept /top; rm -r /dir; mkdir /dir; touch /dir/only
echo more >>/etc/owned; ln /etc/owned /hard; ln -s target /link
"""


def _owned(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o640) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.uid, info.gid, info.mode, info.mtime = kind, 33, 34, mode, 1_600_000_000
    return info


BASE = layer_of({**programs(), "etc/kept": b"first\n", "etc/gone": b"x", "dir/low": b"low\n", "etc/never": b"x"})
MIDDLE = (
    file(b"odd/a", b"1")
    + file(b"odd/b/c", b"2")
    + symlink(b"odd", b"dir")
    + layer_of(
        {
            "etc/kept": b"kept\n",
            "etc/.wh.gone": b"",
            "dir/.wh..wh..opq": b"",
            "dir/new": b"new\n",
            "etc/owned": _owned("etc/owned"),
            "setuid": _owned("setuid", mode=0o4755),
            "owned-dir": _owned("owned-dir", tarfile.DIRTYPE, 0o1770),
        }
    )
)
EMPTY = layer_of({})
LAYERS = (BASE, MIDDLE, EMPTY, layer_of({"top": b"top\n", "etc/.wh.never": b""}), EMPTY)


class Shared:
    """A podman that sees the images of a store of ours, which has one image."""

    def __init__(self, top: Path, podman: Podman, is_by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_by_kernel = is_by_kernel
        self.podman, self.store, self.graph = podman, top / "store", top / "root"
        monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(top / "storage.conf"))
        monkeypatch.setenv("OVERLAYFS_STORE", str(self.store))
        self.archive = top / "image.tar"
        write_oci_archive(self.archive, IMAGE, LAYERS, ["/bin/sh"])
        run("load", "-i", self.archive)
        run("share", "podman", "--yes")

    def images(self) -> dict[str, bool]:
        """The names of the images and whether they are read-only."""
        listed = json.loads(self.podman("images", "--format=json"))
        return {name: image.get("ReadOnly", False) for image in listed for name in image.get("Names") or ["<none>"]}

    def own_layers(self) -> list[str]:
        """The layers that podman keeps itself."""
        path = self.graph / "overlay-layers/layers.json"
        return [layer["id"] for layer in json.loads(path.read_text())] if path.exists() else []


def tree_of(podman: Podman, image: str) -> dict[str, Seen]:
    """The tree of a new container, without its root: podman gives that the mode 0555, whatever the image says."""
    podman("create", "--name=seen", image)
    try:
        tree = snapshot(Path(podman("mount", "seen")))
        return {name: seen for name, seen in tree.items() if name != "."}
    finally:
        podman("rm", "--force", "seen")


@pytest.fixture(params=["kernel", pytest.param("ours", marks=pytest.mark.long)])
def shared(
    request: pytest.FixtureRequest, new_podman: Callable[..., Podman], top: Path, monkeypatch: pytest.MonkeyPatch
) -> Shared:
    name = f"s{len(os.listdir(top))}"
    is_by_kernel = request.param == "kernel"
    return Shared(top / name, new_podman(name, ours=not is_by_kernel), is_by_kernel, monkeypatch)


@pytest.fixture
def loaded(shared: Shared, new_podman: Callable[..., Podman]) -> Podman:
    """A podman with the same driver that has loaded the same image itself."""
    podman = new_podman(f"{shared.graph.parent.name}-loaded", ours=not shared.is_by_kernel)
    podman("load", "-q", "-i", shared.archive)
    return podman


def _changed(podman: Podman) -> tuple[str, list[str], dict[str, Seen]]:
    """What a container says, what it changes, and the tree of the image that is made of it."""
    said = podman("run", "--name=changed", IMAGE, "sh", "-ec", CHANGE)
    changes = sorted(podman("diff", "changed").splitlines())
    podman("commit", "-q", "changed", "committed")
    tree = {name: seen._replace(mtime_ns=0) for name, seen in tree_of(podman, "committed").items()}
    return said, changes, tree


def test_image_is_run_changed_and_committed_as_one_that_podman_loaded(shared: Shared, loaded: Podman) -> None:
    assert shared.images() == {IMAGE: True}
    assert tree_of(shared.podman, IMAGE) == tree_of(loaded, IMAGE)
    assert shared.own_layers() == []
    assert _changed(shared.podman) == _changed(loaded)


def test_image_is_built_upon(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN rm /top; echo built >/built\n")
    shared.podman("build", "-q", "--isolation=chroot", "-t", "built", tmp_path)
    assert shared.podman("run", "--rm", "built", "cat", "/built", "/etc/kept") == "built\nkept"
    shared.podman("run", "--rm", "built", "cat", "/top", status=1)
    shared.podman("save", "-q", "-o", tmp_path / "built.tar", "built")
    run("load", "-i", tmp_path / "built.tar")  # checks that the layers below were written with their digests
    assert shared.images().keys() == {IMAGE, "localhost/built:latest"}


def test_what_podman_pulls_uses_the_layers_that_are_here(shared: Shared, tmp_path: Path) -> None:
    """It does not even read them: the place that it pulls from does not have them."""
    write_oci_archive(shared.archive, OTHER, [*LAYERS[:2], layer_of({"other": b"other\n"})])
    with tarfile.open(shared.archive) as archive:
        archive.extractall(tmp_path)
    for layer in LAYERS[:2]:
        (tmp_path / "blobs" / digest_of(layer).replace(":", "/")).unlink()
    pulled = shared.podman("pull", "-q", f"oci:{tmp_path}")
    shared.podman("tag", pulled, OTHER)
    assert len(shared.own_layers()) == 1
    assert shared.podman("run", "--rm", OTHER, "cat", "/other", "/etc/kept") == "other\nkept"
    listed = {name: image for image in answer("images", "--from", "podman") for name in image["RepoTags"]}
    assert (len(listed[IMAGE]["Layers"]), len(listed[OTHER]["Layers"])) == (4, 3)
    (tmp_path / "mnt").mkdir()
    run("mount", f"podman:{OTHER}", tmp_path / "mnt")
    try:
        assert (tmp_path / "mnt/other").read_bytes() == b"other\n"
        assert (tmp_path / "mnt/etc/kept").read_bytes() == b"kept\n"
    finally:
        run("umount", tmp_path / "mnt")


def test_commands_bring_podman_up_to_date(shared: Shared) -> None:
    with Store.open(shared.store) as store:
        put_changed(store, put(store, "unreadable", EMPTY), {}, {"created": "yesterday"})
        publish(store)
        assert shared.images() == {IMAGE: True}
        remove_image(store, "unreadable")
    run("tag", IMAGE, OTHER)
    assert shared.images() == {IMAGE: True, OTHER: True}
    run("rmi", IMAGE)
    assert shared.images() == {OTHER: True}
    run("rmi", OTHER)
    assert shared.images() == {}
    assert json.loads(layers_file(shared.store).read_text()) == []
    assert os.listdir(shared.store / "podman/overlay/l") == os.listdir(shared.store / "layers") == []


def test_layers_that_podman_uses_stay_until_it_has_removed_them(shared: Shared) -> None:
    shared.podman("create", "--name=kept", IMAGE, "cat", "/etc/kept", "/top")
    run("rmi", "--force", IMAGE)
    run("prune")
    assert shared.images() == {}
    assert shared.podman("start", "--attach", "kept") == "kept\ntop"
    assert "remove them first" in run("share", "podman", "--undo", status=1).stderr
    shared.podman("rm", "kept")
    run("prune")
    assert os.listdir(shared.store / "layers") == []


def test_sharing_is_taken_back(shared: Shared) -> None:
    run("share", "podman", "--undo", "--yes")
    assert shared.images() == {}
    assert not (shared.store / "podman").exists()
    assert not (shared.store / "layers").is_symlink()
    assert len(os.listdir(shared.store / "layers")) == len(set(LAYERS))
    assert "nothing" not in run("share", "podman", "--yes").stdout
    assert shared.images() == {IMAGE: True}


def test_ids_of_layers_are_mapped(shared: Shared) -> None:
    """By an idmapped mount where podman has the kernel mount the layers."""
    if shared.is_by_kernel:
        (shared.graph.parent / "run/overlay/idmapped-lower-dir-false").unlink()
    mapped = ("run", "--rm", "--uidmap=0:100000:65536", "--gidmap=0:100000:65536", IMAGE)
    assert shared.podman(*mapped, "stat", "-c%u:%g", "/etc/owned", "/etc/kept", "/") == "33:34\n0:0\n0:0"


def test_ordinary_user_runs_the_images_of_the_users_own_store(new_podman: Callable[..., Podman], machine: Path) -> None:
    podman = new_podman("user", user=USER)
    top = machine / "user"
    write_oci_archive(top / "image.tar", IMAGE, LAYERS)
    python = machine / "environment/bin" / Path(sys.executable).name
    environ = {
        "PYTHONPATH": str(machine / "repository"),
        "HOME": str(top / "home"),
        "CONTAINERS_STORAGE_CONF": str(top / "storage.conf"),
    }

    def as_user(*words: str | Path, status: int = 0, **more: str) -> str:
        done = subprocess.run(
            [python, "-m", "overlayfs.cli.main", "--store", top / "store", *words],
            env=environ | more,
            cwd=top,
            user=USER,
            group=USER,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stderr

    as_user("load", "-i", top / "image.tar")
    without_program = {"CONTAINERS_STORAGE_CONF": str(top / "none.conf")}
    assert "overlayfs setup podman --user" in as_user("share", "podman", status=1, **without_program)
    as_user("share", "podman", "--yes")
    looked = "stat -c '%n %u:%g %a' /setuid /etc/owned /owned-dir; cat /etc/kept /top; ls /dir; ls -d /etc/[gn]*"
    said = podman("run", "--rm", IMAGE, "sh", "-c", looked, status=2).splitlines()  # nothing of gone and never is left
    assert said[:3] == ["/setuid 33:34 4755", "/etc/owned 33:34 640", "/owned-dir 33:34 1770"]
    assert said[3:] == ["kept", "top", "new"]
    podman("run", "--name=changed", IMAGE, "sh", "-ec", CHANGE)
    podman("commit", "-q", "changed", "committed")
    assert podman("run", "--rm", "committed", "cat", "/hard") == "more"
    podman("save", "-q", "-o", top / "saved.tar", "committed")
    as_user("load", "-i", top / "saved.tar")  # checks that the layers below were written with their digests
