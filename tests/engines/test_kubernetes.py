"""Pods on our snapshotter, asked for as the kubelet does: containerd's CRI plugin, images from a real registry."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.container.small import layer_of, programs
from tests.engines.containerd import OURS, Containerd, containerd_with_cri, write_oci_archive
from tests.engines.cri import Cri, Pod
from tests.image.registry.docker_registry import docker_registry
from tests.snapshotter.service import Service, mounts_below, new_service

CHANGE = "cat /data/kept; echo new >/data/new; rm /data/gone; mkdir /made; ls /data"
SAID = "kept\nkept\nnew\n"
SLEEP = ("/bin/sh", "-ec", "echo started; echo problem >&2; exec /bin/sleep 1000")
PODS = 20
CYCLES = 100


@dataclass(frozen=True)
class Images:
    """References of a registry that serves them."""

    pause: str
    app: str


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    directory = tmp_path_factory.mktemp("registry")
    base = layer_of(programs())
    layers = {
        "pause": [base],
        "app": [base, layer_of({"data/kept": b"x", "data/gone": b"x"}), layer_of({"data/kept": b"kept\n"})],
    }
    with docker_registry(directory) as registry:
        for name, tars in layers.items():
            archive = directory / f"{name}.tar"
            write_oci_archive(archive, f"{name}:1", tars, ["/bin/sleep", "infinity"])
            target = f"docker://{registry.name}/{name}:1"
            command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci-archive:{archive}", target]
            subprocess.run(command, check=True, timeout=120)
        yield Images(*(f"{registry.name}/{name}:1" for name in layers))


@dataclass(frozen=True)
class Node:
    """A node of a cluster, as far as its kubelet sees it."""

    service: Service
    containerd: Containerd
    cri: Cri

    def expect_nothing_left(self, *images: str) -> None:
        """After its pods were removed: no mount, no container's snapshot; and no layer without an image."""
        assert self.cri.sandboxes() == set()
        for image in images:
            self.cri("RemoveImage", image={"image": image})
        assert self.cri.images() == set()
        self.containerd("--namespace", "k8s.io", "content", "ls")
        assert mounts_below(self.service.top) == []
        self.collect_garbage()
        assert list(self.service.layers.iterdir()) == []

    def collect_garbage(self) -> None:
        """containerd collects after a removal that asks to wait for it; what is removed here is a lease of no use."""
        self.containerd("--namespace", "k8s.io", "leases", "create", "--id", "to-remove")
        self.containerd("--namespace", "k8s.io", "leases", "rm", "--sync", "to-remove")


@contextmanager
def new_node(images: Images, *options: str) -> Iterator[Node]:
    with new_service(*options) as service:
        service.start().close()
        with containerd_with_cri(service, OURS, images.pause) as containerd:
            cri = Cri(containerd.address, service.top / "logs")
            try:
                yield Node(service, containerd, cri)
            finally:
                for sandbox in cri.sandboxes():
                    cri.remove_pod(sandbox)
                cri.close()


@pytest.fixture(params=[(), ("--self-mount",)], ids=["containerd mounts", "snapshotter mounts"])
def node(request: pytest.FixtureRequest, images: Images) -> Iterator[Node]:
    with new_node(images, *request.param) as node:
        node.cri.pull(images.app)
        yield node


def log_of(pod: Pod) -> list[str]:
    """The streams and words of a container's log, whose lines also have times and tags."""
    lines = [line.split(" ", 3) for line in pod.log.read_text().splitlines()]
    return sorted(f"{stream} {text}" for _, stream, _, text in lines)


def test_pod_lives_as_the_kubelet_makes_it(node: Node, images: Images) -> None:
    pod = node.cri.start_pod("pod", images.app, *SLEEP)
    assert node.cri.exec(pod, CHANGE) == SAID
    assert log_of(pod) == ["stderr problem", "stdout started"]
    root = node.cri.exec(pod, "cat /proc/self/mounts").splitlines()[0].split()
    assert (root[1], root[2].split(".")[0]) == ("/", "fuse")
    node.cri.remove_pod(pod.sandbox)
    node.expect_nothing_left(images.app, images.pause)


def test_pods_of_one_image_share_its_layers_and_no_changes(node: Node, images: Images) -> None:
    pods = [node.cri.start_pod(f"pod-{number}", images.app, *SLEEP) for number in range(3)]
    layers = [kind for kind in _kinds(node) if kind == "Committed"]
    for number, pod in enumerate(pods):
        assert node.cri.exec(pod, f"echo {number} >/mine; {CHANGE}") == SAID
    assert [node.cri.exec(pod, "cat /mine") for pod in pods] == ["0\n", "1\n", "2\n"]
    assert [kind for kind in _kinds(node) if kind == "Committed"] == layers
    for pod in pods:
        node.cri.remove_pod(pod.sandbox)
    node.expect_nothing_left(images.app, images.pause)


def _kinds(node: Node) -> list[str]:
    rows = node.containerd("--namespace", "k8s.io", "snapshots", "--snapshotter", OURS, "ls").splitlines()[1:]
    return sorted(row.split()[-1] for row in rows)


def test_pod_outlives_both_daemons(node: Node, images: Images) -> None:
    pod = node.cri.start_pod("pod", images.app, *SLEEP)
    node.cri.exec(pod, "echo before >/before")
    node.service.end(signal.SIGKILL)
    node.containerd.end(signal.SIGKILL)
    node.service.start().close()
    node.containerd.start()
    assert node.cri.exec(pod, f"cat /before; {CHANGE}") == f"before\n{SAID}"
    again = node.cri.start_pod("again", images.app, *SLEEP)
    assert node.cri.exec(again, CHANGE) == SAID
    for each in (pod, again):
        node.cri.remove_pod(each.sandbox)
    node.expect_nothing_left(images.app, images.pause)
