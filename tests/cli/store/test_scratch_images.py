"""Images without layers, as `FROM scratch` alone gives: every command works on them, and with what others write."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from overlayfs.cli.mounts.live import mount_at
from overlayfs.tree.syscalls import unmount
from tests.cli.people import COMMAND
from tests.cli.store.test_store_commands import Kept
from tests.image.making import LayoutFiles, tar
from tests.image.registry.docker_registry import docker_registry
from tests.prepared import PATIENCE_S

ROOTS: dict[str, dict[str, Any]] = {
    "empty": {"type": "layers", "diff_ids": []},
    "absent": {"type": "layers"},
    "null": {"type": "layers", "diff_ids": None},
}


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A store with an image `z:1` of no layers."""
    kept = Kept(tmp_path)
    kept.run("load", "-i", scratch_image(tmp_path / "z.tar"), "--name", "z:1")
    return kept


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    """A mountpoint that is free at the end."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while mount_at(os.fsencode(path)) is not None:
        unmount(os.fsencode(path), lazy=True)


def scratch_image(path: Path, how: str = "empty") -> Path:
    made = LayoutFiles()
    made.image("latest", rootfs=ROOTS[how])
    path.write_bytes(tar(made.finished()))
    return path


@pytest.mark.parametrize("how", list(ROOTS))
@pytest.mark.parametrize("unpack", [(), ("--no-unpack",)])
def test_configuration_may_leave_its_layers_out(tmp_path: Path, how: str, unpack: tuple[str, ...]) -> None:
    kept = Kept(tmp_path)
    kept.run("load", "-i", scratch_image(tmp_path / "z.tar", how), "--name", "z:1", *unpack)
    assert kept.answer("inspect", "z:1")[0]["RootFS"] == {"Type": "layers", "Layers": []}
    assert kept.run("verify") == []


def test_docker_archive_without_layers(tmp_path: Path) -> None:
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}).encode()
    manifest = json.dumps([{"Config": "c.json", "RepoTags": ["z:1"], "Layers": None}]).encode()
    (tmp_path / "z.tar").write_bytes(tar({"c.json": config, "manifest.json": manifest}))
    kept = Kept(tmp_path)
    assert kept.run("load", "-i", tmp_path / "z.tar") == ["Loaded image: z:1"]
    assert kept.answer("layers", "z:1") == []


def test_image_without_layers_is_looked_at(kept: Kept, tmp_path: Path) -> None:
    (row,) = kept.answer("tree", "z:1")
    assert (row["path"], row["type"], row["mode"]) == ("/", "directory", "040755")
    assert kept.answer("layers", "z:1") == kept.answer("history", "z:1") == kept.answer("diff", "z:1", "z:1") == []
    assert kept.answer("waste", "z:1")["efficiency"] == 1.0
    assert kept.answer("inspect", "z:1")[0]["Layers"] == []
    assert kept.answer("images")[0]["Size"] == 0
    for words in (("tree", "z:1"), ("layers", "z:1"), ("inspect", "z:1"), ("waste", "z:1"), ("images",)):
        assert kept.run(*words) != []
    kept.run("report", "z:1", "-o", tmp_path / "report.html")
    assert b'"layers":[]' in (tmp_path / "report.html").read_bytes()
    assert kept.run("cat", "z:1:/x", status=1) == ["overlayfs: /x: No such file or directory in the image"]


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_image_without_layers_is_saved_for_others(kept: Kept, tmp_path: Path, kind: str) -> None:
    kept.run("save", "z:1", "--format", kind, "-o", tmp_path / "saved.tar")
    copy = ["skopeo", "copy", "-q", f"{kind}:{tmp_path}/saved.tar", f"dir:{tmp_path}/dir"]
    subprocess.run(copy, check=True, timeout=PATIENCE_S)
    again = Kept(tmp_path / "again")
    assert again.run("load", "-i", tmp_path / "saved.tar") == ["Loaded image: z:1"]
    assert again.answer("inspect", "z:1")[0]["Id"] == kept.answer("inspect", "z:1")[0]["Id"]


def test_image_without_layers_goes_through_a_registry(kept: Kept, tmp_path: Path) -> None:
    with docker_registry(tmp_path) as running:
        kept.run("push", "--insecure", "--quiet", "z:1", f"{running.name}/z:1")
        other = Kept(tmp_path / "other")
        other.run("pull", "--insecure", "--quiet", f"{running.name}/z:1")
    assert other.answer("inspect", f"{running.name}/z:1")[0]["Id"] == kept.answer("inspect", "z:1")[0]["Id"]


def test_tree_of_no_layers_is_an_empty_root(kept: Kept, tmp_path: Path) -> None:
    kept.run("export", "z:1", "-o", tmp_path / "root.tar")
    with tarfile.open(tmp_path / "root.tar") as archive:
        (root,) = archive.getmembers()
    assert (root.isdir(), root.mode, root.uid, root.gid, root.mtime) == (True, 0o755, 0, 0, 0)
    kept.run("squash", "z:1", "z:2")
    assert [(layer["added"], layer["size"]) for layer in kept.answer("layers", "z:2")] == [(0, 0)]


def test_mounted_read_only(kept: Kept, point: Path) -> None:
    kept.pipe("mount", "z:1", point)
    assert os.listdir(point) == []
    assert (point.stat().st_mode, point.stat().st_uid, point.stat().st_mtime) == (0o40755, 0, 0)
    kept.pipe("umount", point)


def test_what_is_written_becomes_the_first_layer(kept: Kept, point: Path) -> None:
    kept.pipe("mount", "--rw", "--name", "box", "z:1", point)
    (point / "new").write_text("1")
    assert kept.pipe("diff", point) == b"A /new\n"
    kept.pipe("commit", point, "z:2")
    kept.pipe("umount", point)
    assert kept.pipe("diff", "box") == b"A /new\n"
    kept.run("commit", "box", "z:3")
    kept.run("reset", "box")
    assert kept.run("diff", "box") == []
    assert kept.run("commit", "box", "z:4") != []
    assert [len(kept.answer("layers", name)) for name in ("z:2", "z:3", "z:4")] == [1, 1, 0]
    assert kept.pipe("cat", "z:3:/new") == b"1"


def test_lower_of_no_layers_is_not_pruned_while_a_container_needs_it(kept: Kept, point: Path) -> None:
    kept.pipe("mount", "--rw", "--name", "box", "z:1", point)
    kept.pipe("umount", point)
    kept.run("prune", "--all", "--force")
    kept.pipe("mount", "--rw", "--name", "box", "z:1", point)
    kept.pipe("umount", point)
    kept.run("rm", "box")
    kept.run("prune", "--force")
    assert os.listdir(kept.path / "layers") == []
    assert kept.run("verify") == []
    kept.pipe("mount", "z:1", point)
    kept.pipe("umount", point)


def test_layer_is_appended(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/file").write_text("1")
    kept.run("append", "z:1", tmp_path / "more", "z:2")
    assert kept.pipe("cat", "z:2:/file") == b"1"
    assert len(kept.answer("layers", "z:2")) == 1


def test_run_says_that_there_is_no_program(kept: Kept) -> None:
    command: list[str | Path] = [*COMMAND, "--store", kept.path, "run", "--rm", "z:1", "/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (127, "overlayfs: '/x' is not in the image\n")


def test_program_in_a_volume_runs(kept: Kept) -> None:
    host = [word for name in ("usr", "lib", "lib64", "bin") if os.path.isdir(f"/{name}") for word in volume(name)]
    command: list[str | Path] = [*COMMAND, "--store", kept.path, "run", "--rm", *host, "z:1", "/bin/ls", "/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"bin", "usr"} <= set(done.stdout.split())


def volume(name: str) -> tuple[str, str]:
    return "-v", f"/{name}:/{name}:ro"
