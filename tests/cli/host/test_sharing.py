"""`overlayfs share podman`: what it writes into storage.conf, and that taken back."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.cli.people import run

THEIRS = '# mine\n[storage]\ndriver = "overlay"\ngraphroot = "{top}/graph"\nrunroot = "{top}/run"\n'


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    monkeypatch.setenv("OVERLAYFS_STORE", str(tmp_path / "store"))
    (tmp_path / "storage.conf").write_text(THEIRS.format(top=tmp_path))
    return tmp_path / "storage.conf"


def stores(conf: Path) -> list[str]:
    found = tomllib.loads(conf.read_text())["storage"]["options"]["additionalimagestores"]
    assert isinstance(found, list)
    return found


def test_store_is_added_and_taken_back(conf: Path, tmp_path: Path) -> None:
    before = conf.read_text()
    assert "additionalimagestores" in run("share", "podman", "--dry-run").stdout
    assert conf.read_text() == before
    assert "--yes" in run("share", "podman", status=1).stderr
    assert conf.read_text() == before
    assert not (tmp_path / "store/podman").exists()
    run("share", "podman", "--yes")
    run("share", "podman")
    assert stores(conf) == [str(tmp_path / "store/podman")]
    assert conf.read_text().startswith(before)
    run("share", "podman", "--undo", "--dry-run")
    assert stores(conf)
    run("share", "podman", "--undo", "--yes")
    assert conf.read_text().rstrip() == before.rstrip()
    assert not (tmp_path / "store/podman").exists()
    assert "nothing to undo" in run("share", "podman", "--undo").stdout


def test_other_stores_stay(conf: Path, tmp_path: Path) -> None:
    text = conf.read_text() + '[storage.options]\nadditionalimagestores = [ "/theirs", ] # by somebody\n'
    conf.write_text(text)
    run("share", "podman", "--yes")
    assert stores(conf) == ["/theirs", str(tmp_path / "store/podman")]
    run("share", "podman", "--undo", "--yes")
    assert stores(conf) == ["/theirs"]


def test_file_that_is_absent_begins_as_podmans_own(conf: Path, tmp_path: Path) -> None:
    conf.unlink()
    run("share", "podman", "--yes")
    written = tomllib.loads(conf.read_text())["storage"]
    assert written["driver"] == "overlay"
    assert written["options"]["additionalimagestores"] == [str(tmp_path / "store/podman")]


@pytest.mark.parametrize("text", ["[storage", "storage = 1\n", "[storage.options]\nadditionalimagestores = '/x'\n"])
def test_file_that_cannot_be_changed_is_left_alone(text: str, conf: Path) -> None:
    conf.write_text(text)
    run("share", "podman", status=1)
    assert conf.read_text() == text


def test_other_engines_are_refused() -> None:
    assert "podman" in run("share", "docker", status=2).stderr
