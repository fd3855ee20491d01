"""`overlayfs setup`: what it writes into the files of engines, what it leaves alone, and that undoing gives it back."""

from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from overlayfs.cli.host import replacing, setup
from overlayfs.cli.host.engines import Engine
from overlayfs.cli.host.settings import put
from overlayfs.cli.host.setup import BACKUP, set_up, undo
from overlayfs.cli.host.trial import installed_program
from overlayfs.cli.mounts.live import CommandError
from tests.cli.people import COMMAND, run
from tests.engines.podman import covered

COMMENTED = """\
# How we store images here.
[storage]
driver = "overlay"   # never change this
graphroot = "/srv/containers"

[storage.options]
additionalimagestores = [
  "/srv/shared",  # of the team
]
[storage.options.overlay]
# Options of each mount.
mountopt = "nodev,metacopy=on"

[storage.options.thinpool]
# autoextend_percent = "20"
"""
OTHER_PROGRAM = '[storage]\ndriver = "overlay"\n[storage.options.overlay]\nmount_program = "/usr/bin/fuse-overlayfs"\n'
OVERLAY = ("storage", "options", "overlay")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home without configuration."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CONTAINERS_STORAGE_CONF", raising=False)
    return tmp_path


@pytest.fixture
def storage(home: Path) -> Path:
    file = home / "config/containers/storage.conf"
    file.parent.mkdir(parents=True)
    return file


def change(engine: Engine = Engine.PODMAN) -> None:
    set_up(engine, for_user=True, dry_run=False, confirmed=True)


def take_back(engine: Engine = Engine.PODMAN) -> None:
    undo(engine, for_user=True, dry_run=False, confirmed=True)


def toml(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text())


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@pytest.mark.parametrize("text", [COMMENTED, OTHER_PROGRAM, "", "# only a comment\n", "[storage]\n"])
def test_storage_conf_gets_the_program_and_undo_gives_every_byte_back(storage: Path, text: str) -> None:
    storage.write_text(text)
    expected = tomllib.loads(text)
    put(expected, ("storage", "driver"), "overlay")
    put(expected, (*OVERLAY, "mount_program"), str(installed_program()))
    change()
    assert toml(storage) == expected
    assert [line for line in storage.read_text().splitlines() if "#" in line] == [
        line for line in text.splitlines() if "#" in line
    ]
    take_back()
    assert names(storage.parent) == (["storage.conf"] if text else [])
    assert not text or storage.read_text() == text


def test_absent_file_is_made_and_removed(storage: Path) -> None:
    change()
    assert toml(storage)["storage"]["driver"] == "overlay"
    take_back()
    assert names(storage.parent) == []


def test_second_setup_changes_nothing(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write_text(COMMENTED)
    change()
    first = {name: (storage.parent / name).stat() for name in names(storage.parent)}
    capsys.readouterr()
    change(Engine.BUILDAH)
    assert capsys.readouterr().out == "buildah is set up already: nothing to do\n"
    assert {name: (storage.parent / name).stat() for name in names(storage.parent)} == first
    assert (storage.parent / f"storage.conf{BACKUP}").read_text() == COMMENTED


def test_undo_keeps_what_the_user_has_changed_since(storage: Path) -> None:
    storage.write_text(OTHER_PROGRAM)
    change()
    storage.write_text(storage.read_text() + 'mountopt = "nodev"\n# mine\n')
    take_back()
    assert toml(storage)["storage"]["options"]["overlay"] == {
        "mount_program": "/usr/bin/fuse-overlayfs",
        "mountopt": "nodev",
    }
    assert "# mine" in storage.read_text()


def test_undo_keeps_a_program_that_the_user_has_named_since(storage: Path) -> None:
    storage.write_text(COMMENTED)
    change()
    theirs = storage.read_text().replace(str(installed_program()), "/opt/another")
    storage.write_text(theirs)
    take_back()
    assert storage.read_text() == theirs


def test_undo_gives_back_a_file_that_was_removed_since(storage: Path) -> None:
    storage.write_text('[storage]\ndriver = "overlay"\n')
    change()
    storage.unlink()
    take_back()
    assert storage.read_text() == '[storage]\ndriver = "overlay"\n'


def test_undo_without_setup_says_so(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write_text(COMMENTED)
    take_back()
    assert capsys.readouterr().out == "podman is not set up: nothing to undo\n"
    assert storage.read_text() == COMMENTED


def test_dry_run_shows_the_lines_and_writes_nothing(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write_text(COMMENTED)
    set_up(Engine.PODMAN, for_user=True, dry_run=True, confirmed=False)
    assert f'+mount_program = "{installed_program()}"' in capsys.readouterr().out.splitlines()
    assert storage.read_text() == COMMENTED
    assert names(storage.parent) == ["storage.conf"]


def answering(answer: bytes, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command at a terminal where this has been typed."""
    keyboard, terminal = pty.openpty()
    with os.fdopen(keyboard, "wb", buffering=0) as typed, os.fdopen(terminal, "rb") as stdin:
        typed.write(answer)
        return subprocess.run([*COMMAND, *words], stdin=stdin, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("answer", "is_changed"), [(b"y\n", True), (b"n\n", False), (b"\n", False)])
def test_terminal_is_asked_after_the_lines_were_shown(storage: Path, answer: bytes, is_changed: bool) -> None:
    storage.write_text(COMMENTED)
    done = answering(answer, "setup", "podman", "--user")
    assert done.stderr.startswith("Change this? [y/N] ")
    assert "+mount_program = " in done.stdout
    assert (done.returncode, storage.read_text() != COMMENTED) == (0 if is_changed else 1, is_changed)
    if is_changed:
        assert answering(b"n\n", "setup", "podman", "--user", "--undo").returncode == 1
        assert storage.read_text() != COMMENTED


@pytest.mark.parametrize("words", [("setup", "podman", "--user"), ("setup", "podman", "--user", "--undo")])
def test_nothing_is_changed_without_a_terminal_to_confirm_it(storage: Path, words: tuple[str, ...]) -> None:
    storage.write_text(COMMENTED)
    if "--undo" in words:
        change()
    before = {name: (storage.parent / name).read_text() for name in names(storage.parent)}
    assert "give --yes" in run(*words, status=1).stderr
    assert {name: (storage.parent / name).read_text() for name in names(storage.parent)} == before


def test_file_that_changes_after_it_was_shown_is_left_alone(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_text(COMMENTED)
    monkeypatch.setattr(setup, "confirm", lambda *_, **__: storage.write_text(OTHER_PROGRAM))
    with pytest.raises(CommandError, match="changed by another program"):
        set_up(Engine.PODMAN, for_user=True, dry_run=False, confirmed=False)
    assert storage.read_text() == OTHER_PROGRAM
    assert names(storage.parent) == ["storage.conf"]


@pytest.mark.parametrize(
    "text", ["[storage\n", '[storage]\ndriver = "vfs"\n', 'storage = "text"\n', "[storage]\noptions = 3\n"]
)
def test_file_that_cannot_be_changed_is_left_alone(storage: Path, text: str) -> None:
    storage.write_text(text)
    with pytest.raises(CommandError, match=r"storage\.conf|cannot be set"):
        change()
    assert storage.read_text() == text
    assert names(storage.parent) == ["storage.conf"]


def test_nothing_is_written_where_the_trial_mount_fails(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str]) -> None:
        raise CommandError("no /dev/fuse")

    monkeypatch.setattr(setup, "try_mount", fail)
    with pytest.raises(CommandError, match="no /dev/fuse"):
        change()
    assert names(storage.parent) == []


def test_older_backup_is_not_overwritten(storage: Path) -> None:
    storage.write_text(COMMENTED)
    change()
    storage.write_text(OTHER_PROGRAM)
    with pytest.raises(CommandError, match="move the backup away first"):
        change()
    assert (storage.parent / f"storage.conf{BACKUP}").read_text() == COMMENTED
    assert storage.read_text() == OTHER_PROGRAM


def test_symlink_mode_and_owner_of_the_file_are_kept(storage: Path, home: Path) -> None:
    real = home / "dotfiles"
    real.write_text(COMMENTED)
    real.chmod(0o640)
    os.chown(real, 1234, 4321)
    storage.symlink_to(real)
    change()
    assert storage.is_symlink()
    found = real.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o640, 1234, 4321)
    assert toml(real)["storage"]["options"]["overlay"]["mount_program"] == str(installed_program())
    backup = (
        storage.parent / f"storage.conf{BACKUP}"
    ).stat()  # what nobody else may read is not copied for all to read
    assert (backup.st_mode & 0o7777, backup.st_uid, backup.st_gid) == (0o640, 1234, 4321)


@pytest.mark.parametrize("indentation", ["  ", "    ", "\t"])
def test_only_our_line_of_a_json_file_changes(home: Path, indentation: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "config/docker/daemon.json"
    file.parent.mkdir(parents=True)
    lines = ['"data-root": "/big",', '"storage-driver": "overlay2"']
    file.write_text("".join(["{\n", *(f"{indentation}{line}\n" for line in lines), "}\n"]))
    change(Engine.DOCKER)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("+", "-"))]
    assert [line[1:].strip() for line in shown] == [
        '"storage-driver": "overlay2"',
        '"storage-driver": "fuse-overlayfs"',
    ]


def test_user_who_may_not_write_learns_what_to_do(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _text: str, **_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path.with_name(".staged")))

    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(storage))
    monkeypatch.setattr(replacing, "replace", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(setup, "try_mount", lambda _: None)
    with pytest.raises(CommandError, match="containers: Permission denied: run it as root, or with --user"):
        set_up(Engine.PODMAN, for_user=False, dry_run=False, confirmed=True)


def test_root_learns_that_other_users_cannot_start_the_program(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "overlayfs-mount").symlink_to("/bin/true")
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(storage))
    monkeypatch.setattr(setup, "installed_program", lambda: home / "overlayfs-mount")
    monkeypatch.setattr(setup, "try_mount", lambda _: None)
    set_up(Engine.PODMAN, for_user=False, dry_run=False, confirmed=True)
    assert "cannot start the program: " in capsys.readouterr().out


def test_docker_gets_its_driver_and_a_program_of_the_driver_s_name(home: Path) -> None:
    file, link = home / "config/docker/daemon.json", home / ".local/bin/fuse-overlayfs"
    file.parent.mkdir(parents=True)
    text = '{"debug": true, "storage-driver": "overlay2", "log-opts": {"max-size": "10m"}}'
    file.write_text(text)
    change(Engine.DOCKER)
    assert json.loads(file.read_text()) == {**json.loads(text), "storage-driver": "fuse-overlayfs"}
    assert link.readlink() == installed_program()
    take_back(Engine.DOCKER)
    assert file.read_text() == text
    assert not link.is_symlink()


def test_program_of_somebody_else_is_not_replaced_by_the_link(home: Path) -> None:
    link = home / ".local/bin/fuse-overlayfs"
    link.parent.mkdir(parents=True)
    link.write_text("theirs")
    with pytest.raises(CommandError, match="another program"):
        change(Engine.DOCKER)
    assert link.read_text() == "theirs"
    assert not (home / "config").exists()


def test_containerd_gets_a_proxy_plugin(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    text = '# ours\nversion = 2\n[plugins]\n  [plugins."io.containerd.internal.v1.opt"]\n    path = "/opt/x"\n'
    file.write_text(text)
    with covered("/etc/containerd", tmp_path):
        shown = run("setup", "containerd", "--yes", environ={}).stdout
        assert toml(file) == {
            **tomllib.loads(text),
            "proxy_plugins": {
                "overlayfs-fuse": {"type": "snapshot", "address": "/run/overlayfs-snapshotter/snapshotter.sock"}
            },
        }
        assert "To undo: overlayfs setup containerd --undo" in shown
        run("setup", "containerd", "--undo", "--yes", environ={})
    assert file.read_text() == text
    assert names(tmp_path) == ["config.toml"]


def test_unknown_engine_is_wrong_usage() -> None:
    assert "podman, buildah, docker, containerd" in run("setup", "rkt", status=2).stderr
    assert "service of root" in run("setup", "containerd", "--user", status=1).stderr
