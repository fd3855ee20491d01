"""`overlayfs setup` with the real engine: podman runs on our mount afterwards, and on the kernel's after the undo."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.people import run
from tests.contract.tree import file
from tests.engines.docker import Docker
from tests.engines.podman import Podman, archive_of, covered

LOOK = "while read -r d m t r; do if [ $m = / ]; then echo $t; fi; done </proc/mounts"
ROOT_FILESYSTEM = ("run", "--rm", "base", "sh", "-c", LOOK)


@pytest.mark.parametrize("engine", ["podman", "buildah"])
def test_podman_runs_on_our_mount_until_that_is_undone(
    engine: str, new_podman: Callable[..., Podman], top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    podman = new_podman(f"by-{engine}", ours=False)
    configuration = top / f"by-{engine}/storage.conf"
    text = configuration.read_text()
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(configuration))
    (top / engine).mkdir()
    podman("import", "-q", archive_of({"a": file(b"a")}, top / engine), "base")
    assert podman(*ROOT_FILESYSTEM) == "overlay"
    run("setup", engine, "--yes")
    assert podman(*ROOT_FILESYSTEM) == "fuse.overlayfs"
    assert ".has-mount-program" in run("setup", engine, "--undo", "--yes").stdout
    (top / f"by-{engine}/root/overlay/.has-mount-program").unlink()  # as podman requires, and the command says
    assert podman(*ROOT_FILESYSTEM) == "overlay"
    assert configuration.read_text() == text


@pytest.mark.long
def test_docker_runs_on_our_mount_until_that_is_undone(top: Path) -> None:
    places = {name: top / name for name in ("docker", "etc", "links", "docker-base")}
    for path in places.values():
        path.mkdir()
    configuration = places["etc"] / "daemon.json"
    configuration.write_text('{"storage-driver": "overlay2"}')
    Path("/etc/docker").mkdir(exist_ok=True)
    with covered("/etc/docker", places["etc"]), covered("/usr/local/bin", places["links"]):
        run("setup", "docker", "--yes", environ={})
        docker = Docker(places["docker"], Path("/etc/docker/daemon.json"), f"/usr/local/bin:{os.environ['PATH']}")
        try:
            docker("import", archive_of({"a": file(b"a")}, places["docker-base"]), "base")
            assert docker(*ROOT_FILESYSTEM) == "fuse.overlayfs"
            docker.end()
            run("setup", "docker", "--undo", "--yes", environ={})
            docker.start()
            assert docker("info", "--format={{.Driver}}") == "overlay2"
        finally:
            docker.close()
    assert configuration.read_text() == '{"storage-driver": "overlay2"}'
    assert list(places["links"].iterdir()) == []


def test_containerd_reads_what_is_written(top: Path) -> None:
    (top / "containerd").mkdir()
    Path("/etc/containerd").mkdir(exist_ok=True)
    with covered("/etc/containerd", top / "containerd"):
        run("setup", "containerd", "--yes", environ={})
        shown = subprocess.run(["containerd", "config", "dump"], capture_output=True, text=True, check=True).stdout
    assert "[proxy_plugins.overlayfs-fuse]" in shown
