"""Layers of old and odd builders: every command shows the same tree, which is that of other tools."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.archive.load import save_directory
from overlayfs.image.store.store import Store
from overlayfs.tree.syscalls import unmount
from tests.cli.people import answer, run
from tests.image.making import put
from tests.image.tars import directory, file, link, tar

NAME = "odd:1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("OVERLAYFS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    yield tmp_path
    while os.path.ismount(mountpoint):
        unmount(os.fsencode(mountpoint), lazy=True)


def keep(home: Path, *layers: bytes) -> None:
    with Store.open(home / "store") as store:
        put(store, NAME, *layers)


def tree_of(place: Path) -> dict[str, bytes | None]:
    """The paths below, with what is in files."""
    return {str(path.relative_to(place)): path.read_bytes() if path.is_file() else None for path in place.rglob("*")}


def mounted(home: Path, *words: str) -> dict[str, bytes | None]:
    run("mount", *words, home / "mnt")
    try:
        return tree_of(home / "mnt")
    finally:
        run("umount", home / "mnt")


def exported(home: Path, name: str) -> dict[str, bytes | None]:
    run("export", name, "-o", home / "root.tar")
    with tarfile.open(home / "root.tar") as archive:
        members = {os.path.normpath(member.name): archive.extractfile(member) for member in archive.getmembers()}
    del members["."]
    with tarfile.open(home / "root.tar") as archive:
        return {name: None if members[name] is None else read(archive, name) for name in members}


def read(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    assert stream is not None
    return stream.read()


def listed(name: str) -> set[str]:
    return {node["path"].lstrip("/") for node in answer("tree", name)} - {""}


def by_umoci(home: Path) -> dict[str, bytes | None]:
    with Store.open(home / "store") as store:
        save_directory(store, [store.find(NAME)], home / "layout")
    command = ["umoci", "raw", "unpack", "--image", f"{home}/layout:docker.io/library/{NAME}", str(home / "umoci")]
    subprocess.run(command, check=True, capture_output=True)
    return tree_of(home / "umoci")


def check_all_agree(home: Path, expected: dict[str, bytes | None]) -> None:
    assert mounted(home, NAME) == expected
    assert mounted(home, "--rw", "--name", "box", NAME) == expected
    assert exported(home, NAME) == expected
    assert listed(NAME) == set(expected)
    for path, content in expected.items():
        if content is not None:
            assert run("cat", f"{NAME}:/{path}").stdout.encode() == content
    run("squash", NAME, "squashed:1")
    assert run("diff", NAME, "squashed:1").stdout == ""
    assert mounted(home, "squashed:1") == expected
    assert run("verify").stdout == ""


def test_opaque_root_hides_all_layers_below(home: Path) -> None:
    """OCI image specification, layer.md, Opaque Whiteout; the root is a directory as others are."""
    keep(
        home,
        tar(directory(b"c"), file(b"c/old", b"o"), file(b"z", b"z")),
        tar(file(b"y", b"y"), directory(b"c"), file(b"c/new", b"n"), file(b".wh..wh..opq")),
        tar(directory(b"c"), file(b"c/newer", b"m")),
    )
    expected = {"y": b"y", "c": None, "c/new": b"n", "c/newer": b"m"}
    check_all_agree(home, expected)
    assert by_umoci(home) == expected
    assert [layer["deleted"] for layer in answer("layers", NAME)] == [0, 2, 0]


def test_committed_change_of_an_opaque_root_stays_on_top(home: Path) -> None:
    keep(home, tar(file(b"z", b"z")), tar(file(b".wh..wh..opq"), file(b"n", b"n")))
    run("mount", "--rw", "--name", "box", NAME, home / "mnt")
    (home / "mnt" / "new").write_bytes(b"1")
    (home / "mnt" / "n").unlink()
    run("umount", home / "mnt")
    assert run("diff", "box").stdout == "D /n\nA /new\n"
    run("commit", "box", "odd:2")
    assert mounted(home, "odd:2") == {"new": b"1"}


def test_hard_links_through_the_directory_of_aufs(home: Path) -> None:
    """What docker 1.9 wrote on AUFS: the file in `.wh..wh.plnk`, and its names as links to it."""
    keep(
        home,
        tar(
            directory(b"c"),
            directory(b".wh..wh.plnk", 0o700),
            file(b".wh..wh.plnk/12.34", b"data", mode=0o640),
            file(b".wh..wh.plnk/56.78", b"unused"),
            link(b"c/y", b".wh..wh.plnk/12.34"),
            link(b"c/z", b".wh..wh.plnk/12.34"),
        ),
    )
    check_all_agree(home, {"c": None, "c/y": b"data", "c/z": b"data"})
    run("mount", NAME, home / "mnt")
    first, second = (home / "mnt/c" / name for name in "yz")
    assert first.samefile(second)
    assert (first.stat().st_mode & 0o777, first.stat().st_nlink) == (0o640, 2)
