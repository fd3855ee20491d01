"""`commit`, `squash` and `append`, as people run them."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.store.commit import Request, append_to, commit_changes, squash_image
from overlayfs.container.containers import Container, Containers
from overlayfs.image.make import commit as mutate
from overlayfs.image.make.commit import Making
from overlayfs.image.oci.errors import ImageError, InvalidError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.lowers import lower_directories
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.staging import remove_tree
from overlayfs.image.store.store import Store
from tests.cli.people import Site, run
from tests.contract.tree import build, directory, file, whiteout


class Shop:
    """A store with the image base:1, whose only layer is the directory `base`."""

    def __init__(self, top: Path, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.top, self.directory = top, top / "store"
        build(os.fsencode(top / "base"), {"": directory(), "etc/a": file(b"1"), "gone": file()})
        self.upper = str(top / "up")
        build(
            os.fsencode(self.upper),
            {"": directory(), "etc": directory(), "etc/a": file(b"22"), "gone": whiteout()},
        )
        with Store.open(self.directory) as store:
            mutate.append(store, None, top / "base", Reference.parse("base:1"), Making(created_by="a test"))

    def run(self, *arguments: str) -> str:
        """What the program prints."""
        return run("--store", self.directory, *arguments).stdout.strip()

    def commit(self, source: str | None = None, name: str | None = "app:1", base: str | None = "base:1") -> Any:
        """As the program does it, but in this process, as starting another costs more than the test."""
        return self.told(lambda: commit_changes(self.directory, source or self.upper, base, request(name)))

    def told(self, work: Callable[[], None]) -> Any:
        work()
        printed = self._capture.readouterr()
        assert printed.err == ""
        return json.loads(printed.out)

    def history(self, name: str) -> list[tuple[str, str]]:
        with Store.open(self.directory) as store:
            return [(step.created_by, step.comment) for step in store.find(name).config.history or ()]


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    return Shop(tmp_path, capsys)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    made = Site(tmp_path / "site")
    yield made
    made.close()


def test_commit_of_an_upper_prints_the_id(shop: Shop) -> None:
    printed = shop.run("commit", shop.upper, "app:1", "--base", "base:1", "-m", "why", "-c", "ENV A=1")
    assert re.fullmatch("sha256:[0-9a-f]{64}", printed)
    with Store.open(shop.directory) as store:
        image = store.find("app:1")
        assert image.id == printed
        assert image.config.config is not None and image.config.config.env == ["A=1"]
    assert shop.history("app:1") == [("a test", ""), ("overlayfs commit", "why")]


def test_commit_as_json(shop: Shop) -> None:
    found = shop.commit()
    assert {key: found[key] for key in ("name", "added", "modified", "deleted")} == {
        "name": "app:1",
        "added": 0,
        "modified": 1,
        "deleted": 1,
    }
    assert len(found["layers"]) == 2


def test_commit_deletes_nothing_for_xattrs_of_users(shop: Shop) -> None:
    os.setxattr(shop.top / "up/etc", "user.overlay.opaque", b"y")
    os.setxattr(shop.top / "up", "user.overlay.opaque", b"x")
    (shop.top / "up/gone").unlink()
    (shop.top / "up/gone").touch()
    os.setxattr(shop.top / "up/gone", "user.overlay.whiteout", b"y")
    (shop.top / "base/etc/b").write_bytes(b"")
    with Store.open(shop.directory) as store:
        mutate.append(store, None, shop.top / "base", Reference.parse("base:2"), Making(created_by="a test"))
    assert shop.commit(name="app:1", base="base:2")["deleted"] == 0
    as_marks = json.loads(shop.run("commit", "--userxattr", shop.upper, "app:2", "--base", "base:2", "--json"))
    assert as_marks["deleted"] == 1
    assert {"gone", "b"} < set(shop.run("tree", "app:1").split())
    assert {"gone", "b"}.isdisjoint(shop.run("tree", "app:2").split())


def test_commit_of_a_mount_knows_its_image(shop: Shop, site: Site) -> None:
    with Store.open(shop.directory) as store:
        lowers = lower_directories(store, store.find("base:1"))
    site.mount(*lowers)
    (site.mountpoint / "etc" / "new").write_bytes(b"new")
    (site.mountpoint / "gone").unlink()
    found = shop.commit(str(site.mountpoint), base=None)
    assert (found["added"], found["deleted"]) == (1, 1)
    site.unmount()


def test_commit_of_a_mount_needs_no_other_image(shop: Shop, site: Site) -> None:
    other = site.lower("other", {"x": file(b"1")})
    with Store.open(shop.directory) as store:
        made = mutate.append(store, None, other, Reference.parse("a:1"), Making(created_by="a test"))
        store.forget(store.find("base:1").descriptor.digest)
        mutate.append(store, None, shop.top / "base", Reference.parse("base:1"), Making(created_by="a test"))
        store.blob_path(made.image.descriptor.digest).write_bytes(b"")
        lowers = lower_directories(store, store.find("base:1"))
    site.mount(*lowers)
    assert shop.commit(str(site.mountpoint), base=None)["added"] == 0
    site.unmount()


def test_commit_of_a_mount_of_other_layers_asks_for_the_image(shop: Shop, site: Site) -> None:
    site.mount(site.lower("low", {"etc/a": file(b"1")}))
    with pytest.raises(CommandError, match="name its image with --base"):
        commit_changes(shop.directory, str(site.mountpoint), None, request("app:1"))
    shop.commit(str(site.mountpoint))
    site.unmount()


def test_commit_of_a_container(shop: Shop) -> None:
    with Store.open(shop.directory) as store:
        image = store.find("base:1")
        containers = Containers(store)
        made = containers.create("box", image, unpack_image(store, image))
        (containers.upper(made) / "new").write_bytes(b"new")
    assert shop.commit(made.id[:6], base=None)["added"] == 1
    assert shop.commit("box", None, None)["name"] is None


@pytest.mark.parametrize(
    ("away", "words"), [(Containers.reset, "was reset meanwhile"), (Containers.take_away, "no container 'box'")]
)
def test_commit_of_a_container_that_goes_meanwhile_makes_no_image(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, away: Callable[[Containers, Container], Path], words: str
) -> None:
    with Store.open(shop.directory) as store:
        image = store.find("base:1")
        made = Containers(store).create("box", image, unpack_image(store, image))
        (Containers(store).upper(made) / "new").write_bytes(b"new")
        new_layer = mutate.new_layer

        def go_and_read(*arguments: Any, **options: Any) -> mutate.LayerOf:
            remove_tree(away(Containers(store), made))
            return new_layer(*arguments, **options)

        monkeypatch.setattr(mutate, "new_layer", go_and_read)
        with pytest.raises(ImageError, match=words):
            shop.commit("box", "app:1", None)
        assert [str(entry.reference) for entry in store.entries()] == ["docker.io/library/base:1"]


@pytest.mark.parametrize(
    ("source", "base", "words"),
    [
        ("nobody", None, "no container 'nobody'"),
        ("/nowhere", None, "no container, mount or directory"),
        (None, None, "name the image below this upper"),
        (None, "app:2", "app:2"),
    ],
)
def test_commit_of_what_is_not_there(shop: Shop, source: str | None, base: str | None, words: str) -> None:
    with pytest.raises((ImageError, CommandError), match=words):
        commit_changes(shop.directory, source or shop.upper, base, request("x"))


def test_same_changes_give_the_same_image(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert shop.commit()["digest"] == shop.commit()["digest"]


def test_sockets_are_spoken_of(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(shop.upper + "/socket")
    commit_changes(shop.directory, shop.upper, "base:1", request("app:1"))
    assert capsys.readouterr().err == "overlayfs: 1 sockets were left out: no image can hold one\n"


def test_squash_takes_over_the_name_or_gets_another(shop: Shop) -> None:
    shop.commit()
    found = shop.told(lambda: squash_image(shop.directory, "app:1", request("app:flat")))
    assert (found["name"], len(found["layers"])) == ("app:flat", 1)
    shop.run("squash", "app:1", "-m", "flat")
    assert shop.history("app:1")[-1] == ("overlayfs squash", "flat")


def test_append_takes_over_the_name_or_gets_another(shop: Shop) -> None:
    more = str(shop.top / "base")
    shop.run("append", "base:1", more, "app:1", "--chown", "7:8", "--json")
    found = shop.told(lambda: append_to(shop.directory, "app:1", Path(more), None, request(None)))
    assert (found["name"], len(found["layers"])) == ("app:1", 3)
    found = shop.told(lambda: append_to(shop.directory, "scratch", Path(more), None, request(None)))
    assert (found["name"], len(found["layers"])) == (None, 1)


def request(name: str | None, changes: tuple[str, ...] = (), compression: str = "gzip") -> Request:
    return Request(name, "", "", changes, compression, as_json=True)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request("app:1", compression="bzip2"), "unknown compression 'bzip2'"),
        (request("app:1", ("RUN x",)), "--change 'RUN x'"),
        (request(f"app@sha256:{'0' * 64}"), "cannot be named by a digest"),
        (request("App:1"), "no repository"),
    ],
)
def test_what_makes_no_sense_is_said(shop: Shop, asked: Request, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        commit_changes(shop.directory, shop.upper, "base:1", asked)
    with pytest.raises(InvalidError, match=words):
        append_to(shop.directory, "base:1", shop.top / "base", None, asked)


def test_epoch_and_owner_are_numbers(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidError, match="--chown 'me'"):
        append_to(shop.directory, "base:1", shop.top / "base", "me", request("app:1"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(InvalidError, match="SOURCE_DATE_EPOCH='soon'"):
        append_to(shop.directory, "base:1", shop.top / "base", None, request("app:1"))
