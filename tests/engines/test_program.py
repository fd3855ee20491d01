"""The mount program installed in a home: other users run it with no environment, and mount(8) finds it by a link."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engines.conftest import USER
from tests.engines.podman import covered

PACKAGE = Path(__file__).resolve().parents[2] / "overlayfs"
PATIENCE_S = 60


@pytest.fixture(scope="module")
def program(machine: Path) -> Iterator[Path]:
    """As pip installs it into a virtual environment; the packages are those of this environment."""
    home = machine / "home"
    venv, packages = home / "venv", home / "packages"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=PATIENCE_S)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    for path in (packages, site / "overlayfs"):
        path.mkdir()
    script = venv / "bin/overlayfs-mount"
    text = (PACKAGE / "cli/bin/overlayfs-mount").read_text()
    script.write_text(text.replace("#!python", f"#!{venv}/bin/python"))
    script.chmod(0o755)
    with ExitStack() as stack:
        stack.enter_context(covered(packages, Path(sysconfig.get_path("purelib")), read_only=True))
        stack.enter_context(covered(site / "overlayfs", PACKAGE, read_only=True))
        yield script


def layers(top: Path, owner: int) -> tuple[str, Path]:
    """Options and a mountpoint for a small tree."""
    for name in ("", "lower", "upper", "work", "mnt"):
        (top / name).mkdir()
        os.chown(top / name, owner, owner)
    (top / "lower/file").write_text("low")
    return f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work", top / "mnt"


def run(*words: str | Path, user: int = 0) -> str:
    done = subprocess.run(
        words,
        env={},
        cwd="/",
        user=user,
        group=user,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_user_runs_it_without_a_path(program: Path, machine: Path) -> None:
    options, point = layers(machine / "user-s", USER)
    run(program, "-o", options, point, user=USER)
    try:
        assert f"{point} fuse.overlayfs" in Path("/proc/self/mounts").read_text()
    finally:
        run("/usr/bin/fusermount3", "-u", point, user=USER)


def test_doctor_of_another_user_finds_that_mounts_work(program: Path) -> None:
    found = json.loads(run(program.with_name("python"), "-m", "overlayfs.cli.main", "doctor", "--json", user=USER))
    assert found["mount_works"]
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert (states["fusermount3"], states["subordinate ids"], states["passthrough"]) == ("ok", "ok", "limited")


def test_mount_finds_it_by_a_link_in_usr_local_bin(program: Path, machine: Path) -> None:
    options, point = layers(machine / "root-s", 0)
    links = machine / "links"
    links.mkdir()
    (links / "overlayfs-mount").symlink_to(program)
    with covered("/usr/local/bin", links):
        run("/usr/bin/mount", "-t", "fuse.overlayfs-mount", "any", point, "-o", options)
    try:
        assert (point / "file").read_text() == "low"
    finally:
        run("/usr/bin/umount", point)
