"""A machine as engines need it, for the mounts of this process alone: subordinate ids, an ordinary user, /dev/fuse."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from overlayfs.tree.mount_table import mount_entries
from overlayfs.tree.syscalls import unmount
from tests.cli.container.shop import await_that
from tests.engines.docker import Docker, docker_with
from tests.engines.podman import Podman, covered

USER = 4711
_REPOSITORY = Path(__file__).resolve().parents[2]
_FUSE_DEVICE = os.makedev(10, 229)


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """A directory that every user may pass through."""
    top = Path("/var/tmp") / f"engines-{os.getpid()}"
    top.mkdir()
    top.chmod(0o755)
    yield top
    await_that(lambda: _is_removed(top))


def _is_removed(top: Path) -> bool:
    """Removes it, with what is still mounted there: podman cleans up after a container when its command has ended."""
    for entry in mount_entries():
        if os.fsencode(top) + b"/" in entry.mountpoint + b"/":
            with suppress(OSError):
                unmount(entry.mountpoint, lazy=True)
    with suppress(OSError):
        shutil.rmtree(top)
    return not top.exists()


@pytest.fixture(scope="module")
def machine(top: Path) -> Iterator[Path]:
    """The machine; below it `program` is our mount program, which every user may run."""
    (top / "subids").write_text("containers:1000000:1000000\ntester:300000:65536\n")
    (top / "passwd").write_text(f"{Path('/etc/passwd').read_text()}tester:x:{USER}:{USER}::{top}:/bin/sh\n")
    (top / "group").write_text(f"{Path('/etc/group').read_text()}tester:x:{USER}:\n")
    os.mknod(top / "fuse", stat.S_IFCHR, _FUSE_DEVICE)
    (top / "fuse").chmod(0o666)
    with ExitStack() as stack:
        for name in ("passwd", "group"):
            stack.enter_context(covered(f"/etc/{name}", top / name))
        for name in ("/etc/subuid", "/etc/subgid"):
            stack.enter_context(covered(name, top / "subids"))
        stack.enter_context(covered("/dev/fuse", top / "fuse"))
        stack.enter_context(_program(top))
        yield top


@contextmanager
def _program(top: Path) -> Iterator[None]:
    """This repository and its interpreter may lie where only root may look: they are shown a second time."""
    places = {"repository": _REPOSITORY, "environment": Path(sys.prefix)}
    for name in places:
        (top / name).mkdir()
    program = top / "program"
    python = f"{top}/environment/bin/{Path(sys.executable).name}"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{top}/repository" exec "{python}" -m overlayfs.cli.mount_program "$@"\n'
    )
    program.chmod(0o755)
    with ExitStack() as stack:
        for name, place in places.items():
            stack.enter_context(covered(top / name, place, read_only=True))
        yield


@pytest.fixture(scope="module")
def new_podman(machine: Path) -> Iterator[Callable[..., Podman]]:
    """Makes podmans by name: with our mount program or, not `ours`, the kernel's overlayfs; root's or `user`'s."""
    made: list[Podman] = []

    def make(name: str, *, ours: bool = True, user: int = 0, force_mask: str = "") -> Podman:
        made.append(Podman(machine / name, machine / "program" if ours else None, user, force_mask))
        return made[-1]

    yield make
    for podman in made:
        podman.close()


@pytest.fixture(scope="module")
def new_docker(machine: Path) -> Iterator[Callable[..., Docker]]:
    """Makes dockerds by name: with our mount program or, not `ours`, the kernel's overlayfs."""
    with ExitStack() as stack:

        def make(name: str, *, ours: bool = True) -> Docker:
            docker = docker_with(machine / name, machine / "program" if ours else None)
            stack.callback(docker.close)
            return docker

        yield make
