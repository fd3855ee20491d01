"""`mount -o remount,…` of a live mount."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.program import SILENT_SUCCESS, Place, installed, make_place
from tests.prepared import Done


@pytest.fixture
def place() -> Iterator[Place]:
    made = make_place(Path(tempfile.mkdtemp(prefix="overlayfs-remount-")))
    yield made
    made.clear()


def remount(place: Place, options: str) -> Done:
    return place.call("overlayfs", place.target, "-o", f"{options},remount")


def test_mount_8_remounts(place: Place) -> None:
    """It runs the program that the filesystem's type is named after."""
    with installed() as program:
        place.mount(f"subtype={program}", "nosuid")
        subprocess.run(["mount", "-o", "remount,ro", place.target], check=True)
        assert place.shown().options >= {"ro", "nosuid"}
        with pytest.raises(OSError, match="Read-only file system"):
            (place.target / "new").touch()
        subprocess.run(["mount", "-o", "remount,rw,noatime", place.target], check=True)
        assert place.shown().options >= {"rw", "nosuid", "noatime"}
        (place.target / "new").write_text("new\n")
    assert (place.base / "upper/new").read_text() == "new\n"


def test_program_for_people_is_what_mount_8_runs(place: Place) -> None:
    place.mount()
    words = ["overlayfs", str(place.target), "-o", "ro,remount,user_id=0,dev,suid"]
    command = [sys.executable, "-m", "overlayfs", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "ro" in place.shown().options


def test_flags_that_are_not_named_stay(place: Place) -> None:
    place.mount("nosuid", "noexec", "noatime")
    before = place.shown().options
    assert remount(place, "ro") == SILENT_SUCCESS
    assert place.shown().options == (before - {"rw"}) | {"ro"}
    assert remount(place, "rw") == SILENT_SUCCESS
    assert place.shown().options == before


def test_what_is_open_for_writing_cannot_become_read_only(place: Place) -> None:
    place.mount()
    with (place.target / "shared").open("a") as opened:
        done = remount(place, "ro")
        opened.write("more\n")
    reason = f"{place.target} cannot be remounted: files are open for writing"
    assert done == Done(1, "", f"overlayfs-mount: {reason}\n")
    assert (place.target / "shared").read_text() == "of the top\nmore\n"


@pytest.mark.parametrize("options", ["{options},ro", "lowerdir={base}/top:{base}/bottom"])
def test_what_was_mounted_read_only_stays_so(place: Place, options: str) -> None:
    text = options.format(options=place.options, base=place.base)
    assert place.call("-o", text, place.target) == SILENT_SUCCESS
    place.daemon()
    reason = f"{place.target} was mounted read-only: unmount it, and mount it again"
    assert remount(place, "rw") == Done(1, "", f"overlayfs-mount: {reason}\n")
    assert remount(place, "noexec") == SILENT_SUCCESS
    assert place.shown().options >= {"ro", "noexec"}


def test_layers_that_fstab_repeats_mean_nothing(place: Place) -> None:
    place.mount()
    assert remount(place, f"lowerdir={place.base}/bottom,ro") == SILENT_SUCCESS
    assert (place.target / "shared").read_text() == "of the top\n"


def test_where_nothing_of_ours_is_mounted(place: Place) -> None:
    reason = f"{place.target}: nothing of overlayfs is mounted here"
    assert remount(place, "ro") == Done(1, "", f"overlayfs-mount: {reason}\n")
    subprocess.run(["mount", "-t", "tmpfs", "none", place.target], check=True)
    assert remount(place, "ro") == Done(1, "", f"overlayfs-mount: {reason}\n")
    assert "rw" in place.shown().options


def test_ordinary_user_is_refused(place: Place) -> None:
    """As by the kernel: who may not mount may not remount."""
    place.mount()
    place.base.chmod(0o755)
    done = place.run("65534", place.target, "-o", "remount,ro", command=[sys.executable, "-c", AS_USER_REMOUNTING])
    assert (done.status, done.err) == (
        1,
        f"overlayfs-mount: {place.target} cannot be remounted: only root can do that\n",
    )
    assert "rw" in place.shown().options


AS_USER_REMOUNTING = """
import os, sys
import overlayfs.cli.mounts.remount
from overlayfs.cli.mount_program import main
user = int(sys.argv.pop(1))
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
sys.exit(main())
"""
