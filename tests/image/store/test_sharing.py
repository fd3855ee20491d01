"""Equal files of different layers share their bytes, and stay what they are."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.lowers import lower_directories
from overlayfs.image.store.sharing import Sharing, deduplicate
from overlayfs.image.store.store import Store
from overlayfs.image.store.uses import Process, Use
from overlayfs.tree.syscalls import unmount
from tests.image.making import put
from tests.image.snapshot import snapshot
from tests.image.tars import directory, file, tar

BIG = bytes(range(251)) * 1000
FIRST = tar(directory(b"./"), directory(b"d"), file(b"d/same", BIG), file(b"d/small", b"x"))
SECOND = tar(directory(b"./"), directory(b"e"), file(b"e/same", BIG), file(b"e/mode", BIG, mode=0o600))


def layers_of(store: Store) -> list[Path]:
    return lower_directories(store, put(store, "a", FIRST, SECOND))


@pytest.fixture
def disk_with_reflinks(tmp_path: Path) -> Iterator[Path]:
    image, top = tmp_path / "disk", tmp_path / "mnt"
    top.mkdir()
    with open(image, "wb") as disk:
        disk.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, top], check=True, capture_output=True)
    try:
        yield top
    finally:
        unmount(os.fsencode(top), lazy=True)


def check(store: Store) -> None:
    layers = LayerStore(store)
    assert [layers.verify(key) for key in layers.keys(store.find("a")) or ()] == [[], []]


def test_files_equal_in_everything_become_links(store: Store) -> None:
    top, bottom = layers_of(store)
    before = [{name: seen.content for name, seen in snapshot(path).items()} for path in (top, bottom)]
    shared = deduplicate(store, Sharing.HARD_LINK)
    assert (shared.files, shared.size) == (1, len(BIG))
    assert (top / "e/same").samefile(bottom / "d/same")
    assert not (top / "e/mode").samefile(bottom / "d/same")
    assert [{name: seen.content for name, seen in snapshot(path).items()} for path in (top, bottom)] == before
    check(store)
    assert deduplicate(store, Sharing.HARD_LINK).files == 0


def test_what_is_no_layer_is_left_alone(store: Store) -> None:
    layers_of(store)
    (store.path / "layers/README").touch()
    (store.path / "layers/lost+found").mkdir()
    assert deduplicate(store, Sharing.HARD_LINK).files == 1


def test_link_that_cannot_be_put_in_place_leaves_the_layer_as_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers_of(store)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(OSError, match="full"):
            deduplicate(store, Sharing.HARD_LINK)
    check(store)
    assert os.listdir(store.path / "tmp") == []
    assert deduplicate(store, Sharing.HARD_LINK).files == 1


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "the disk is full")


def test_layers_in_use_are_left_alone(store: Store) -> None:
    layers_of(store)
    keys = LayerStore(store).keys(store.find("a"))
    assert keys is not None
    store.record_mount(Use(Process.of(os.getpid()), keys))
    assert deduplicate(store, Sharing.HARD_LINK).files == 0


def test_hash_alone_makes_no_two_files_one(store: Store) -> None:
    """Who makes a layer can make two files of one hash; here the second was changed behind the index's back."""
    top, bottom = layers_of(store)
    evil = BIG[:-1] + b"!"
    (top / "e/same").write_bytes(evil)
    assert deduplicate(store, Sharing.HARD_LINK).files == 0
    assert ((top / "e/same").read_bytes(), (bottom / "d/same").read_bytes()) == (evil, BIG)


def test_reflinks_share_bytes_and_nothing_else(disk_with_reflinks: Path) -> None:
    with Store.open(disk_with_reflinks / "store") as store:
        layers_of(store)
        assert deduplicate(store, Sharing.REFLINK).files == 2
        check(store)


def test_without_reflinks_it_is_said(store: Store) -> None:
    layers_of(store)
    with pytest.raises(OSError, match="not supported") as raised:
        deduplicate(store, Sharing.REFLINK)
    assert raised.value.errno in (errno.EOPNOTSUPP, errno.ENOTTY)
