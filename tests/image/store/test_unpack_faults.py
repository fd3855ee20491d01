"""Unpacking that is killed, out of space or cut: nothing of it is visible, and running it again succeeds."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from overlayfs.image.oci.digest import parse_digest
from overlayfs.image.oci.errors import ImageError
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.pruning import prune
from overlayfs.image.store.staging import remove_tree
from overlayfs.image.store.store import Image, Store
from tests.crash.supervisor import Call, Ending, Fail, Fault, Gate, Kill, Run, supervise
from tests.crash.sweep import sampled
from tests.crash.syscall_table import plausible_errors
from tests.image import tars
from tests.image.making import put

BOTTOM = tars.tar(
    tars.directory(b"./"),
    tars.directory(b"d", 0o750, uid=1),
    tars.xattrs({b"user.a": b"b"}),
    tars.file(b"d/f", b"x" * 5000, uid=2, mode=0o4711),
    tars.link(b"d/h", b"d/f"),
    tars.symlink(b"l", b"d/f"),
    tars.header(b"p", tars.FIFO),
)
TOP = tars.tar(tars.directory(b"./"), tars.file(b"d/.wh.f"), tars.directory(b"e"), tars.file(b"e/.wh..wh..opq"))
SAMPLE = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "store") as store:
        put(store, "faulty", BOTTOM, TOP)
    return tmp_path / "store"


def check_is_whole(path: Path) -> bool:
    """Every layer that is visible is right, and unpacking succeeds now; whether all were there."""
    with Store.open(path) as store:
        layers, image = LayerStore(store), store.find("faulty")
        was_complete = layers.keys(image) is not None
        assert all(layers.verify(parse_digest(f"sha256:{name}")) == [] for name in os.listdir(path / "layers"))
        keys = unpack_image(store, image)
        assert [layers.verify(key) for key in keys] == [[], []]
        return was_complete


def unpack(path: Path, gate: Gate) -> str:
    """The error, or nothing."""
    with Store.open(path) as store:
        image = store.find("faulty")
        gate.arm()
        try:
            unpack_image(store, image)
        except (OSError, ImageError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            gate.disarm()
    return ""


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1500, 3000, len(BOTTOM) - 1025])
def test_layer_that_is_cut_short_is_not_published(tmp_path: Path, size: int) -> None:
    with Store.open(tmp_path / "store") as store:
        image = put(store, "faulty", BOTTOM, kind=None)
        blob = store.blob_path(image.manifest.layers[0].digest)
        blob.write_bytes(BOTTOM[:size])
        with pytest.raises(ImageError):
            unpack_image(store, image)
        assert not os.listdir(store.path / "layers") and not os.listdir(store.path / "tmp")
        blob.write_bytes(BOTTOM)
        assert unpack_image(store, image)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
    sparse = tars.pax({b"GNU.sparse.size": b"9000", b"GNU.sparse.map": b"0,3000,5000,2000"})
    layer = tars.tar(tars.file(b"f", bytes(range(250)) * 40), sparse, tars.file(b"s", bytes(range(250)) * 20))
    with Store.open(tmp_path / "store") as store:
        layers = LayerStore(store)
        (key,) = unpack_image(store, put(store, "faulty", layer))
        assert layers.verify(key) == []
        assert (layers.path(key) / "f").read_bytes() == bytes(range(250)) * 40


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(tars.tar(tars.file(b"f", b"x" * (8 << 20))), id="bytes"),
        pytest.param(tars.tar(*(tars.file(b"%d" % number) for number in range(100))), id="inodes"),
    ],
)
def test_full_disk_is_an_error_that_leaves_nothing(small_disk: Callable[[str], Path], layer: bytes) -> None:
    with Store.open(small_disk("size=3m,nr_inodes=60") / "store") as store:
        image = put(store, "faulty", layer)
        with pytest.raises(OSError, match="No space left") as raised:
            unpack_image(store, image)
        assert raised.value.errno == errno.ENOSPC
        assert not os.listdir(store.path / "layers") and not os.listdir(store.path / "tmp")
        other: Image = put(store, "small", BOTTOM)
        assert unpack_image(store, other)


def struck(path: Path, limit: int | None, actions: Callable[[Call], Iterable[Kill | Fail]]) -> Iterator[Run]:
    """Unpack once for each fault, of which at most `limit`, in a store without the layers. As threads take turns as
    they like, a fault may hit another call than it was meant for."""
    calls = supervise(lambda gate: unpack(path, gate)).calls
    faults = [Fault(number, action) for number, call in enumerate(calls) for action in actions(call)]
    for fault in sampled(faults, limit):
        remove_tree(path / "layers")
        (path / "layers").mkdir(0o700)
        yield supervise(lambda gate: unpack(path, gate), fault)


def check_kills(path: Path, limit: int | None) -> None:
    runs = 0
    for run in struck(path, limit, lambda call: [Kill()] if call.mutates else []):
        assert run.ending in (Ending.KILLED, Ending.RETURNED)
        check_is_whole(path)
        runs += 1
        with Store.open(path) as store:
            prune(store)
        assert not os.listdir(path / "tmp")
    assert runs >= SAMPLE


def check_errors(path: Path, limit: int | None) -> None:
    def actions(call: Call) -> Iterable[Fail]:
        return map(Fail, plausible_errors(call.name, call.mutates))

    for run in struck(path, limit, actions):
        assert run.ending is Ending.RETURNED, run.struck
        assert isinstance(run.sent, str) and "\n" not in run.sent
        assert check_is_whole(path) or run.sent, f"{run.struck}: nothing was said"


def test_kill_leaves_whole_layers_only(path: Path) -> None:
    check_kills(path, SAMPLE)


@pytest.mark.long
def test_kill_at_every_step_leaves_whole_layers_only(path: Path) -> None:
    check_kills(path, None)


def test_failing_call_leaves_whole_layers_only(path: Path) -> None:
    check_errors(path, SAMPLE)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_failing_call_leaves_whole_layers_only(path: Path) -> None:
    check_errors(path, None)
