"""The files for a node and for a cluster, as far as they can be tried without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from overlayfs.snapshotter.program import main

SCRIPTS = Path(__file__).parents[2] / "scripts"
KUBERNETES, CONTAINERD = SCRIPTS / "kubernetes", SCRIPTS / "containerd"
PLUGIN = KUBERNETES / "containerd-plugin.toml"
UNIT = CONTAINERD / "overlayfs-snapshotter.service"
VERSIONS = ("1.31.0", "1.34.0")
PROGRAM = "/opt/overlayfs/bin/overlayfs-snapshotter"


def run(*command: str | Path, path: Path | None = None) -> str:
    env = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def validate(manifest: Path, version: str) -> str:
    said = run(sys.executable, "-m", "kubernetes_validate", "--strict", "--kubernetes-version", version, manifest)
    assert "WARN" not in said  # no schema
    return said


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["daemonset.yaml", "runtimeclass.yaml"])
def test_manifest_is_valid_by_the_schemas_of_kubernetes(name: str, version: str) -> None:
    assert validate(KUBERNETES / name, version).count("passed for resource") >= 1


def test_wrong_manifest_is_not_valid(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((KUBERNETES / "daemonset.yaml").read_text().replace("hostPID: true", "hostPid: true"))
    with pytest.raises(AssertionError, match="hostPid"):
        validate(wrong, VERSIONS[0])


@pytest.mark.parametrize("file", [CONTAINERD / "config.toml", KUBERNETES / "containerd-runtime.toml"])
def test_containerd_takes_its_configuration(file: Path) -> None:
    shown = run("containerd", "--config", file, "config", "dump")
    assert "[proxy_plugins.overlayfs-fuse]" in shown or "runtimes.overlayfs-fuse]" in shown
    assert "disable_snapshot_annotations = true" in shown


def test_imported_plugin_leaves_the_nodes_own_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        f'version = 2\nimports = ["{PLUGIN}"]\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "own:1"\n'
    )
    shown = run("containerd", "--config", tmp_path / "config.toml", "config", "dump")
    assert "[proxy_plugins.overlayfs-fuse]" in shown
    assert 'sandbox_image = "own:1"' in shown


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """With a program that is there."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))
    assert run("systemd-analyze", "verify", "--man=no", unit) == ""


def test_units_command_line_is_one_that_the_program_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart=")]
    words = command.removeprefix("ExecStart=").split()
    assert words[0] == PROGRAM
    monkeypatch.setattr(sys, "argv", [*words, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "--self-mount" in capsys.readouterr().out


def test_image_of_the_daemonset_copies_what_is_there() -> None:
    """Building it takes a registry."""
    lines = (KUBERNETES / "Containerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert copied
    assert [name for names in copied for name in names if not (SCRIPTS.parent / name).exists()] == []


class Node:
    """A node's root, and programs in place of those that act on the node."""

    def __init__(self, top: Path) -> None:
        self.root, self.tree, self._programs = top / "node", top / "tree", top / "bin"
        self._log = top / "log"
        for path in (self.root / "usr/bin", self.tree / "bin", self._programs):
            path.mkdir(parents=True)
        for name in ("python3", "fusermount3"):
            (self.root / "usr/bin" / name).touch()
        (self.tree / "bin/overlayfs-snapshotter").write_text("first")
        for name, text in (("nsenter", f'echo "$*" >>{self._log}'), ("sleep", "exit 0")):
            (self._programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (self._programs / name).chmod(0o755)
        for file in (KUBERNETES / "install-on-node", UNIT, PLUGIN):  # side by side, as in the image
            (top / file.name).write_bytes(file.read_bytes())
        self._installer = top / "install-on-node"

    def install(self) -> list[str]:
        """The commands that the node was given."""
        self._log.write_text("")
        run("sh", self._installer, self.root, self.tree, path=self._programs)
        return [line.rpartition("-- ")[2] for line in self._log.read_text().splitlines()]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_installer_puts_everything_on_the_node(node: Node) -> None:
    assert "systemctl restart overlayfs-snapshotter" in node.install()
    assert (node.root / "opt/overlayfs/bin/overlayfs-snapshotter").read_text() == "first"
    assert (node.root / "etc/systemd/system" / UNIT.name).read_bytes() == UNIT.read_bytes()
    assert (node.root / "etc/containerd/conf.d/overlayfs.toml").read_bytes() == PLUGIN.read_bytes()


def test_installer_that_runs_again_restarts_nothing(node: Node) -> None:
    node.install()
    assert not any("restart" in command for command in node.install())


def test_installer_replaces_another_version(node: Node) -> None:
    node.install()
    (node.tree / "bin/overlayfs-snapshotter").write_text("second")
    assert "systemctl restart overlayfs-snapshotter" in node.install()
    assert (node.root / "opt/overlayfs/bin/overlayfs-snapshotter").read_text() == "second"
    assert [path.name for path in (node.root / "opt").iterdir()] == ["overlayfs"]


def test_installer_names_what_the_node_lacks(node: Node) -> None:
    (node.root / "usr/bin/fusermount3").unlink()
    with pytest.raises(AssertionError, match="the node has no /usr/bin/fusermount3"):
        node.install()
    assert not (node.root / "opt").exists()
