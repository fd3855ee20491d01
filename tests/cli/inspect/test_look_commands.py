"""`layers`, `tree`, `diff`, `cat`, `cp`, `waste` and `report` of images, as people run them."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from overlayfs.image.store.store import Store
from tests.cli.people import run
from tests.image.images import MTIME, Member, add_image, directory, symlink

FACTS = len("-rwxr-xr-x     0:0           10 B   3  ")

BASE = [
    directory("bin"),
    Member("bin/tool", data=b"#!/bin/sh\n", mode=0o4755),
    directory("etc"),
    Member("etc/passwd", data=b"root:x:0:0::/root:/bin/sh\n"),
    Member("etc/old.conf", data=b"old\n" * 1000, mtime=MTIME + 5),
    symlink("etc/escape", "/../../../../etc/passwd"),
    symlink("etc/loop", "loop"),
    directory("var"),
    directory("var/private", 0o000),
    Member("var/private/note", data=b"quiet"),
    Member("var/pipe", "p"),
    Member("bin/tool2", "h", target="bin/tool"),
]
MIDDLE = [
    Member("etc/passwd", data=b"root:x:0:0::/root:/bin/bash\n"),
    Member("etc/.wh.old.conf"),
    Member("etc/new.conf", data=b"new\n"),
]
TOP = [directory("var"), Member("var/.wh.private"), Member("bin/tool", data=b"#!/bin/sh\n", mode=0o755)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `demo` of three layers and `base` of the lowest one."""
    path = tmp_path_factory.mktemp("look") / "store"
    with Store.open(path) as opened:
        add_image(opened, "demo", BASE, MIDDLE, TOP, steps=["COPY base /", "RUN edit", "RUN \x1b[31mclean"])
        add_image(opened, "base", BASE)
    return path


def call(store: Path, *words: str | os.PathLike[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of the program."""
    status, shown, errors = call_raw(store, *words)
    return status, shown.decode(), errors


def call_raw(store: Path, *words: str | os.PathLike[str]) -> tuple[int, bytes, str]:
    """Exit status, output and errors of the program, run in this process: another for each call takes too long."""
    shown, errors = io.BytesIO(), io.StringIO()
    out = io.TextIOWrapper(shown, encoding="utf-8")
    argv = ["overlayfs", "--store", *(os.fspath(word) for word in (store, *words))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # typer's own use of click
        from overlayfs.cli.main import main
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.setattr(sys, "argv", argv)
        status = main()
    out.flush()
    return status, shown.getvalue(), errors.getvalue()


def look(store: Path, *words: str | os.PathLike[str], status: int = 0) -> str:
    found, shown, errors = call(store, *words)
    assert (found, errors) == (status, "")
    return shown


def answer(store: Path, *words: str) -> Any:
    return json.loads(look(store, *words, "--json"))


def complaint(store: Path, *words: str | os.PathLike[str]) -> str:
    status, _, error = call(store, *words)
    assert status == 1
    assert error.startswith("overlayfs: ") and error.count("\n") == 1
    assert "bug" not in error
    return error


def test_layers_of_an_image(store: Path) -> None:
    rows = answer(store, "layers", "demo")
    assert [(row["layer"], row["added"], row["modified"], row["deleted"]) for row in rows] == [
        (1, 12, 0, 0),
        (2, 1, 1, 1),
        (3, 0, 1, 2),
    ]
    assert [row["created_by"] for row in rows][:2] == ["COPY base /", "RUN edit"]
    assert all(row["diff_id"].startswith("sha256:") and row["stored"] > 0 for row in rows)


def test_layers_as_a_table_show_no_control_characters(store: Path) -> None:
    lines = look(store, "layers", "demo").splitlines()
    assert lines[0].split() == ["LAYER", "SIZE", "STORED", "ADDED", "MODIFIED", "DELETED", "CREATED", "BY"]
    assert lines[3].endswith(r"RUN \x1b[31mclean")


def test_layers_of_no_image(store: Path) -> None:
    assert "nothing" in complaint(store, "layers", "nothing")


def test_layers_of_a_path_asks_for_a_mount(store: Path, tmp_path: Path) -> None:
    assert "no overlayfs is mounted here" in complaint(store, "layers", tmp_path)


def test_tree(store: Path) -> None:
    lines = look(store, "tree", "demo").splitlines()
    assert [line[FACTS:] for line in lines][:4] == ["/", "├─ bin/", "│  ├─ tool", "│  └─ tool2"]
    assert "-rwxr-xr-x     0:0           10 B   3  │  ├─ tool" in lines
    assert lines[-1].endswith("└─ pipe")
    assert any(line.endswith("escape -> /../../../../etc/passwd") for line in lines)


def test_tree_of_one_path_and_depth(store: Path) -> None:
    assert [line[FACTS:] for line in look(store, "tree", "demo", "/bin").splitlines()] == [
        "/bin/",
        "├─ tool",
        "└─ tool2",
    ]
    assert len(look(store, "tree", "demo", "--depth", "1").splitlines()) == 4
    assert len(answer(store, "tree", "demo", "--depth", "1")) == 4


def test_tree_of_one_layer(store: Path) -> None:
    shown = {row["path"]: row["change"] for row in answer(store, "tree", "demo", "--layer", "2")}
    assert shown == {
        "/": None,
        "/etc": None,
        "/etc/new.conf": "added",
        "/etc/old.conf": "deleted",
        "/etc/passwd": "modified",
    }
    assert "D -rw-r--r--" in look(store, "tree", "demo", "--layer", "2")


@pytest.mark.parametrize("words", [("--layer", "4"), ("--layer", "0"), ("/no/such",)])
def test_tree_of_what_is_not_there(store: Path, words: tuple[str, ...]) -> None:
    complaint(store, "tree", "demo", *words)


def test_tree_tells_links_and_layers(store: Path) -> None:
    rows = {row["path"]: row for row in answer(store, "tree", "demo")}
    assert rows["/bin/tool2"]["links_to"] == "/bin/tool"
    assert (rows["/bin/tool"]["layer"], rows["/bin/tool2"]["layer"]) == (3, 1)
    assert rows["/bin/tool2"]["mode"] == "104755"


def test_the_program_itself(store: Path) -> None:
    assert run("--store", store, "cat", "demo:/etc/new.conf").stdout == "new\n"
    assert "Exit status: 0" in run("cp", "--help").stdout


def test_cat(store: Path) -> None:
    assert look(store, "cat", "demo:/etc/passwd", "base:/etc/passwd") == (
        "root:x:0:0::/root:/bin/bash\nroot:x:0:0::/root:/bin/sh\n"
    )


def test_cat_of_a_symlink_stays_in_the_image(store: Path) -> None:
    assert look(store, "cat", "base:/etc/escape") == "root:x:0:0::/root:/bin/sh\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demo:/etc", "directory"),
        ("demo:/var/pipe", "No regular file"),
        ("demo:/etc/loop", "symbolic links"),
        ("demo:/etc/old.conf", "No such file"),
        ("demo", "IMAGE:/PATH"),
        ("demo:etc/passwd", "IMAGE:/PATH"),
    ],
)
def test_cat_of_no_file(store: Path, name: str, words: str) -> None:
    assert words in complaint(store, "cat", name)


def test_cp_keeps_modes_times_and_links(store: Path, tmp_path: Path) -> None:
    look(store, "cp", "base:/", tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "etc/old.conf").read_bytes() == b"old\n" * 1000
    assert (out / "etc/old.conf").stat().st_mtime == MTIME + 5
    assert (out / "etc").stat().st_mtime == MTIME
    assert os.readlink(out / "etc/escape") == "/../../../../etc/passwd"
    assert os.lstat(out / "etc/escape").st_mtime == MTIME
    assert (out / "bin/tool").samefile(out / "bin/tool2")
    assert stat.S_IMODE((out / "bin/tool").stat().st_mode) == 0o755, "what is the caller's runs as nobody else"
    assert stat.S_ISFIFO((out / "var/pipe").stat().st_mode)
    assert stat.S_IMODE((out / "var/private").stat().st_mode) == 0
    assert not [path for path in out.rglob("*") if path.name.startswith(".overlayfs")]


def test_cp_names_its_copy_as_docker_does(store: Path, tmp_path: Path) -> None:
    look(store, "cp", "demo:/etc/passwd", tmp_path)
    look(store, "cp", "demo:/etc/passwd", tmp_path / "named")
    look(store, "cp", "demo:/etc", tmp_path)
    look(store, "cp", "demo:/etc/.", tmp_path)
    (tmp_path / "dir").mkdir()
    look(store, "cp", "demo:/bin/.", tmp_path / "dir")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert {"passwd", "named", "etc/passwd", "new.conf", "dir/tool"} <= found


def test_cp_of_a_symlink(store: Path, tmp_path: Path) -> None:
    look(store, "cp", "base:/etc/escape", tmp_path / "link")
    look(store, "cp", "-L", "base:/etc/escape", tmp_path / "file")
    assert os.readlink(tmp_path / "link") == "/../../../../etc/passwd"
    assert (tmp_path / "file").read_text() == "root:x:0:0::/root:/bin/sh\n"


def test_cp_to_standard_output_is_a_tar(store: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    status, tar, _ = call_raw(store, "cp", "base:/", "-")
    subprocess.run(["tar", "-xp", "--xattrs"], cwd=whole, input=tar, check=True)
    assert status == 0
    assert (whole / "bin/tool").samefile(whole / "bin/tool2")
    assert stat.S_IMODE((whole / "bin/tool").stat().st_mode) == 0o4755
    assert (whole / "etc/old.conf").stat().st_mtime == MTIME + 5
    listed = subprocess.run(["tar", "-t"], input=call_raw(store, "cp", "demo:/etc", "-")[1], stdout=-1, check=True)
    assert listed.stdout.split() == [b"etc/", b"etc/escape", b"etc/loop", b"etc/new.conf", b"etc/passwd"]


def test_cp_replaces_files_and_never_writes_through_a_symlink(store: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("safe")
    out = tmp_path / "out"
    (out / "etc").mkdir(parents=True)
    (out / "etc/passwd").symlink_to(canary)
    (out / "etc/new.conf").write_text("mine")
    look(store, "cp", "demo:/etc", out)
    assert canary.read_text() == "safe"
    assert (out / "etc/passwd").read_text() == "root:x:0:0::/root:/bin/bash\n"
    assert (out / "etc/new.conf").read_text() == "new\n"


def test_cp_does_not_enter_a_symlink_in_place_of_a_directory(store: Path, tmp_path: Path) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    out.mkdir()
    (out / "etc").symlink_to(elsewhere)
    assert "/etc: cannot be copied: Not a directory" in complaint(store, "cp", "demo:/etc", out)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("destination", ["no/such/place", "new/", "file/", "file"])
def test_cp_to_where_nothing_can_be(store: Path, tmp_path: Path, destination: str) -> None:
    (tmp_path / "file").write_text("x")
    what = "demo:/etc" if destination == "file" else "demo:/etc/passwd"
    complaint(store, "cp", what, f"{tmp_path}/{destination}")
    assert (tmp_path / "file").read_text() == "x"


def test_diff_of_images(store: Path) -> None:
    assert look(store, "diff", "base", "demo").splitlines() == [
        "M /bin/tool",
        "A /etc/new.conf",
        "D /etc/old.conf",
        "M /etc/passwd",
        "D /var/private/",
    ]
    assert look(store, "diff", "demo", "demo") == ""


def test_diff_of_images_in_other_forms(store: Path, tmp_path: Path) -> None:
    changes = {row["path"]: row for row in answer(store, "diff", "base", "demo")}
    assert changes["/bin/tool"]["aspects"] == ["mode"]
    assert (changes["/bin/tool"]["before"]["mode"], changes["/bin/tool"]["after"]["mode"]) == ("104755", "100755")
    assert "1 added, 2 modified, 2 deleted" in look(store, "diff", "--stat", "base", "demo")
    patch = look(store, "diff", "--patch", "base", "demo")
    look(store, "cp", "base:/", tmp_path / "base")
    subprocess.run(["patch", "-p1", "-s"], cwd=tmp_path / "base", input=patch, text=True, check=True)
    assert (tmp_path / "base/etc/passwd").read_text() == "root:x:0:0::/root:/bin/bash\n"
    assert not (tmp_path / "base/var/private/note").exists()


def test_waste(store: Path) -> None:
    found = answer(store, "waste", "demo")
    assert [(row["path"], row["size"], row["layers"], row["hidden_by"], row["how"]) for row in found["hidden"]] == [
        ("/etc/old.conf", 4000, [1], 2, "deleted"),
        ("/etc/passwd", 26, [1], 2, "replaced"),
        ("/var/private", 5, [1], 3, "deleted"),
    ], "the tool is still there under its other name"
    assert found["wasted"] == 4031
    assert found["efficiency"] == 1 - 4031 / found["total"] != found["dive_score"]
    last = look(store, "waste", "demo", "-n", "1").splitlines()[-1]
    assert last.endswith(f"wasted in 3 files; efficiency {found['efficiency']:.1%}")


def test_waste_as_a_check(store: Path) -> None:
    look(store, "waste", "demo", "--min-efficiency", "0.9", status=3)
    look(store, "waste", "base", "--min-efficiency", "1", status=0)


def test_report_is_written_at_once(store: Path, tmp_path: Path) -> None:
    look(store, "report", "demo", "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_bytes()
    assert page.startswith(b"<!doctype html>") and page.endswith(b"</html>\n")
    assert look(store, "report", "demo", "-o", "-").encode() == page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_report_to_where_nothing_can_be(store: Path, tmp_path: Path) -> None:
    place = tmp_path / "no" / "report.html"
    assert str(place) in complaint(store, "report", "demo", "-o", place)
