"""`overlayfs doctor`: its findings on this machine, and on machines that lack something."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from overlayfs.cli.host import checks
from overlayfs.cli.host.checks import State, all_checks, kernel_version
from overlayfs.cli.host.trial import mount_command, others_who_may_change, try_mount
from overlayfs.cli.mounts.live import CommandError, our_mounts
from tests.cli.people import answer, run
from tests.engines.podman import covered


def test_mount_works_on_this_machine() -> None:
    found = answer("doctor")
    assert found["mount_works"]
    assert {check["name"]: check["state"] for check in found["checks"]} | {"mount program": "", "passthrough": ""} == {
        "kernel": "ok",
        "passthrough": "",
        "/dev/fuse": "ok",
        "fusermount3": "ok",
        "user namespaces": "ok",
        "subordinate ids": "ok",
        "security modules": "ok",
        "mount program": "",
        "trial mount": "ok",
    }
    assert "trial mount" in run("doctor").stdout


def test_status_says_that_no_mount_works() -> None:
    with covered("/dev/fuse", Path("/dev/null")):
        found = json.loads(run("doctor", "--json", environ={}, status=3).stdout)
    assert not found["mount_works"]
    assert found["checks"][-1]["state"] == "bad"


def test_trial_leaves_no_mount_and_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = our_mounts()
    try_mount(mount_command())
    assert our_mounts() == before
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("program", ["/bin/true", "/bin/false", "/nowhere/overlayfs-mount"])
def test_trial_by_a_program_that_mounts_nothing_fails(program: str) -> None:
    with pytest.raises(CommandError):
        try_mount([program])


def test_every_finding_that_is_not_ok_has_its_cost() -> None:
    assert [check for check in all_checks() if check.state is not State.OK and not check.cost] == []


@pytest.mark.parametrize(
    ("settings", "found", "advice"),
    [
        ({"user/max_user_namespaces": "0"}, "user.max_user_namespaces is 0", "user.max_user_namespaces="),
        ({"kernel/unprivileged_userns_clone": "0"}, "kernel.unprivileged_userns_clone is 0", "userns_clone=1"),
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, "AppArmor allows", "restrict_unprivileged_userns=0"),
    ],
)
def test_setting_that_forbids_user_namespaces_is_named(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], found: str, advice: str
) -> None:
    monkeypatch.setattr(checks, "_setting", lambda name: settings.get(name, ""))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check = checks._user_namespaces()
    assert check.state is State.LIMITED
    assert found in check.found
    assert advice in check.advice


def test_user_without_a_name_learns_why_fusermount_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    check = checks._fusermount()
    assert check.state is State.BAD
    assert "4711" in check.found
    assert "/etc/passwd" in check.advice


@pytest.mark.parametrize(
    ("release", "version"), [("6.18.44-fc", (6, 18)), ("5.6", (5, 6)), ("6.1.0-18-amd64", (6, 1)), ("odd", (0, 0))]
)
def test_version_of_a_kernel(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


def test_program_that_others_may_change_is_noticed(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.touch(0o755)
    assert others_who_may_change(program) is None
    program.chmod(0o775)
    assert others_who_may_change(program) == program
    program.chmod(0o755)
    os.chown(tmp_path, 1000, 0)
    assert others_who_may_change(program) == tmp_path
    os.chown(tmp_path, 0, 0)
