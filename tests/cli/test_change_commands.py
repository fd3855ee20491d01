"""`commit`, `squash` and `append`, as people run them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from overlayfs.image.containers import Containers
from overlayfs.image.layers import LayerStore
from overlayfs.image.store import Store
from tests.cli.people import COMMAND, Site, answer, run
from tests.contract.tree import build, directory, file, whiteout


class Shop:
    """A store with the image base:1, whose only layer is the directory `base`."""

    def __init__(self, top: Path) -> None:
        self.top, self.directory = top, top / "store"
        build(os.fsencode(top / "base"), {"": directory(), "etc/a": file(b"1"), "gone": file()})
        self.do("append", "scratch", str(top / "base"), "base:1")

    def do(self, *arguments: str, status: int = 0, epoch: str = "") -> str:
        environ = {"SOURCE_DATE_EPOCH": epoch}
        done = run("--store", str(self.directory), *arguments, status=status, environ=environ)
        return done.stderr if status else done.stdout.strip()

    def answer(self, *arguments: str) -> Any:
        return answer("--store", str(self.directory), *arguments)

    def upper(self) -> str:
        path = self.top / "up"
        build(os.fsencode(path), {"": directory(), "etc": directory(), "etc/a": file(b"22"), "gone": whiteout()})
        return str(path)

    def history(self, name: str) -> list[tuple[str, str]]:
        with Store.open(self.directory) as store:
            return [(step.created_by, step.comment) for step in store.find(name).config.history or ()]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    made = Site(tmp_path / "site")
    yield made
    made.close()


def test_commit_of_an_upper_prints_the_id(shop: Shop) -> None:
    printed = shop.do("commit", shop.upper(), "app:1", "--base", "base:1", "-m", "why", "-c", "ENV A=1")
    assert re.fullmatch("sha256:[0-9a-f]{64}", printed)
    with Store.open(shop.directory) as store:
        image = store.find("app:1")
        assert image.id == printed
        assert image.config.config is not None and image.config.config.env == ["A=1"]
    assert shop.history("app:1") == [("overlayfs append", ""), ("overlayfs commit", "why")]


def test_commit_as_json(shop: Shop) -> None:
    found = shop.answer("commit", shop.upper(), "app:1", "--base", "base:1")
    assert {key: found[key] for key in ("name", "added", "modified", "deleted")} == {
        "name": "app:1",
        "added": 0,
        "modified": 1,
        "deleted": 1,
    }
    assert len(found["layers"]) == 2


def test_commit_without_a_name(shop: Shop) -> None:
    assert shop.answer("commit", shop.upper(), "--base", "base:1")["name"] is None


def test_commit_of_a_mount_knows_its_image(shop: Shop, site: Site) -> None:
    with Store.open(shop.directory) as store:
        lowers = LayerStore(store).lower_directories(store.find("base:1"))
    site.mount(*lowers)
    (site.mountpoint / "etc" / "new").write_bytes(b"new")
    (site.mountpoint / "gone").unlink()
    found = shop.answer("commit", str(site.mountpoint), "app:1")
    assert (found["added"], found["deleted"]) == (1, 1)
    site.unmount()


def test_commit_of_a_mount_of_other_layers_asks_for_the_image(shop: Shop, site: Site) -> None:
    site.mount(site.lower("low", {"etc/a": file(b"1")}))
    said = shop.do("commit", str(site.mountpoint), "app:1", status=1)
    assert "say with --base on which image it is" in said
    shop.do("commit", str(site.mountpoint), "app:1", "--base", "base:1")
    site.unmount()


def test_commit_of_a_container(shop: Shop) -> None:
    with Store.open(shop.directory) as store:
        image = store.find("base:1")
        containers = Containers(store)
        made = containers.create("box", image, LayerStore(store).unpack_image(image))
        (containers.upper("box") / "new").write_bytes(b"new")
    for name in ("box", made.id[:6]):
        assert shop.answer("commit", name, "app:1")["added"] == 1


def test_commit_of_what_is_not_there(shop: Shop) -> None:
    assert "no container 'nobody'" in shop.do("commit", "nobody", "app:1", status=1)
    assert "no container, mount or directory" in shop.do("commit", "/nowhere", "app:1", status=1)
    assert "--base" in shop.do("commit", shop.upper(), "app:1", status=1)
    assert "app:2" in shop.do("commit", shop.upper(), "x", "--base", "app:2", status=1)


def test_same_changes_give_the_same_image(shop: Shop) -> None:
    command = ("commit", shop.upper(), "app:1", "--base", "base:1")
    assert shop.do(*command, epoch="1700000000") == shop.do(*command, epoch="1700000000")
    assert "SOURCE_DATE_EPOCH='soon'" in shop.do(*command, epoch="soon", status=1)


def test_sockets_are_spoken_of(shop: Shop) -> None:
    import subprocess

    with socket.socket(socket.AF_UNIX) as made:
        made.bind(shop.upper() + "/socket")
    command = [*COMMAND, "--store", str(shop.directory), "commit", str(shop.top / "up"), "app:1", "--base", "base:1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "overlayfs: 1 sockets were left out: no image can hold one\n"


def test_squash_takes_over_the_name_or_gets_another(shop: Shop) -> None:
    shop.do("commit", shop.upper(), "app:1", "--base", "base:1")
    assert len(shop.answer("squash", "app:1", "app:flat")["layers"]) == 1
    found = shop.answer("squash", "app:1", "-m", "flat")
    assert (found["name"], len(found["layers"])) == ("app:1", 1)
    assert shop.history("app:1")[-1] == ("overlayfs squash", "flat")


def test_append_chowns(shop: Shop) -> None:
    shop.do("append", "base:1", str(shop.top / "base"), "app:1", "--chown", "7:8")
    assert "--chown 'me'" in shop.do("append", "base:1", str(shop.top / "base"), "--chown", "me", status=1)


def test_wrong_words_are_one_line(shop: Shop) -> None:
    upper = shop.upper()
    assert "bzip2" in shop.do("commit", upper, "app:1", "--base", "base:1", "--compression", "bzip2", status=1)
    assert "--change 'RUN x'" in shop.do("commit", upper, "app:1", "--base", "base:1", "-c", "RUN x", status=1)
    assert "digest" in shop.do("commit", upper, f"app@sha256:{'0' * 64}", "--base", "base:1", status=1)
