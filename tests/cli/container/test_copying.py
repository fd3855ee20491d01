"""`overlayfs cp` between this machine and a container, running or not, friendly or not."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from overlayfs.tree.mount_table import mount_entries
from tests.cli.container.shop import Shop
from tests.cli.people import COMMAND
from tests.container.small import image_of, link, small_image
from tests.prepared import Prepared

ENDLESS = "while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path = tmp_path_factory.mktemp("shop") / "store"
    with Store.open(path) as store:
        unpack_image(store, small_image(store))
        files: dict[str, bytes | tarfile.TarInfo] = {"d/f": b"f\n", "d/sub/g": b"g\n", "secret": b"of the image\n"}
        for name, target in (("out", "/secret"), ("up", "../../../../secret"), ("dir", "/tmp")):
            files[f"d/{name}"] = link(f"d/{name}", target)
        image_of(store, "linked", RunConfig(cmd=["sh"]), files, base=store.find("small"))
    with Prepared() as prepared:
        yield Shop(path, prepared)


@pytest.fixture(params=["stopped", "running"])
def box(shop: Shop, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """A container `box`, whose links lead to paths that this machine has too."""
    before = {entry.mount_id for entry in mount_entries()}
    if request.param == "running":
        shop.run("run", "-d", "--name", "box", "linked", "sh", "-c", ENDLESS)
    else:
        shop.run("run", "--name", "box", "linked", "sh", "-c", "exit 3", status=3)
    yield shop
    shop.run("rm", "-f", "box")
    assert {entry.mount_id for entry in mount_entries()} <= before


def seen(shop: Shop, script: str) -> str:
    """What a script sees in the container afterwards."""
    if shop.answer("inspect", "box")[0]["State"]["Running"]:
        return shop.run("exec", "box", "sh", "-c", script)
    assert shop.answer("inspect", "box")[0]["State"]["ExitCode"] == 3  # cp does not count as a run
    return shop.run("run", "--name", "box", "linked", "sh", "-c", f"{script}; exit 3", status=3)


def test_files_and_directories_are_copied_out(box: Shop, tmp_path: Path) -> None:
    box.run("cp", "box:/d", tmp_path)
    assert sorted(os.listdir(tmp_path / "d")) == ["dir", "f", "out", "sub", "up"]
    assert os.readlink(tmp_path / "d/out") == "/secret"
    box.run("cp", "box:d/f", tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b"f\n"
    box.run("cp", "box:/d/.", tmp_path / "fresh")
    assert (tmp_path / "fresh/sub/g").read_bytes() == b"g\n"
    assert box.refuses("cp", "box:/absent", tmp_path) == "overlayfs: box:/absent: No such file or directory\n"


def test_setuid_counts_for_its_owner_only(box: Shop, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"x")
    os.chown(program, 33, 33)
    program.chmod(0o6755)
    box.run("cp", program, "box:/plain")
    box.run("cp", "-a", program, "box:/kept")
    assert seen(box, "stat -c '%a %u' /plain /kept") == "755 0\n6755 33\n"
    box.run("cp", "box:/kept", tmp_path / "out")
    box.run("cp", "-a", "box:/kept", tmp_path / "same")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "same").stat().st_mode) == 0o6755


def test_link_is_followed_within_the_container_only(box: Shop, tmp_path: Path) -> None:
    Path("/secret").unlink(missing_ok=True)
    for name in ("out", "up"):
        box.run("cp", "-L", f"box:/d/{name}", tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"of the image\n"


def test_files_and_directories_are_copied_in(box: Shop, tmp_path: Path) -> None:
    (tmp_path / "t/sub").mkdir(parents=True)
    (tmp_path / "t/sub/h").write_text("h\n")
    os.chown(tmp_path / "t/sub/h", 33, 44)
    (tmp_path / "t/sub/h").chmod(0o640)
    box.run("cp", tmp_path / "t", "box:/tmp")
    box.run("cp", f"{tmp_path}/t/.", "box:/opt")
    box.run("cp", "-a", tmp_path / "t/sub/h", "box:/d/f")
    assert seen(box, "cat /tmp/t/sub/h /opt/sub/h /d/f; stat -c %u:%g:%a /tmp/t/sub/h /d/f") == (
        "h\nh\nh\n0:0:640\n33:44:640\n"
    )


def test_nothing_is_written_through_links_of_the_container_to_this_machine(box: Shop, tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}"
    (tmp_path / mark).write_text("x\n")
    (tmp_path / "tree/dir").mkdir(parents=True)
    (tmp_path / f"tree/dir/{mark}").write_text("y\n")
    box.run("cp", tmp_path / mark, "box:/d/dir")
    box.run("cp", tmp_path / mark, "box:/d/out")
    assert not Path("/tmp", mark).exists() and not Path("/secret").exists()
    assert seen(box, f"cat /tmp/{mark}; cat /secret") == "x\nof the image\n"


def test_tar_goes_out_and_in(box: Shop) -> None:
    words = [*COMMAND, "--store", str(box.store), "cp"]
    out = subprocess.run([*words, "box:/d/sub", "-"], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert sorted(tar.getnames()) == ["sub", "sub/g"]
        assert {member.uname for member in tar} == {""}
    subprocess.run([*words, "-", "box:/tmp"], input=out, capture_output=True, check=True)
    assert seen(box, "cat /tmp/sub/g") == "g\n"


def test_hostile_tar_stays_in_the_container(box: Shop) -> None:
    buffer, mark = io.BytesIO(), f"mark-{os.getpid()}"
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(f"../../../../tmp/{mark}")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"z\n"))
    words = [*COMMAND, "--store", str(box.store), "cp", "-", "box:/d"]
    subprocess.run(words, input=buffer.getvalue(), capture_output=True, check=True)
    assert not Path("/tmp", mark).exists()
    assert seen(box, f"cat /tmp/{mark}") == "z\n"


def test_what_cannot_be_copied_is_refused(box: Shop, tmp_path: Path) -> None:
    assert "not between two containers" in box.refuses("cp", "box:/d", "box:/e")
    assert "does not exist" in box.refuses("cp", tmp_path / "absent", "box:/d")
    assert "is no directory" in box.refuses("cp", "box:/d", tmp_path / "absent/place")


def test_file_and_directory_do_not_replace_each_other(box: Shop, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept\n")
    refused: list[tuple[Path | str, Path | str]] = [
        ("box:/d/sub", kept),  # a directory over a file
        ("box:/d/f", f"{kept}/"),
        ("box:/d/f", f"{tmp_path}/absent/"),
        ("box:/d/f/", tmp_path),
        (tmp_path, "box:/d/f"),
        (kept, "box:/d/f/"),
        (kept, "box:/absent/"),
        (f"{kept}/", "box:/d"),
    ]
    for words in refused:
        assert " is no directory" in box.refuses("cp", *words)
    assert kept.read_text() == "kept\n" and os.listdir(tmp_path) == ["kept"]
    assert seen(box, "cat /d/f; ls -d /absent 2>/dev/null || true") == "f\n"


def test_directory_replaces_no_file_or_link_in_the_destination(box: Shop, tmp_path: Path) -> None:
    kept, linked = tmp_path / "kept", tmp_path / "linked"
    (kept / "d").mkdir(parents=True)
    (kept / "d/sub").write_text("kept\n")
    linked.mkdir()
    (linked / "d").symlink_to(kept)
    for words in (("box:/d", kept), ("box:/d/sub", kept / "d"), ("box:/d/.", kept / "d"), ("box:/d", linked)):
        assert "no directory on this machine" in box.refuses("cp", *words)
    assert (kept / "d/sub").read_text() == "kept\n" and os.listdir(kept) == ["d"]
    assert (linked / "d").readlink() == kept


@pytest.mark.parametrize("words", [("box:/d", ""), ("", "box:/d")])
def test_path_of_this_machine_is_not_empty(words: tuple[str, str], box: Shop) -> None:
    assert "needs a path" in box.refuses("cp", *words)


def test_tar_needs_a_directory_that_is_there(box: Shop) -> None:
    assert "a tar needs a directory" in box.refuses("cp", "-", "box:/absent")


def test_links_of_this_machine_are_followed_if_wanted(box: Shop, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/h").write_text("h\n")
    (tmp_path / "file").symlink_to("t/h")
    (tmp_path / "directory").symlink_to("t")
    box.run("cp", tmp_path / "file", "box:/tmp/same")
    box.run("cp", "-L", tmp_path / "file", "box:/tmp")
    box.run("cp", f"{tmp_path}/directory/", "box:/tmp")
    assert seen(box, "test -L /tmp/same && cat /tmp/file /tmp/directory/h") == "h\nh\n"
