"""Images of a real podman, listed and mounted from its storage, beside what podman itself mounts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.people import answer, run
from tests.contract.tree import Tree, directory, file, hardlink, symlink
from tests.engines.podman import Podman, archive_of
from tests.image.snapshot import snapshot

BASE: Tree = {
    "etc/kept": file(b"kept", 0o640, 33, 34),
    "etc/gone": file(b"x"),
    "opaque/old": file(b"old"),
    "linked/a": file(b"one"),
    "linked/b": hardlink("linked/a"),
    "link": symlink("etc/kept", 1, 2),
    "tmp": directory(0o1777),
}
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
