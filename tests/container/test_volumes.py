"""Volumes: the files that they get from the image, and several processes that make, use and remove them at once."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from overlayfs.container import volumes
from overlayfs.container.containers import Container, Containers
from overlayfs.container.root_paths import Inside
from overlayfs.container.spec.settings import Settings
from overlayfs.container.volumes import Volumes, fill, made_mounts
from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.oci.errors import NotFoundError
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from tests.container.small import image_of
from tests.crash.forgetful import ForgetfulDisk


def test_filled_volume_outlives_a_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, data = tmp_path / "root", tmp_path / "volume/data"
    (root / "db/deep").mkdir(parents=True)
    (root / "db/deep/file").write_text("of the image")
    data.mkdir(parents=True)
    disk = ForgetfulDisk(tmp_path)
    monkeypatch.setattr(volumes, "sync_all", lambda _directory: disk.keep_all())
    with Inside(os.fsencode(root)) as inside:
        fill(data, inside, "/db")
        disk.lose_power()
        fill(data, inside, "/db")
    assert (data / "deep/file").read_text() == "of the image"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


def at_the_removal(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> Future[None]:
    """Let somebody else do `work`, or begin it until a lock stops that, once the users of the volume are known."""
    done = Future[None]()
    has_begun = threading.Event()
    users_of = volumes.users_of

    def other() -> None:
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(work)
            result.add_done_callback(lambda _: has_begun.set())
        done.set_exception(error) if (error := result.exception()) else done.set_result(None)

    def users_then_other(name: str, containers: Sequence[Container]) -> list[str]:
        found = users_of(name, containers)
        monkeypatch.undo()
        monkeypatch.setattr(volumes, "fcntl", SimpleNamespace(flock=announced, LOCK_EX=fcntl.LOCK_EX))
        threading.Thread(target=other).start()
        has_begun.wait()
        return found

    def announced(fd: int, operation: int) -> None:
        has_begun.set()
        fcntl.flock(fd, operation)

    monkeypatch.setattr(volumes, "users_of", users_then_other)
    return done


def test_volume_of_a_container_that_is_made_during_the_removal_is_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(store, "small", RunConfig(), {"a": b"a"})
    keys = unpack_image(store, image)
    settings = Settings(volumes=["data:/data"])
    Volumes(store).create("data", {})

    def run() -> None:
        Containers(store).create("box", image, keys, settings=settings)
        made_mounts(settings, Volumes(store))

    done = at_the_removal(monkeypatch, run)
    Volumes(store).remove("data")
    done.result()
    assert Volumes(store).find("data").name == "data" and Volumes(store).data("data").is_dir()


def test_volume_is_removed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    Volumes(store).create("data", {})
    done = at_the_removal(monkeypatch, lambda: Volumes(store).remove("data"))
    Volumes(store).remove("data")
    with pytest.raises(NotFoundError):
        done.result()
