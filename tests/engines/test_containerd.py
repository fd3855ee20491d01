"""containerd with our snapshotter: images, containers and their changes are those of its own overlay snapshotter."""

from __future__ import annotations

import signal
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.container.small import Files, layer_of, programs
from tests.engines.containerd import OURS, Containerd, containerd_beside, write_oci_archive
from tests.snapshotter.service import PATIENCE_S, Service, mounts_below, new_service

KERNEL_S = "overlayfs"
IMAGE = "localhost/small:latest"
CHANGE = """
cat /etc/kept /dir/low
echo new >/etc/new; echo more >>/etc/kept
rm /etc/gone; rm -r /dir; mkdir /dir; touch /dir/only
ln /etc/new /hard; ln -s target /link; chown 5:6 /etc/owned
ls /etc /dir
"""
SAID = "kept\nlow\n/dir:\nonly\n\n/etc:\nkept\nnew\nowned\n"


def _owned(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.uid, info.gid, info.mode = 33, 34, 0o640
    return info


LAYERS: tuple[Files, ...] = (
    {**programs(), "etc/kept": b"first\n", "etc/gone": b"x", "etc/never": b"x", "dir/low": b"low\n", "dir/deep/x": b""},
    {"etc/kept": b"kept\n", "etc/.wh.never": b"", "etc/owned": _owned("etc/owned")},
    {"top": b"top\n"},
)


@pytest.fixture(scope="module", params=[(), ("--self-mount",)], ids=["containerd mounts", "snapshotter mounts"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with new_service(*request.param) as service:
        service.start().close()
        yield service


@pytest.fixture(scope="module")
def containerd(service: Service) -> Iterator[Containerd]:
    with containerd_beside(service) as containerd:
        write_oci_archive(service.top / "image.tar", IMAGE, [layer_of(files) for files in LAYERS])
        for snapshotter in (OURS, KERNEL_S):
            containerd("images", "import", "--snapshotter", snapshotter, service.top / "image.tar")
        yield containerd


@contextmanager
def running(containerd: Containerd, snapshotter: str, name: str) -> Iterator[None]:
    """A container that sleeps; what it changed stays until its container is removed."""
    containerd("run", "--detach", "--snapshotter", snapshotter, IMAGE, name, "/bin/sleep", "1000")
    try:
        yield
    finally:
        containerd("tasks", "rm", "--force", name)


def exec_in(containerd: Containerd, name: str, commands: str) -> str:
    return containerd("tasks", "exec", "--exec-id", "shell", name, "/bin/sh", "-ec", commands)


def found_again(containerd: Containerd) -> dict[str, str]:
    """The snapshots, once containerd has connected to the service again: it waits some seconds between tries."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return containerd.snapshots(OURS)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_container_changes_what_it_changes_with_the_kernels_overlayfs(containerd: Containerd, service: Service) -> None:
    changed = {}
    for snapshotter, name in ((OURS, "ours"), (KERNEL_S, "kernel-s")):
        with running(containerd, snapshotter, name):
            assert exec_in(containerd, name, CHANGE) == SAID
            while_running = containerd.diff(snapshotter, name)
        assert mounts_below(service.top / "state") == []
        changed[snapshotter] = containerd.diff(snapshotter, name)
        assert changed[snapshotter] == while_running
        containerd("containers", "rm", name)
        assert name not in containerd.snapshots(snapshotter)
    assert changed[OURS] == changed[KERNEL_S]
    assert {"etc/.wh.gone", "etc/new", "etc/kept", "hard", "link"} < changed[OURS].keys()


def test_committed_changes_are_the_parent_of_new_snapshots(containerd: Containerd, service: Service) -> None:
    with running(containerd, OURS, "to-commit"):
        exec_in(containerd, "to-commit", CHANGE)
    snapshots = ("snapshots", "--snapshotter", OURS)
    containerd(*snapshots, "commit", "committed", "to-commit")
    assert containerd.snapshots(OURS)["committed"] == "Committed"
    containerd(*snapshots, "label", "committed", "example.com/a=b")
    assert '"example.com/a": "b"' in containerd(*snapshots, "info", "committed")
    size = containerd(*snapshots, "usage", "-b", "committed").split()
    assert int(size[-2]) > 0
    assert int(size[-1]) > 5
    containerd(*snapshots, "prepare", "next", "committed")
    shown = containerd(*snapshots, "mounts", str(service.top / "mnt"), "next")
    assert "upperdir=" in shown or f"mount -t bind {service.root}/mounts/" in shown
    assert containerd.diff(OURS, "next") == {}
    containerd("containers", "rm", "to-commit")
    for key in ("next", "committed"):
        containerd(*snapshots, "rm", key)


def test_snapshot_of_a_running_container_is_committed(containerd: Containerd, service: Service) -> None:
    snapshots = ("snapshots", "--snapshotter", OURS)
    with running(containerd, OURS, "busy"):
        exec_in(containerd, "busy", CHANGE)
        shown = containerd.diff(OURS, "busy")
        containerd(*snapshots, "commit", "committed", "busy")
        assert exec_in(containerd, "busy", "cat /etc/new") == "new\n"
        assert containerd.diff(OURS, "committed") == shown
    assert {"etc/new", "etc/.wh.gone"} < shown.keys()
    containerd("containers", "rm", "busy")
    containerd(*snapshots, "rm", "committed")


def test_container_outlives_the_snapshotter_and_containerd_finds_it_again(
    containerd: Containerd, service: Service
) -> None:
    with running(containerd, OURS, "outliving"):
        before = containerd.snapshots(OURS)
        exec_in(containerd, "outliving", "echo before >/before")
        service.end(signal.SIGKILL)
        exec_in(containerd, "outliving", "echo after >/after")
        service.start().close()
        assert found_again(containerd) == before
        assert exec_in(containerd, "outliving", "cat /before /after /top") == "before\nafter\ntop\n"
        assert {"before", "after"} < containerd.diff(OURS, "outliving").keys()
    containerd("containers", "rm", "outliving")
    assert "outliving" not in containerd.snapshots(OURS)


def test_nothing_is_left_of_a_removed_image() -> None:
    """With a containerd of its own, since its images are those of all snapshotters."""
    with new_service() as service:
        service.start().close()
        with containerd_beside(service) as containerd:
            write_oci_archive(service.top / "image.tar", IMAGE, [layer_of(files) for files in LAYERS])
            containerd("images", "import", "--snapshotter", OURS, service.top / "image.tar")
            assert sorted(containerd.snapshots(OURS).values()) == ["Committed"] * len(LAYERS)
            containerd("images", "rm", "--sync", IMAGE)
            assert containerd.snapshots(OURS) == {}
            assert list(service.layers.iterdir()) == []
