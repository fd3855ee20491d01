"""Containers in the store: names, who uses them, and how they start anew."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from overlayfs.container.containers import BUNDLE, RECORD, Container, Containers
from overlayfs.container.health import Probe
from overlayfs.container.volumes import Volumes
from overlayfs.image.oci.digest import Digest
from overlayfs.image.oci.documents import HealthConfig, RunConfig
from overlayfs.image.oci.errors import InUseError, InvalidError, NotFoundError
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.pruning import prune, remove_image
from overlayfs.image.store.staging import remove_tree
from overlayfs.image.store.store import Image, Store
from overlayfs.image.store.uses import Process
from overlayfs.overlay.changes import ChangeKind
from tests.container.small import image_of
from tests.crash.forgetful import ForgetfulDisk


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


@pytest.fixture
def image(store: Store) -> Image:
    return image_of(store, "few", RunConfig(), {"etc/a": b"a", "etc/b": b"b"}, {"top": b"t"})


@pytest.fixture
def keys(store: Store, image: Image) -> list[Digest]:
    return unpack_image(store, image)


@pytest.fixture
def containers(store: Store) -> Containers:
    return Containers(store)


@pytest.fixture
def box(containers: Containers, image: Image, keys: list[Digest]) -> Container:
    """A container that nobody uses."""
    containers.release(containers.create("box", image, keys))
    return containers.find("box")


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which lives until its standard input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        yield process


def have_other_use(containers: Containers, container: Container, other: subprocess.Popen[bytes]) -> None:
    containers.change(containers.again(container), process=Process.of(other.pid), ended=0.0)


def end(other: subprocess.Popen[bytes]) -> None:
    other.kill()
    other.wait()


def test_new_container_is_empty_and_ours(containers: Containers, image: Image, keys: list[Digest]) -> None:
    made = containers.create("box", image, keys)
    assert made.is_in_use and made.image == "few:latest" and made.manifest == image.descriptor.digest
    assert containers.find("box") == made
    assert os.listdir(containers.upper(made)) == os.listdir(containers.work(made)) == []
    assert [os.listdir(path) for path in containers.lowers(made)] == [["top"], ["etc"]]


def test_upper_is_like_the_images_root(containers: Containers, image: Image, keys: list[Digest]) -> None:
    root = LayerStore(containers._store).path(keys[-1])
    root.chmod(0o1751)
    os.chown(root, 3, 4)
    os.setxattr(root, "user.shown", b"x")
    os.utime(root, ns=(1, 2))
    upper = containers.upper(containers.create("box", image, keys))
    found = upper.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns) == (0o1751, 3, 4, 2)
    assert os.getxattr(upper, "user.shown") == b"x"


def test_names_are_made_up_and_unique(containers: Containers, image: Image, keys: list[Digest]) -> None:
    made = [containers.create(None, image, keys) for _ in range(3)]
    assert len({one.name for one in made}) == 3
    assert {one.name for one in containers.listed()} == {one.name for one in made}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a" * 64, "a\n", ".hidden", "ü"])
def test_bad_name_is_refused(containers: Containers, image: Image, keys: list[Digest], name: str) -> None:
    with pytest.raises(InvalidError, match="is no name for a container"):
        containers.create(name, image, keys)


def test_taken_name_is_refused(containers: Containers, image: Image, keys: list[Digest], box: Container) -> None:
    with pytest.raises(InUseError, match="the name box is taken"):
        containers.create("box", image, keys)
    assert containers.find("box") == box


def test_container_is_found_by_the_start_of_its_id(
    containers: Containers, image: Image, keys: list[Digest], box: Container
) -> None:
    assert containers.find(box.id) == containers.find(box.id[:12]) == box
    for text in ("nothing", box.id[:3], "", "../few", "box/"):
        with pytest.raises(NotFoundError, match="no container"):
            containers.find(text)


def test_damaged_record_is_named(containers: Containers, box: Container) -> None:
    path = containers.directory(box) / RECORD
    path.write_text("{}")
    for question in (lambda: containers.find("box"), containers.listed):
        with pytest.raises(InvalidError, match=f"{path} is damaged"):
            question()


def test_damaged_record_holds_no_other_container_up(
    containers: Containers, image: Image, keys: list[Digest], box: Container
) -> None:
    broken = containers.create("broken", image, keys)
    (containers.directory(broken) / RECORD).write_bytes(b"")
    containers.rename(box, "renamed")
    assert containers.find("renamed") == containers.find(box.id) and containers.named("other") is None
    assert containers.find_if_there("renamed") and containers.find_if_there("decade") is None  # maybe an image's name
    for word in ("broken", "decade"):
        with pytest.raises(InvalidError, match="is damaged"):
            containers.find(word)
    made = containers.create("box", image, keys, is_ephemeral=True)  # its place is that of the renamed one
    containers.release(made)
    assert containers.sweep() == []
    assert [one.name for one in containers.readable().containers] == ["renamed"]
    with pytest.raises(InUseError, match="the name broken is taken"):
        containers.create("broken", image, keys)
    with pytest.raises(InvalidError, match="is damaged"):
        containers.listed()


@pytest.mark.parametrize("is_readable", [True, False])
def test_damaged_record_may_need_anything_in_the_store(
    store: Store, containers: Containers, image: Image, box: Container, *, is_readable: bool
) -> None:
    record = containers.directory(box) / RECORD
    record.unlink()
    record.touch() if is_readable else record.mkdir()  # a stand-in for a bad sector
    with pytest.raises(InvalidError, match=f"{record} is damaged: .*; remove {record.parent} if nothing"):
        prune(store, named=True)
    with pytest.raises(InvalidError, match="is damaged"):
        remove_image(store, "few")
    assert containers.lowers(box) and store.find("few") == image
    assert [one.name for one in containers.readable().containers] == []
    remove_tree(record.parent)
    (store.path / "containers" / "README").touch()
    assert prune(store, named=True).images == ("few:latest",)


def test_records_outlive_a_power_loss(
    store: Store, image: Image, keys: list[Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, sync = ForgetfulDisk(store.path), os.fsync

    def kept(fd: int) -> None:
        sync(fd)
        disk.keep(fd)

    monkeypatch.setattr(os, "fsync", kept)
    containers = Containers(store)
    Volumes(store).create("data", {"kind": "test"})
    made = containers.create("box", image, keys)
    disk.lose_power()
    assert containers.find("box") == made and Volumes(store).find("data").labels == {"kind": "test"}
    containers.rename(made, "renamed")
    containers.release(containers.find("renamed"), 3)
    disk.lose_power()
    assert containers.find("renamed").exit_status == 3
    remove_tree(containers.reset(containers.find("renamed")))
    disk.lose_power()
    assert containers.find("renamed").exit_status is None


def test_container_is_read_again_whatever_became_of_others(
    containers: Containers, image: Image, keys: list[Digest], box: Container
) -> None:
    (containers.directory(containers.create("broken", image, keys)) / RECORD).write_text("{}")
    containers.change(box, exit_status=3)
    assert containers.again(box).exit_status == 3
    remove_tree(containers.take_away(box))
    with pytest.raises(NotFoundError, match="no container 'box'"):
        containers.again(box)


def test_changes_are_told(containers: Containers, box: Container) -> None:
    (containers.upper(box) / "new").touch()
    with containers.compare(box) as comparison:
        assert [(change.path, change.kind) for change in comparison if change.path] == [(b"new", ChangeKind.ADDED)]


def test_missing_layer_is_named(containers: Containers, box: Container, keys: list[Digest]) -> None:
    remove_tree(LayerStore(containers._store).path(keys[0]))
    with pytest.raises(NotFoundError, match="box needs it"):
        containers.lowers(box)


# -- names


def test_container_in_use_is_renamed_and_stays_where_it_is(
    containers: Containers, image: Image, keys: list[Digest], box: Container, other: subprocess.Popen[bytes]
) -> None:
    have_other_use(containers, box, other)
    containers.rename(box, "crate")
    found = containers.find("crate")
    assert (found.id, containers.directory(found)) == (box.id, containers.directory(box))
    assert containers.named("box") is None
    second = containers.create("box", image, keys)  # the name is free at once
    assert containers.find("box") == second and containers.upper(second) != containers.upper(box)
    assert containers.change(found, exit_status=3).name == "crate"
    with pytest.raises(InUseError, match="the name box is taken"):
        containers.rename(found, "box")
    with pytest.raises(InUseError, match="the name crate is taken"):
        containers.create("crate", image, keys)
    with pytest.raises(InvalidError, match="is no name"):
        containers.rename(found, "../box")
    assert {one.name: one.id for one in containers.listed()} == {"crate": box.id, "box": second.id}


def test_renamed_container_is_reset_and_removed(
    containers: Containers, image: Image, keys: list[Digest], box: Container
) -> None:
    containers.rename(box, "crate")
    containers.create("box", image, keys)
    (containers.upper(box) / "new").touch()
    remove_tree(containers.reset(box))
    assert containers.find("crate").id == box.id and os.listdir(containers.upper(box)) == []
    remove_tree(containers.take_away(box))
    assert [one.name for one in containers.listed()] == ["box"]


def test_nobody_takes_a_name_while_a_container_is_made(
    containers: Containers, image: Image, keys: list[Digest], box: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = containers._make
    with ThreadPoolExecutor(1) as pool:
        renamed: list[Future[None]] = []

        def make_meanwhile(container: Container) -> Path:
            renamed.append(pool.submit(containers.rename, box, "new"))
            with pytest.raises(TimeoutError):
                renamed[0].result(0.1)
            return make(container)

        monkeypatch.setattr(containers, "_make", make_meanwhile)
        made = containers.create("new", image, keys)
        with pytest.raises(InUseError, match="the name new is taken"):
            renamed[0].result()
    assert containers.find("new") == made and containers.find("box") == box


def test_remains_of_a_removed_container_keep_no_name_taken(
    containers: Containers, image: Image, keys: list[Digest], box: Container
) -> None:
    remove_tree(containers.take_away(box))
    (containers.directory(box) / BUNDLE / "state").mkdir(parents=True)  # by runc, which had just begun
    made = containers.create("box", image, keys)
    assert containers.find("box") == made and containers.directory(made).name == made.id


def test_names_in_records_are_checked(containers: Containers, box: Container) -> None:
    path = containers.directory(box) / RECORD
    path.write_bytes(path.read_bytes().replace(b'"box"', b'"../box"'))
    with pytest.raises(InvalidError, match=r"is damaged: '\.\./box' is no name"):
        containers.find(box.id)


# -- used by one at a time


def test_used_container_is_left_alone(
    containers: Containers, image: Image, box: Container, other: subprocess.Popen[bytes]
) -> None:
    have_other_use(containers, box, other)
    for change in (
        lambda: containers.claim(box, image),
        lambda: containers.reset(box),
        lambda: containers.take_away(box),
    ):
        with pytest.raises(InUseError, match=rf"box is running \(process {other.pid}\)"):
            change()
    end(other)
    assert containers.claim(box, image).is_in_use


def test_container_on_another_image_is_not_claimed(store: Store, containers: Containers, box: Container) -> None:
    other = image_of(store, "other", RunConfig(), {"etc/a": b"other"})
    with pytest.raises(InUseError, match="on another image, few:latest"):
        containers.claim(box, other)


def test_container_is_claimed_by_another_manifest_of_its_image(
    store: Store, containers: Containers, image: Image, box: Container
) -> None:
    """As where it comes once more from an archive of another kind."""
    again = store.put_image(replace(image.manifest, annotations={"again": "yes"}), image.config, image.reference)
    assert again.id == image.id and again.descriptor != image.descriptor
    assert containers.claim(box, again).is_in_use


def test_released_container_is_free(containers: Containers, image: Image, box: Container) -> None:
    containers.release(containers.claim(box, image), 7)
    found = containers.find("box")
    assert not found.is_in_use and found.exit_status == 7


def test_check_of_an_earlier_run_is_not_noted(
    containers: Containers, image: Image, box: Container, other: subprocess.Popen[bytes]
) -> None:
    probe, check = Probe(1, 2, 1, ""), HealthConfig(["CMD", "a"], retries=1)
    first = containers.claim(box, image)
    assert containers.note_probe(first, probe, check) == containers.find("box").health
    have_other_use(containers, box, other)
    with pytest.raises(InvalidError, match="box has ended"):
        containers.note_probe(first, probe, check)
    containers.release(containers.again(box))
    with pytest.raises(InvalidError, match="box has ended"):
        containers.note_probe(first, probe, check)


def test_ephemeral_container_goes_with_its_release(containers: Containers, image: Image, keys: list[Digest]) -> None:
    made = containers.create("box", image, keys, is_ephemeral=True)
    containers.release(made, 0)
    assert containers.listed() == [] and os.listdir(containers.directory(made).parent) == []


def test_ephemeral_container_of_a_killed_process_is_swept(
    containers: Containers, image: Image, keys: list[Digest], box: Container, other: subprocess.Popen[bytes]
) -> None:
    passing = containers.create("passing", image, keys, is_ephemeral=True)
    have_other_use(containers, passing, other)
    have_other_use(containers, box, other)
    containers.sweep()
    assert [one.name for one in containers.listed()] == ["box", "passing"]
    end(other)
    containers.sweep()
    assert [one.name for one in containers.listed()] == ["box"]


def test_container_whose_program_may_still_run_is_not_swept_before_it_is_stopped(
    containers: Containers, image: Image, keys: list[Digest], other: subprocess.Popen[bytes]
) -> None:
    passing = containers.create("passing", image, keys, is_ephemeral=True)
    have_other_use(containers, passing, other)
    bundle = containers.directory(passing) / BUNDLE
    bundle.mkdir()
    end(other)
    assert containers.sweep() == []
    with containers.left(containers.find("passing")) as is_left:
        assert is_left
        bundle.rmdir()
    assert [one.name for one in containers.sweep()] == ["passing"]


def test_only_one_process_cleans_up_and_no_container_that_came_after(
    containers: Containers, image: Image, keys: list[Digest], box: Container, other: subprocess.Popen[bytes]
) -> None:
    have_other_use(containers, box, other)
    killed = containers.find("box")
    end(other)
    fd = os.open(containers.directory(box), os.O_RDONLY)
    with containers.left(killed) as is_left:
        assert is_left
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    with containers.left(killed) as is_left:
        assert not is_left
    remove_tree(containers.take_away(box))
    after = containers.create("box", image, keys)
    with pytest.raises(NotFoundError, match="another one"), containers.left(killed):
        pass
    with pytest.raises(NotFoundError, match="another one"):
        containers.take_away(killed)
    assert containers.find("box") == after


# -- reset and removal


def test_reset_container_is_as_new(containers: Containers, box: Container) -> None:
    containers.change(box, exit_status=3, command=["sh"])
    (containers.upper(box) / "etc").mkdir()
    (containers.upper(box) / "etc/a").write_text("changed")
    left = containers.reset(box)
    assert os.listdir(containers.upper(box)) == os.listdir(containers.work(box)) == []
    assert (left / "upper/etc/a").read_text() == "changed"
    found = containers.find("box")
    assert (found.id, found.exit_status, found.command) == (box.id, None, [])


def test_removed_container_is_gone_at_once(containers: Containers, box: Container) -> None:
    left = containers.take_away(box)
    assert containers.listed() == [] and left.is_dir()
    with pytest.raises(NotFoundError):
        containers.take_away(box)


def test_layers_of_a_container_are_not_pruned(store: Store, containers: Containers, box: Container) -> None:
    store.forget(box.manifest)
    with store.alone():
        prune(store)
    assert len(containers.lowers(containers.find("box"))) == 2
    remove_tree(containers.take_away(box))
    with store.alone():
        assert prune(store).layers == 2
