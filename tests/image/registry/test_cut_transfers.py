"""A pull or push that is killed, or fails, at any of its system calls: nothing half is visible, and again it works.

strace counts the calls of each thread for itself; with one connection at a time, one worker thread does nearly all.
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from overlayfs.image.oci.digest import digest_of
from overlayfs.image.store.store import Image, Store
from tests.cli.people import COMMAND, run
from tests.image.making import put, tar, whole
from tests.image.registry.fake_registry import FakeRegistry

LAYERS = [tar({f"noise{number}": random.Random(number).randbytes(2_000_000)}) for number in range(2)]
RENAMES = "rename,renameat,renameat2"
# How often each call happens in a pull that is not disturbed; a sweep goes somewhat beyond.
CALLS = {"pwrite64": 5, "fsync": 10, RENAMES: 6, "write": 30, "flock": 7, "ftruncate": 1}


@pytest.fixture
def fake(fake: FakeRegistry, theirs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    """With the image app:1, asked through one connection at a time."""
    fake.publish(theirs, put(theirs, "here", *LAYERS), "app", "1")
    (tmp_path / "registries.toml").write_text(f'[registry."{fake.name}"]\nconnections = 1\n')
    monkeypatch.setenv("OVERLAYFS_REGISTRIES", str(tmp_path / "registries.toml"))
    return fake


def disturbed(directory: Path, inject: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a fault injected into it by strace."""
    calls = inject.partition(":")[0]
    strace = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}")
    command = [*strace, "-e", f"inject={inject}", *COMMAND, "--store", str(directory), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def check_store(directory: Path, expected: dict[str, bytes]) -> None:
    """What is visible is whole."""
    if not (directory / "index.json").exists():
        return
    with Store.open(directory) as store:
        for path in (store.path / "blobs/sha256").iterdir():
            assert digest_of(path.read_bytes()) == f"sha256:{path.name}"
        for image in store.images():
            assert whole(store, image) == expected


def cut_pull(theirs: Store, fake: FakeRegistry, directory: Path, inject: str) -> int:
    """The exit status of the pull that was disturbed."""
    name = f"{fake.name}/app:1"
    expected = whole(theirs, theirs.find("here"))
    done = disturbed(directory, inject, "pull", "--insecure", "--no-unpack", name)
    assert "Traceback" not in done.stderr
    assert "this is a bug" not in done.stderr
    check_store(directory, expected)
    run("--store", directory, "pull", "--insecure", "--no-unpack", "-q", name)
    with Store.open(directory) as store:
        assert whole(store, store.find(name)) == expected
    return done.returncode


@pytest.mark.parametrize(
    "fault", ["pwrite64:signal=KILL:when=3", "fsync:error=ENOSPC:when=5", f"{RENAMES}:signal=KILL:when=4"]
)
def test_pull_that_is_cut(theirs: Store, fake: FakeRegistry, tmp_path: Path, fault: str) -> None:
    assert cut_pull(theirs, fake, tmp_path / "store", fault) != 0


@pytest.mark.long
@pytest.mark.parametrize("what", ["signal=KILL", "error=ENOSPC", "error=EIO"])
@pytest.mark.parametrize("calls", CALLS)
def test_pull_that_is_cut_anywhere(theirs: Store, fake: FakeRegistry, tmp_path: Path, calls: str, what: str) -> None:
    statuses = [
        cut_pull(theirs, fake, tmp_path / str(when), f"{calls}:{what}:when={when}")
        for when in range(1, CALLS[calls] + 3)
    ]
    assert any(statuses) or calls == "ftruncate"


@pytest.mark.parametrize("calls", ["sendto", "recvfrom"])
@pytest.mark.long
def test_push_that_is_killed_anywhere(theirs: Store, fake: FakeRegistry, tmp_path: Path, calls: str) -> None:
    image: Image = theirs.find("here")
    blobs = {digest: data for digest, data in whole(theirs, image).items() if digest != image.digest}
    for when in range(1, 30, 2):
        name = f"{fake.name}/copy{when}"
        fake.blobs.clear()
        fake.repositories.clear()
        disturbed(theirs.path, f"{calls}:signal=KILL:when={when}", "push", "--insecure", "here", name)
        if fake.manifests.keys() & {(f"copy{when}", "latest")}:
            assert fake.blobs == blobs
        run("--store", theirs.path, "push", "--insecure", "-q", "here", name)
        assert fake.blobs == blobs
        assert fake.manifests[f"copy{when}", "latest"][1] == theirs.read_blob(image.descriptor)
        assert os.listdir(theirs.path / "tmp") == []
