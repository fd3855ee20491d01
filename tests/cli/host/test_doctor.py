"""`overlayfs doctor`: its findings on this machine, and on machines that lack something."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.cli.host import checks
from overlayfs.cli.host.checks import State, all_checks, kernel_version
from overlayfs.cli.host.trial import kernel_s_first_request, mount_command, others_who_may_change, try_mount
from overlayfs.cli.mounts.live import CommandError, our_mounts
from overlayfs.fuse.abi import FUSE_INIT_EXT, FUSE_PASSTHROUGH, IN_HEADER, INIT_IN
from overlayfs.tree.mount_table import mount_entries
from tests.cli.people import answer, run
from tests.engines.podman import covered
from tests.mounted.program import open_device


def test_mount_works_on_this_machine() -> None:
    with open_device():
        found = answer("doctor")
    assert found["mount_works"]
    assert {check["name"]: check["state"] for check in found["checks"]} | {"mount program": "", "passthrough": ""} == {
        "kernel": "ok",
        "passthrough": "",
        "/dev/fuse": "ok",
        "fusermount3": "ok",
        "user namespaces": "ok",
        "subordinate ids": "ok",
        "xattrs": "ok",
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


@pytest.mark.parametrize(("flags", "state"), [(0, State.LIMITED), (FUSE_PASSTHROUGH, State.OK)])
def test_kernel_itself_says_whether_it_passes_data_through(
    monkeypatch: pytest.MonkeyPatch, flags: int, state: State
) -> None:
    """It can be built without."""
    request = bytes(IN_HEADER.size) + INIT_IN.pack(7, 40, 0, FUSE_INIT_EXT, flags >> 32)
    monkeypatch.setattr(checks, "_first_request", lambda: request)
    assert checks._passthrough().state is state
    assert checks._kernel().found.endswith(", FUSE 7.40")


def test_kernel_s_first_request_is_read_and_no_mount_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = mount_entries()
    major, _, _, low, _ = INIT_IN.unpack_from(kernel_s_first_request(), IN_HEADER.size)
    assert (major, low & FUSE_INIT_EXT) == (7, FUSE_INIT_EXT)
    assert mount_entries() == before
    assert os.listdir(tmp_path) == []


def test_device_that_only_root_may_open_is_a_limit(tmp_path: Path) -> None:
    device = tmp_path / "fuse"
    os.mknod(device, stat.S_IFCHR, os.makedev(10, 229))
    device.chmod(0o600)
    with covered("/dev/fuse", device):
        check = checks._device()
    assert check.state is State.LIMITED
    assert "chmod 666" in check.advice


@pytest.mark.parametrize("store", ["/proc/nothing", "/sys"])
def test_store_without_xattrs_is_a_limit(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.setattr(checks, "store_directory", lambda: Path(store))
    check = checks._store_xattrs()
    assert (check.state, "images cannot be stored" in check.cost) == (State.LIMITED, True)


def test_marks_that_cannot_be_written_are_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(checks, "store_directory", lambda: tmp_path / "not/yet/there")
    assert checks._store_xattrs().found.endswith(f"overlay.* in {tmp_path}")
    monkeypatch.setattr(os, "setxattr", refuse)
    assert checks._store_xattrs().state is State.LIMITED


@pytest.mark.parametrize(
    ("contents", "state"),
    [
        ({}, State.OK),
        ({"/sys/fs/selinux/enforce": "1"}, State.LIMITED),
        ({"/sys/module/apparmor/parameters/enabled": "Y", "/proc/self/attr/current": "unconfined"}, State.OK),
        ({"/sys/module/apparmor/parameters/enabled": "Y", "/proc/self/attr/current": "x (complain)"}, State.OK),
        ({"/sys/module/apparmor/parameters/enabled": "Y", "/proc/self/attr/current": "x (enforce)"}, State.LIMITED),
    ],
)
def test_security_module_in_the_way_is_named(
    monkeypatch: pytest.MonkeyPatch, contents: dict[str, str], state: State
) -> None:
    monkeypatch.setattr(checks, "_content", lambda path: contents.get(str(path), ""))
    check = checks._security_modules()
    assert (check.state, bool(check.advice)) == (state, state is not State.OK)


@pytest.mark.parametrize(("mode", "state"), [(0o700, State.LIMITED), (0o755, State.OK)])
def test_program_in_a_home_is_for_all_who_may_enter_it(
    monkeypatch: pytest.MonkeyPatch, new_home: Path, mode: int, state: State
) -> None:
    new_home.chmod(mode)
    monkeypatch.setattr(checks, "installed_program", lambda: new_home / "overlayfs-mount")
    monkeypatch.setattr(checks, "SYSTEM_PATH", str(new_home))
    assert checks._mount_program().state is state


@pytest.fixture
def new_home() -> Iterator[Path]:
    """A home with a mount program, below directories that all may enter."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        (Path(name) / "overlayfs-mount").symlink_to("/bin/true")
        yield Path(name)


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
