"""`overlayfs.mount_image`: an image of a store as a mount of a program."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import overlayfs
from overlayfs import api
from overlayfs.image.make import commit as mutate
from overlayfs.image.make.commit import Making
from overlayfs.image.oci.errors import InUseError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.pruning import prune, prune_held
from overlayfs.image.store.store import Store
from tests.contract.tree import build, directory, file
from tests.mounted.program import PATIENCE_S, REPOSITORY, mounts_beneath, open_device
from tests.property.paths import unmount

USER = 65534  # fusermount3 wants a name


def make_base(scratch: Path, owner: int) -> None:
    """The files of the image, whose root has a mode of its own."""
    build(os.fsencode(scratch / "base"), {"": directory(0o750, owner, owner), "etc/motd": file(b"hello")})


def make_store(scratch: Path) -> Path:
    """A store with the image app:1."""
    with Store.open(scratch / "store") as store:
        making = Making(created_by="a test")
        mutate.append(store, None, scratch / "base", Reference.parse("app:1"), making, owner=(0, 0))
    return scratch / "store"


@pytest.fixture
def store(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (scratch / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch / "tmp"))
    make_base(scratch, 0)
    yield make_store(scratch)
    for left in mounts_beneath(scratch):
        unmount(Path(left.place))
    deadline = time.monotonic() + PATIENCE_S
    while os.listdir(scratch / "tmp"):  # what outlived its mount for a fork is removed by a process that waits
        assert time.monotonic() < deadline


def test_ephemeral_image_is_clean_each_time(store: Path) -> None:
    for _ in range(2):
        with overlayfs.mount_image("app:1", store=store, ephemeral=True) as m:
            assert (m.path / "etc/motd").read_text() == "hello"
            assert m.path.stat().st_mode & 0o7777 == 0o750
            (m.path / "etc/motd").write_text("changed")
            with m.transaction():
                (m.path / "etc/motd").unlink()
            assert [change.path for change in m.changes()] == [b"etc/motd"]


def test_image_is_read_only_by_default_and_found_by_the_environment(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERLAYFS_STORE", str(store))
    with overlayfs.mount_image("app:1") as m, pytest.raises(OSError, match="Read-only"):
        (m.path / "new").touch()


def test_unknown_image_is_refused_in_one_line(store: Path) -> None:
    with pytest.raises(overlayfs.MountError, match="nothing:1") as refused:
        overlayfs.mount_image("nothing:1", store=store, ephemeral=True)
    assert "\n" not in str(refused.value)


def test_layers_are_kept_as_long_as_a_fork_is_mounted(store: Path) -> None:
    with overlayfs.mount_image("app:1", store=store, ephemeral=True) as m:
        fork = m.fork()
    prune_all(store)
    assert (fork.path / "etc/motd").read_text() == "hello"
    fork.unmount()
    prune_all(store)
    assert not list((store / "layers").iterdir())


def test_nobody_prunes_before_a_fork_is_recorded(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted, mount = overlayfs.mount_image("app:1", store=store, ephemeral=True), api._mount

    def mount_and_let_others_prune(*arguments: Any) -> overlayfs.Mount:
        made = mount(*arguments)
        mounted.unmount()
        with Store.open(store) as opened, pytest.raises(InUseError), opened.alone(patience_s=0):
            prune_held(opened, named=True)
        return made

    monkeypatch.setattr(api, "_mount", mount_and_let_others_prune)
    with mounted.fork() as fork:
        prune_all(store)
        assert (fork.path / "etc/motd").read_text() == "hello"


def prune_all(store: Path) -> None:
    with Store.open(store) as opened:
        prune(opened, named=True)


PROGRAM = """
    import ctypes, os, sys
    import encodings.idna, pyfuse3, trio, platformdirs
    import overlayfs, overlayfs.api, tests.mounted.test_images as images
    from pathlib import Path
    user, scratch = int(sys.argv[1]), Path(sys.argv[2])
    os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as after exec: others of the user may look at it
    os.environ["HOME"] = str(scratch)
    store = images.make_store(scratch)
    with overlayfs.mount([scratch], ephemeral=True) as m:
        m.path.chmod(0o700)
    with overlayfs.mount_image("app:1", store=store, ephemeral=True) as m:
        root = m.path.stat()
        assert (root.st_uid, root.st_mode & 0o7777) == (user, 0o750), root
        (m.path / "etc/motd").write_text("changed")
        m.snapshot("a")
        (m.path / "etc/motd").unlink()
        with m.fork(snapshot="a") as fork:
            m.unmount()
            assert (fork.path / "etc/motd").read_text() == "changed"
            (fork.path / "etc/new").mkdir(0)
            assert (fork.path / "etc/new").stat().st_uid == user
            assert {c.path for c in fork.changes()} == {b"etc/motd", b"etc/new"}
    print("done")
"""


def test_ordinary_user_may_change_what_is_roots_in_the_image(scratch: Path) -> None:
    for name in ("home", "tmp"):
        (scratch / name).mkdir()
        os.chown(scratch / name, USER, USER)
    make_base(scratch / "home", USER)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(USER), str(scratch / "home")]
    environment = {**os.environ, "TMPDIR": str(scratch / "tmp"), "PYTHONPATH": str(REPOSITORY)}
    with open_device():
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, cwd=REPOSITORY, check=False
        )
    assert done.stdout == "done\n", done.stderr
    assert mounts_beneath(scratch) == []
