"""What a killed run has left is removed by the next command; damage there holds no other container up."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from overlayfs.cli.container.leftovers import sweep
from overlayfs.container.containers import BUNDLE, Container, Containers
from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.store import staging
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.staging import remove_tree
from overlayfs.image.store.store import Store
from overlayfs.image.store.uses import Process
from tests.container.small import image_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def left(store: Store, name: str, specification: bytes) -> Container:
    """A container that ran when the power went."""
    containers, image = Containers(store), image_of(store, "few", RunConfig(), {"a": b"a"})
    container = containers.create(name, image, unpack_image(store, image))
    bundle = containers.directory(container) / BUNDLE
    bundle.mkdir()
    (bundle / "config.json").write_bytes(specification)
    before = replace(Process.of(os.getpid()), boot="the boot before")
    return containers.change(container, process=before)


@pytest.mark.parametrize("specification", [b"", bytes(300), b"null", b"[]", b'{"linux": {"cgroupsPath": 5}}'])
def test_torn_specification_holds_nothing_up(store: Store, specification: bytes) -> None:
    container = left(store, "box", specification)
    with store:
        sweep(store)
        assert not (Containers(store).directory(container) / BUNDLE).exists()


def test_bundle_that_cannot_be_removed_holds_nothing_up(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bundles = [Containers(store).directory(left(store, name, b"{}")) / BUNDLE for name in ("a", "b")]

    def removed(path: Path) -> int:
        if path == bundles[0]:
            raise OSError(errno.EUCLEAN, "Structure needs cleaning", "x")
        return remove_tree(path)

    monkeypatch.setattr(staging, "remove_tree", removed)
    with store:
        sweep(store)
        assert [path.exists() for path in bundles] == [True, False]
        assert f"{bundles[0]} cannot be removed" in capfd.readouterr().err
        assert [one.process for one in Containers(store).listed()] == [None, None]
