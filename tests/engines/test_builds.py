"""podman builds the same images on our mount and on the kernel's; containers leave no mount, and survive a daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs.cli.mounts.live import our_mounts, read_status
from overlayfs.tree.syscalls import unmount
from tests.contract.tree import Tree, directory, file, hardlink, symlink
from tests.engines.podman import Podman, archive_of, end
from tests.image.snapshot import Seen, snapshot

BASE: Tree = {
    "etc/kept": file(b"kept", 0o640, 33, 34),
    "etc/gone": file(b"x"),
    "opaque/old": file(b"old"),
    "moved/deep/file": file(b"deep"),
    "replaced/by-file": file(b"x"),
    "linked/a": file(b"one"),
    "linked/b": hardlink("linked/a"),
    "setuid": file(b"s", 0o4755),
    "able": file(
        b"c", 0o755, xattrs={"security.capability": bytes.fromhex("0100000200040000000000000000000000000000")}
    ),
    "link": symlink("etc/kept", 1, 2),
    "tmp": directory(0o1777),
}
STEPS = """
FROM base
RUN rm /etc/gone && rm -r /opaque && mkdir /opaque && echo new >/opaque/new
RUN mv /moved /renamed && echo more >>/renamed/deep/file
RUN rm -r /replaced && echo file >/replaced
RUN echo two >>/linked/a && ln /linked/b /linked/c
RUN chown 5:6 /etc/kept /setuid && chmod 4711 /setuid && touch /able
"""


LINKED = ("linked/a", "linked/b", "linked/c")


@pytest.fixture(scope="module")
def base(top: Path) -> Path:
    (top / "built").mkdir()
    return archive_of(BASE, top / "built", "chmod", "mv")


@pytest.fixture(scope="module")
def ours(new_podman: Callable[..., Podman], base: Path) -> Podman:
    return _with_base(new_podman("build-ours"), base)


@pytest.fixture(scope="module")
def kernel_s(new_podman: Callable[..., Podman], base: Path) -> Podman:
    return _with_base(new_podman("build-kernel", ours=False), base)


def _with_base(podman: Podman, base: Path) -> Podman:
    podman("import", "-q", base, "base")
    return podman


def tree_of(podman: Podman, name: str) -> dict[str, Seen]:
    seen = snapshot(Path(podman("image", "mount", name)))
    podman("image", "umount", name)
    return {path: each._replace(mtime_ns=0) for path, each in seen.items()}


@pytest.mark.parametrize(
    ("isolation", "network"), [("chroot", "host"), pytest.param("oci", "none", marks=pytest.mark.long)]
)
def test_image_of_a_dockerfile_is_the_one_that_the_kernel_s_overlay_gives(
    ours: Podman, kernel_s: Podman, tmp_path: Path, isolation: str, network: str
) -> None:
    (tmp_path / "Dockerfile").write_text(STEPS)
    for podman in (ours, kernel_s):
        podman("build", "-q", "--layers", f"--isolation={isolation}", f"--network={network}", "-t", isolation, tmp_path)
    built, theirs = (tree_of(podman, isolation) for podman in (ours, kernel_s))
    linked = [{name: tree.pop(name) for name in LINKED} for tree in (built, theirs)]
    assert len({(each.content, len(each.links)) for each in linked[0].values()}) == 1  # one file
    assert linked[1]["linked/a"].links == ()  # the kernel's copy-up has split it: podman mounts with index=off
    assert built == theirs
    assert "etc/gone" not in built
    assert "renamed/deep/file" in built


def test_five_containers_at_once_leave_no_mount(ours: Podman) -> None:
    before = our_mounts()
    for number in range(5):
        ours("run", "-d", f"--name=at-once-{number}", "base", "sh", "-c", f"echo {number} >/mine; sleep 1000")
    assert [ours("exec", f"at-once-{number}", "cat", "/mine") for number in range(5)] == list("01234")
    assert len(our_mounts()) == len(before) + 5
    ours("rm", "-f", "-t", "0", *(f"at-once-{number}" for number in range(5)))
    assert our_mounts() == before


def test_container_runs_again_after_its_mount_s_daemon_was_killed(ours: Podman) -> None:
    before = our_mounts()
    ours("run", "-d", "--name=killed", "base", "sh", "-c", "sleep 1000")
    ours("exec", "killed", "sh", "-c", "echo kept >/written")
    (mounted,) = [entry for entry in our_mounts() if entry not in before]
    end(read_status(mounted.mountpoint).pid)
    ours("stop", "-t", "0", "killed")
    if mounted in our_mounts():  # podman leaves a dead mount where it is
        unmount(mounted.mountpoint, lazy=True)
    ours("start", "killed")
    assert ours("exec", "killed", "cat", "/written") == "kept"
    ours("rm", "-f", "-t", "0", "killed")
    assert our_mounts() == before
