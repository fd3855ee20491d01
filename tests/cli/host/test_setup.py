"""`overlayfs setup`: what it writes into the files of engines, what it leaves alone, and that undoing gives it back."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from overlayfs.cli.host import setup
from overlayfs.cli.host.engines import Engine
from overlayfs.cli.host.settings import put
from overlayfs.cli.host.setup import BACKUP, set_up, undo
from overlayfs.cli.host.trial import installed_program
from overlayfs.cli.mounts.live import CommandError
from tests.cli.people import run
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
    set_up(engine, for_user=True, dry_run=False)


def take_back(engine: Engine = Engine.PODMAN) -> None:
    undo(engine, for_user=True, dry_run=False)


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
    set_up(Engine.PODMAN, for_user=True, dry_run=True)
    assert f'+mount_program = "{installed_program()}"' in capsys.readouterr().out.splitlines()
    assert storage.read_text() == COMMENTED
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
        shown = run("setup", "containerd", environ={}).stdout
        assert toml(file) == {
            **tomllib.loads(text),
            "proxy_plugins": {
                "overlayfs-fuse": {"type": "snapshot", "address": "/run/overlayfs-snapshotter/snapshotter.sock"}
            },
        }
        assert "To undo: overlayfs setup containerd --undo" in shown
        run("setup", "containerd", "--undo", environ={})
    assert file.read_text() == text
    assert names(tmp_path) == ["config.toml"]


def test_unknown_engine_is_wrong_usage() -> None:
    assert "podman, buildah, docker, containerd" in run("setup", "rkt", status=2).stderr
    assert "service of root" in run("setup", "containerd", "--user", status=1).stderr
