"""An image with a large sparse file is written so that every command can read it, and takes no disk for the holes."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.tree.syscalls import unmount
from tests.cli.people import run
from tests.image.registry.docker_registry import docker_registry

SIZE = 300 << 20
"""As zeros it compresses to less than a thousandth."""
DATA = {0: b"start", 100 << 20: b"middle", SIZE - 3: b"end"}
PATH = "var/log/lastlog"


def digest_of_content() -> str:
    hashed, position = hashlib.sha256(), 0
    for offset, data in DATA.items():
        hashed.update(bytes(offset - position) + data)
        position = offset + len(data)
    return hashed.hexdigest()


CONTENT = digest_of_content()


def make_sparse(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        for offset, data in DATA.items():
            file.seek(offset)
            file.write(data)


def check_file(path: Path) -> None:
    with open(path, "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == CONTENT


def taken(directory: Path) -> int:
    """Bytes of disk."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OVERLAYFS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def mountpoint(home: Path) -> Iterator[Path]:
    path = home / "mnt"
    path.mkdir()
    yield path
    while os.path.ismount(path):
        unmount(os.fsencode(path), lazy=True)


@pytest.fixture
def committed(home: Path) -> str:
    """A base, and a layer with the file on it."""
    (home / "base").mkdir()
    make_sparse(home / "upper" / PATH)
    run("import", home / "base", "base:1")
    run("commit", home / "upper", "sparse:1", "--base", "base:1")
    return "sparse:1"


def test_committed_image_is_used_by_every_command(home: Path, mountpoint: Path, committed: str) -> None:
    run("mount", committed, mountpoint)
    check_file(mountpoint / PATH)
    run("umount", mountpoint)
    assert taken(home / "store") < SIZE // 50
    for words in (("layers",), ("tree",), ("report", "-o", home / "page.html"), ("waste",)):
        run(*words, committed)
    run("cp", f"{committed}:/{PATH}", home / "copy")
    check_file(home / "copy")
    assert taken(home / "copy") < SIZE // 50
    run("squash", committed, "squashed:1")
    run("cp", f"squashed:1:/{PATH}", home / "copy")
    check_file(home / "copy")
    assert run("verify").stdout == ""


def test_export_is_imported_and_appended(home: Path, committed: str) -> None:
    run("export", committed, "-o", home / "root.tar")
    with tarfile.open(home / "root.tar") as archive:
        assert archive.getmember(PATH).size == SIZE
    run("import", home / "root.tar", "imported:1")
    run("append", "base:1", home / "root.tar", "appended:1")
    run("append", "base:1", home / "upper", "appended:2")
    for name in ("imported:1", "appended:1", "appended:2"):
        run("cp", f"{name}:/{PATH}", home / "copy")
        check_file(home / "copy")
    assert run("verify").stdout == ""


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_saved_image_is_loaded_elsewhere(home: Path, committed: str, kind: str) -> None:
    run("save", "--format", kind, "-q", "-o", home / "saved.tar", committed)
    other = ("--store", home / "other")
    run(*other, "load", "-q", "-i", home / "saved.tar")
    run(*other, "cp", f"{committed}:/{PATH}", home / "copy")
    check_file(home / "copy")
    assert taken(home / "other") < SIZE // 50
    assert run(*other, "verify").stdout == ""


def test_pushed_image_is_pulled_elsewhere(home: Path, committed: str) -> None:
    (home / "registry").mkdir()
    with docker_registry(home / "registry") as registry:
        name = f"{registry.name}/sparse:1"
        run("push", "-q", "--insecure", committed, name)
        run("--store", home / "other", "pull", "-q", "--insecure", name)
    run("--store", home / "other", "cp", f"{name}:/{PATH}", home / "copy")
    check_file(home / "copy")


@pytest.mark.parametrize("command", ["commit", "append"])
def test_layer_that_could_not_be_read_is_not_written(home: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 times the limit with the holes; they alone are refused here, as the data are a few bytes."""
    (home / "base").mkdir()
    make_sparse(home / "upper" / PATH)
    run("import", home / "base", "base:1")
    monkeypatch.setenv("OVERLAYFS_LAYER_LIMIT", "10M")
    base = ("--base", "base:1") if command == "commit" else ("base:1",)
    words = (command, *base, home / "upper", "sparse:1")
    error = run(*words, status=1).stderr
    assert PATH in error and "OVERLAYFS_LAYER_LIMIT raises it" in error
    assert "sparse" not in run("images").stdout
    monkeypatch.setenv("OVERLAYFS_LAYER_LIMIT", "20M")
    run(*words)
    run("cp", f"sparse:1:/{PATH}", home / "copy")
    monkeypatch.setenv("OVERLAYFS_LAYER_LIMIT", "many")
    assert "no size" in run("images", status=1).stderr
