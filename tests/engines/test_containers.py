"""Containers of podman and docker: the same trees, changes and layers on our mounts as on the kernel's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from overlayfs.cli.mounts.live import read_status
from overlayfs.tree.syscalls import unmount
from tests.contract.tree import Tree
from tests.engines.changes import (
    BASE,
    CHANGE,
    DIFFERENCES,
    ENGINES_OWN,
    PROGRAMS,
    Member,
    View,
    expect_same,
    exported,
    layers_of,
    without_marks,
)
from tests.engines.conftest import USER
from tests.engines.docker import Docker
from tests.engines.leftovers import daemons_of, expect_nothing_left, mounts_of_containers, processes_of
from tests.engines.podman import Podman, archive_of, end
from tests.image.snapshot import Seen as File
from tests.image.snapshot import snapshot

Engine = Podman | Docker
LOOK = r"find / -xdev \( -path /bin -o -path '/lib*' \) -prune -o -printf '%P\t%l %y %m %U:%G %n %T@\n'"


class Pair(NamedTuple):
    """The same engine on our mounts and on the kernel's."""

    ours: Engine
    kernel_s: Engine


@pytest.fixture(scope="module", params=["podman", pytest.param("docker", marks=pytest.mark.long)])
def pair(
    request: pytest.FixtureRequest,
    new_podman: Callable[..., Podman],
    new_docker: Callable[..., Docker],
    top: Path,
) -> Pair:
    new = new_podman if request.param == "podman" else new_docker
    pair = Pair(new(f"{request.param}-ours"), new(f"{request.param}-kernel", ours=False))
    load(pair, top / f"{request.param}-base", BASE)
    return pair


@pytest.fixture(scope="module")
def rootless(new_podman: Callable[..., Podman], top: Path) -> Pair:
    """A podman of an ordinary user, who makes no devices."""
    pair = Pair(*(new_podman(name, ours=name == "user-s", user=USER) for name in ("user-s", "user-k")))
    load(pair, top / "rootless-base", {name: node for name, node in BASE.items() if name != "null"})
    return pair


def load(pair: Pair, directory: Path, tree: Tree) -> None:
    """Give both the same image `base`."""
    open_to_all(directory)
    pair.kernel_s("import", archive_of(tree, directory, *PROGRAMS, "find"), "base")
    pair.kernel_s("save", "-o", directory / "saved.tar", "base")
    pair.ours("load", "-i", directory / "saved.tar")


def open_to_all(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)


@pytest.fixture(autouse=True)
def _nothing_is_left(top: Path) -> Iterator[None]:
    yield
    expect_nothing_left(top)


class Seen(NamedTuple):
    """One container, looked at in every way that the engine offers."""

    inside: dict[str, str]
    restarted: dict[str, str]
    changes: dict[str, str]
    files: dict[str, Member]
    copied: dict[str, File]
    layers: list[dict[str, Member]]


@contextmanager
def running(engine: Engine, *names: str, options: Sequence[str] = ()) -> Iterator[None]:
    """Containers of these names, which are removed."""
    try:
        for name in names:
            engine("run", "-d", f"--name={name}", "--network=none", *options, "base", "sh", "-c", "sleep 1000")
        yield
    finally:
        engine("stop", "-t", "0", *names)
        engine("rm", *names)


def live(engine: Engine, directory: Path) -> Seen:
    """Run, exec, cp, diff, stop, start, commit, export and save a container."""
    open_to_all(directory)
    (directory / "given").write_text("given")
    with running(engine, "life"):
        engine("exec", "life", "sh", "-ec", CHANGE)
        engine("cp", directory / "given", "life:/tmp/given")
        engine("exec", "life", "touch", "-d", "@1000000000", "/tmp/given", "/tmp", "/")
        inside = _inside(engine)
        engine("stop", "-t", "0", "life")
        engine("start", "life")
        restarted = _inside(engine)
        changes = {line[2:]: line[0] for line in engine("diff", "life").splitlines()}
        engine("stop", "-t", "0", "life")
        engine("cp", "life:/renamed", directory / "copied")
        engine("export", "-o", directory / "exported.tar", "life")
        engine("commit", "life", "life:1")
        engine("save", "-o", directory / "saved.tar", "life:1")
    files, layers = exported(directory / "exported.tar"), layers_of(directory / "saved.tar")
    return Seen(inside, restarted, changes, files, snapshot(directory / "copied"), layers)


def _inside(engine: Engine) -> dict[str, str]:
    """Every file as the container sees it: kind, mode, owners, links, time, target."""
    lines = f"\t{engine('exec', 'life', 'sh', '-c', LOOK)}".splitlines()
    found = dict(line.split("\t") for line in lines)
    return {name: said for name, said in found.items() if name not in ENGINES_OWN}


def compare(ours: Seen, kernel_s: Seen) -> Mapping[View, Set[str]]:
    """Which of the known differences there are."""
    assert ours.restarted == ours.inside
    different = {
        View.INSIDE: expect_same(View.INSIDE, ours.inside, kernel_s.inside),
        View.EXPORT: expect_same(View.EXPORT, ours.files, kernel_s.files),
        View.DIFF: expect_same(View.DIFF, ours.changes, kernel_s.changes),
        View.LAYER: expect_same(View.LAYER, ours.layers[1], without_marks(kernel_s.layers[1])),
    }
    assert ours.copied == kernel_s.copied
    assert ours.layers[0] == kernel_s.layers[0]
    assert len(ours.layers) == len(kernel_s.layers) == 2
    return different


def test_container_is_what_it_is_with_the_kernels_driver(pair: Pair, tmp_path: Path) -> None:
    different = compare(live(pair.ours, tmp_path / "ours"), live(pair.kernel_s, tmp_path / "kernel"))
    if isinstance(pair.ours, Podman):  # what is no difference any more is to be taken out of the table
        assert different == {view: DIFFERENCES[view].keys() for view in different}


@pytest.mark.long
def test_rootless_container_is_what_it_is_with_the_kernels_driver(rootless: Pair, top: Path) -> None:
    compare(live(rootless.ours, top / "rootless-ours"), live(rootless.kernel_s, top / "rootless-kernel"))


def test_five_containers_at_once_have_changes_of_their_own(pair: Pair, top: Path) -> None:
    names = [f"at-once-{number}" for number in range(5)]
    with running(pair.ours, *names):
        for name in names:
            pair.ours("exec", name, "sh", "-c", f"echo {name} >/mine")
        assert [pair.ours("exec", name, "cat", "/mine") for name in names] == names
        assert len(mounts_of_containers(top)) == len(names)
        assert len(processes_of(top)) >= 2 * len(names)  # the daemon of a mount, and the engine's monitor


def test_container_runs_again_after_its_mounts_daemon_was_killed(pair: Pair, top: Path) -> None:
    with running(pair.ours, "killed"):
        pair.ours("exec", "killed", "sh", "-c", "echo kept >/written")
        (point,) = mounts_of_containers(top)
        end(read_status(bytes(point)).pid)
        pair.ours("stop", "-t", "0", "killed")
        if point in mounts_of_containers(top):  # podman leaves a dead mount where it is
            unmount(bytes(point), lazy=True)
        pair.ours("start", "killed")
        assert pair.ours("exec", "killed", "cat", "/written") == "kept"


@pytest.mark.long
def test_rootless_container_runs_again_after_its_mounts_daemon_was_killed(rootless: Pair, top: Path) -> None:
    """Its mounts are in the namespaces of the user's podman, where podman replaces the dead one."""
    with running(rootless.ours, "killed"):
        rootless.ours("exec", "killed", "sh", "-c", "echo kept >/written")
        (daemon,) = daemons_of(top)
        end(daemon)
        rootless.ours("stop", "-t", "0", "killed")
        rootless.ours("start", "killed")
        assert rootless.ours("exec", "killed", "cat", "/written") == "kept"
        (restarted,) = daemons_of(top)
        assert restarted != daemon


def test_container_with_immutable_files_is_removed(pair: Pair) -> None:
    """With the kernel's overlayfs they are immutable in the upper, too, and in the way of the engine."""
    with running(pair.ours, "fixed", options=("--cap-add=LINUX_IMMUTABLE",)):
        commands = "echo x >/new; chattr +i /new /etc/kept /opaque; ! echo y >/new; ! rm /etc/kept; ! touch /opaque/x"
        pair.ours("exec", "fixed", "sh", "-ec", commands)
        pair.ours("stop", "-t", "0", "fixed")
        pair.ours("start", "fixed")
        pair.ours("exec", "fixed", "sh", "-ec", "! echo y >/new; chattr -i /new; echo y >/new")
