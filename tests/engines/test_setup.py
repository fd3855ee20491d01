"""`overlayfs setup` with the real engine: podman runs on our mount afterwards, and on the kernel's after the undo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.people import run
from tests.contract.tree import file
from tests.engines.podman import Podman, archive_of

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
    run("setup", engine)
    assert podman(*ROOT_FILESYSTEM) == "fuse.overlayfs"
    assert ".has-mount-program" in run("setup", engine, "--undo").stdout
    (top / f"by-{engine}/root/overlay/.has-mount-program").unlink()  # as podman requires, and the command says
    assert podman(*ROOT_FILESYSTEM) == "overlay"
    assert configuration.read_text() == text
