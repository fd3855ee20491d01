"""`overlayfs fork`, as people run it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.make import commit as mutate
from overlayfs.image.make.commit import Making
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Store
from overlayfs.tree.mount_table import mount_entries
from overlayfs.tree.syscalls import unmount
from tests.cli.people import Site, answer, run
from tests.contract.tree import build, directory, file


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A mountpoint, and `fork` beside it for another mount."""
    (tmp_path / "fork").mkdir()
    site = Site(tmp_path)
    try:
        yield site
    finally:
        for entry in reversed(mount_entries()):
            if entry.mountpoint.startswith(os.fsencode(tmp_path)):
                unmount(entry.mountpoint, lazy=True)


@pytest.fixture
def fork(site: Site) -> Path:
    return site.top / "fork"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the image base:1."""
    build(os.fsencode(tmp_path / "base"), {"": directory(), "etc/a": file(b"a"), "etc/b": file(b"b")})
    with Store.open(tmp_path / "store") as store:
        mutate.append(store, None, tmp_path / "base", Reference.parse("base:1"), Making(created_by="a test"))
    return tmp_path / "store"


def test_fork_of_a_snapshot(site: Site, fork: Path) -> None:
    site.mount(site.lower("low", {"": directory(), "a": file(b"low")}))
    (site.mountpoint / "a").write_text("first")
    run("snapshot", site.mountpoint, "first")
    (site.mountpoint / "a").write_text("second")
    assert run("fork", site.mountpoint, fork, "--from", "first").stdout == ""
    assert (fork / "a").read_text() == "first"
    (fork / "new").touch()
    assert run("diff", fork).stdout == "M /a\nA /new\n"
    assert run("diff", fork, "--from", "first").stdout == "A /new\n"
    assert [one["snapshot"] for one in answer("snapshots", fork)] == ["first"]
    run("umount", site.mountpoint)
    assert (fork / "a").read_text() == "first"
    run("umount", fork)
    assert os.listdir(fork) == []


def test_fork_has_the_options_of_the_original(site: Site, fork: Path) -> None:
    low = site.lower("low", {"": directory(), "a": file(b"low")})
    upper = ("--upper", site.upper, "--work", site.work)
    run("mount", "-o", "squash_to_uid=77,noexec,fsname=mine", "--lower", low, *upper, site.mountpoint)
    run("fork", site.mountpoint, fork)
    assert (fork / "a").stat().st_uid == 77
    (entry,) = [entry for entry in mount_entries() if entry.mountpoint == bytes(fork)]
    assert entry.source == b"mine"
    assert b"noexec" in entry.options


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("fork", "--from", "other"), "there is no snapshot other, but first"),
        (("missing",), "does not exist"),
    ],
)
def test_refusals_are_one_line(site: Site, words: tuple[str, ...], told: str) -> None:
    site.mount(site.lower("low", {"": directory()}))
    run("snapshot", site.mountpoint, "first")
    place, *more = words
    said = run("fork", site.mountpoint, site.top / place, *more, status=1).stderr
    assert told in said
    assert said.count("\n") == 1
    assert len(answer("snapshots", site.mountpoint)) == 1
    assert sorted(os.listdir(site.work / "overlayfs-snapshots")) == ["1", "stack"]


def test_fork_of_an_image_is_committed_and_keeps_its_layers(site: Site, fork: Path, store: Path) -> None:
    run("--store", store, "mount", "base:1", "--rw", site.mountpoint)
    (site.mountpoint / "etc/a").write_text("changed")
    run("fork", site.mountpoint, fork)
    (site.mountpoint / "etc/later").touch()
    run("umount", site.mountpoint)
    (fork / "etc/b").unlink()
    assert "a container or mount uses" in run("--store", store, "rmi", "base:1", status=1).stderr
    run("--store", store, "prune")
    assert (fork / "etc/a").read_text() == "changed"
    run("--store", store, "commit", fork, "app:1")
    assert set(run("--store", store, "tree", "app:1").stdout.split()) & {"a", "b", "later"} == {"a"}
    assert run("--store", store, "cat", "app:1:/etc/a").stdout == "changed"


def test_forked_container_is_not_removed(site: Site, fork: Path, store: Path) -> None:
    run("--store", store, "mount", "base:1", "--rw", "--name", "one", site.mountpoint)
    run("fork", site.mountpoint, fork)
    run("umount", site.mountpoint)
    for command in (("rm", "--force", "one"), ("reset", "one")):
        told = run("--store", store, *command, status=1).stderr
        assert told == "overlayfs: forks of the container one are mounted: unmount them first\n"
    run("--store", store, "mount", "base:1", "--rw", "--name", "one", site.mountpoint)
    run("umount", site.mountpoint)
    assert (fork / "etc/a").read_text() == "a"
    run("umount", fork)
    run("--store", store, "rm", "one")
    assert not list((store / "containers").iterdir())


def test_check_of_an_upper_leaves_forks_alone(site: Site, fork: Path) -> None:
    site.mount(site.lower("low", {"": directory(), "a": file(b"low")}))
    run("fork", site.mountpoint, fork)
    run("umount", site.mountpoint)
    assert answer("check", site.upper, site.work, "--repair") == []
    (fork / "new").touch()
    assert run("diff", fork).stdout == "A /new\n"
