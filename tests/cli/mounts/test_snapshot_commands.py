"""`snapshot`, `snapshots`, `rollback`, and `diff` and `commit` with snapshots, as people run them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.make import commit as mutate
from overlayfs.image.make.commit import Making
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.lowers import lower_directories
from overlayfs.image.store.store import Store
from tests.cli.people import Site, answer, run
from tests.contract.tree import build, directory, file


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the image base:1."""
    build(os.fsencode(tmp_path / "base"), {"": directory(), "etc/a": file(b"a"), "etc/b": file(b"b")})
    with Store.open(tmp_path / "store") as store:
        mutate.append(store, None, tmp_path / "base", Reference.parse("base:1"), Making(created_by="a test"))
    return tmp_path / "store"


@pytest.fixture
def mounted(site: Site, store: Path) -> Site:
    """The image, with a change before `first`, one before `second`, and one since."""
    with Store.open(store) as opened:
        site.mount(*lower_directories(opened, opened.find("base:1")))
    etc = site.mountpoint / "etc"
    (etc / "a").write_bytes(b"changed")
    run("snapshot", site.mountpoint, "first")
    (etc / "b").unlink()
    run("snapshot", site.mountpoint, "second")
    (etc / "c").write_bytes(b"new")
    return site


def diff(site: Site, *options: str) -> list[str]:
    return run("diff", site.mountpoint, *options).stdout.splitlines()


def refusal(*arguments: str | Path) -> str:
    told = run(*arguments, status=1).stderr
    assert told.count("\n") == 1
    return told


def test_snapshots_are_listed_from_the_oldest(mounted: Site) -> None:
    assert [one["snapshot"] for one in answer("snapshots", mounted.mountpoint)] == ["first", "second"]


def test_rollback_brings_the_state_back(mounted: Site) -> None:
    run("rollback", mounted.mountpoint, "first")
    assert diff(mounted) == ["M /etc/a"]
    assert [one["snapshot"] for one in answer("snapshots", mounted.mountpoint)] == ["first"]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ((), ["M /etc/a", "D /etc/b", "A /etc/c"]),
        (("--from", "first"), ["D /etc/b", "A /etc/c"]),
        (("--to", "second"), ["M /etc/a", "D /etc/b"]),
        (("--from", "first", "--to", "second"), ["D /etc/b"]),
        (("--from", "second"), ["A /etc/c"]),
    ],
)
def test_diff_between_snapshots(mounted: Site, options: tuple[str, ...], changes: list[str]) -> None:
    assert diff(mounted, *options) == changes


def test_diff_between_snapshots_compares_content(mounted: Site) -> None:
    (mounted.mountpoint / "etc/a").write_bytes(b"changed again")
    run("snapshot", mounted.mountpoint, "third")
    (change,) = answer("diff", mounted.mountpoint, "--from", "second", "--to", "third")[:1]
    sizes = change["before"]["size"], change["after"]["size"]
    assert (change["path"], sizes) == ("/etc/a", (len(b"changed"), len(b"changed again")))


def test_commit_of_a_snapshot_has_its_state(mounted: Site, store: Path) -> None:
    run("--store", store, "commit", f"{mounted.mountpoint}@first", "app:1")
    run("--store", store, "commit", f"{mounted.mountpoint}@second", "app:2")
    run("--store", store, "commit", mounted.mountpoint, "app:3")

    def tree(image: str) -> set[str]:
        return set(run("--store", store, "tree", image).stdout.split()) & {"a", "b", "c"}

    assert [tree(image) for image in ("app:1", "app:2", "app:3")] == [{"a", "b"}, {"a"}, {"a", "c"}]
    assert run("--store", store, "cat", "app:1:/etc/a").stdout == "changed"


def test_export_of_a_container_has_what_came_before_and_after_a_snapshot(site: Site, store: Path) -> None:
    run("--store", store, "mount", "base:1", "--rw", "--name", "box", site.mountpoint)
    (site.mountpoint / "etc/a").unlink()
    (site.mountpoint / "before").touch()
    run("snapshot", site.mountpoint, "first")
    (site.mountpoint / "after").touch()
    run("--store", store, "export", "box", "-o", site.top / "box.tar")
    with tarfile.open(site.top / "box.tar") as tar:
        assert set(tar.getnames()) - {"."} == {"before", "after", "etc", "etc/b"}


def test_commit_takes_a_mountpoint_with_an_at_sign_as_it_is(site: Site, store: Path) -> None:
    with Store.open(store) as opened:
        lowers = lower_directories(opened, opened.find("base:1"))
    site.mountpoint = site.mountpoint.rename(site.top / "mnt@first")
    site.mount(*lowers)
    run("snapshot", site.mountpoint, "first")
    (site.mountpoint / "new").touch()
    for source, added in ((site.mountpoint, 1), (f"{site.mountpoint}@first", 0)):
        assert answer("--store", store, "commit", source, "app:1")["added"] == added


@pytest.mark.parametrize("option", ["--from", "--to"])
def test_diff_says_which_snapshots_there_are(mounted: Site, option: str) -> None:
    told = refusal("diff", mounted.mountpoint, option, "third")
    assert told == "overlayfs: there is no snapshot 'third', but first, second\n"


def test_commit_says_which_snapshots_there_are(mounted: Site, store: Path) -> None:
    told = refusal("--store", store, "commit", f"{mounted.mountpoint}@third", "app:1")
    assert told == "overlayfs: there is no snapshot 'third', but first, second\n"
    assert len(answer("--store", store, "images")) == 1


def test_diff_from_a_later_to_an_earlier_snapshot_is_refused(mounted: Site) -> None:
    told = refusal("diff", mounted.mountpoint, "--from", "second", "--to", "first")
    assert told == "overlayfs: snapshot second is not older than snapshot first\n"


def test_mount_without_snapshots_has_none_to_compare(site: Site) -> None:
    site.mount(site.lower("low", {"a": file(b"")}))
    assert refusal("diff", site.mountpoint, "--from", "a") == "overlayfs: there is no snapshot 'a'\n"


def test_reset_of_a_live_mount_drops_changes_and_snapshots(mounted: Site, store: Path) -> None:
    run("--store", store, "reset", mounted.mountpoint)
    assert (diff(mounted), answer("snapshots", mounted.mountpoint)) == ([], [])
    assert (mounted.mountpoint / "etc/a").read_bytes() == b"a"
    (mounted.mountpoint / "etc/d").touch()
    assert diff(mounted) == ["A /etc/d"]


def test_reset_takes_a_mountpoint_as_the_other_commands_do(
    mounted: Site, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = mounted.top / "absent"
    run("--store", absent, "reset", mounted.mountpoint)
    assert diff(mounted) == [] and not absent.exists()
    (mounted.mountpoint / "etc/d").touch()
    monkeypatch.chdir(mounted.top)
    run("--store", store, "reset", mounted.mountpoint.name)
    assert diff(mounted) == []
    assert refusal("reset", "./store") == f"overlayfs: {store}: no overlayfs is mounted here\n"


def test_refusal_is_one_line_whatever_the_mountpoint_is_called(site: Site) -> None:
    site.mountpoint = site.mountpoint.rename(site.top / "two\nlines\33[31m")
    site.mount(site.lower("low", {"sub": directory()}))
    assert r"two\nlines\x1b[31m: there is no snapshot none" in refusal("rollback", site.mountpoint, "none")


def test_words_of_snapshot_rm_are_counted(mounted: Site) -> None:
    for words in ((), (mounted.mountpoint,)):
        assert "give rm MNT NAME" in run("snapshot", "rm", *words, status=2).stderr


def test_reset_lets_a_program_run_in_the_tree_and_rollback_says_who(mounted: Site, store: Path) -> None:
    python = "import os,sys; os.chroot(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", python, str(mounted.mountpoint)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        told = refusal("rollback", mounted.mountpoint)
        assert f"process {process.pid} (" in told and "runs in the tree; stop it first" in told
        run("--store", store, "reset", mounted.mountpoint)
        process.stdin.close()
    assert diff(mounted) == []


def test_snapshots_belong_to_mounts(site: Site, store: Path) -> None:
    assert "snapshots of a mount" in refusal("diff", site.upper, "--from", "a")
    assert "no overlayfs is mounted here" in refusal("--store", store, "commit", f"{site.upper}@a", "app:1")
    run("--store", store, "diff", "base:1", "base:1", "--from", "a", status=2)


def test_dropped_snapshots_are_listed_no_more_and_the_tree_stays(mounted: Site) -> None:
    run("snapshot", "rm", mounted.mountpoint, "first")
    assert "no snapshot first" in refusal("rollback", mounted.mountpoint, "first")
    assert [one["snapshot"] for one in answer("snapshots", mounted.mountpoint)] == ["second"]
    assert (mounted.mountpoint / "etc/c").read_bytes() == b"new"
    run("rollback", "--drop", mounted.mountpoint, "second")
    assert answer("snapshots", mounted.mountpoint) == []
    assert os.listdir(mounted.mountpoint / "etc") == ["a"]
    run("snapshot", "rm", mounted.mountpoint, "x", "y", status=2)


def test_layers_and_which_know_the_layers_of_snapshots(mounted: Site) -> None:
    layers = answer("layers", mounted.mountpoint)
    assert [layer["role"] for layer in layers] == ["upper", "snapshot", "snapshot", "lower"]
    told = {name: answer("which", mounted.mountpoint / "etc" / name, status=name == "b")[0] for name in "abc"}
    assert [told[name]["provider"] for name in "abc"] == [2, None, 0]
    assert told["b"]["deleted_by"] == 1
    for found in told["a"]["layers"]:
        assert found["directory"] == layers[found["layer"]]["directory"]
        assert (Path(found["directory"]) / found["path"]).is_file()


def test_which_names_the_index_of_a_snapshot(site: Site, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/one").write_text("x")
    os.link(tmp_path / "linked/one", tmp_path / "linked/two")
    site.mount(tmp_path / "linked")
    (site.mountpoint / "one").write_text("changed")
    run("snapshot", site.mountpoint, "a")
    (found,) = answer("which", site.mountpoint / "two")
    provider = found["layers"][0]
    assert (found["provider"], provider["role"]) == (1, "provides")
    assert (Path(provider["directory"]) / provider["path"]).read_text() == "changed"
