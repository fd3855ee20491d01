"""Pods on our snapshotter, asked for as the kubelet does: containerd's CRI plugin, images from a real registry."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.container.small import layer_of, programs
from tests.engines.containerd import OURS, Containerd, containerd_with_cri, write_oci_archive
from tests.engines.cri import Cri, Pod
from tests.engines.leftovers import ends
from tests.image.registry.docker_registry import docker_registry
from tests.snapshotter.service import PATIENCE_S, Service, mounts_below, new_service

CHANGE = "cat /data/kept; echo new >/data/new; rm /data/gone; mkdir /made; ls /data"
SAID = "kept\nkept\nnew\n"
SLEEP = ("/bin/sh", "-ec", "echo started; echo problem >&2; exec /bin/sleep 1000")
NAMESPACE = ("--namespace", "k8s.io")
AT_ONCE = 4
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

    def start_pods(self, image: str, names: Sequence[str]) -> list[Pod]:
        """At the same time, as a kubelet does; those that were started before a daemon was killed."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            started = [pool.submit(self.cri.start_pod, name, image, *SLEEP) for name in names]
        errors = [future.exception() for future in started]
        assert all(error is None or isinstance(error, grpc.RpcError) for error in errors), errors
        return [future.result() for future in started if future.exception() is None]

    def remove_pods(self, sandboxes: Iterable[str]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.cri.remove_pod, sandboxes))

    def expect_nothing_left(self, images: Images) -> None:
        """After its pods were removed: no process, no mount; and when the images are removed too, no layer."""
        assert self.cri.sandboxes() == set()
        assert [pid for pid in self.containerd.shims() if not ends(pid)] == []
        self.collect_garbage()
        assert mounts_below(self.service.top) == []
        assert set(self.kinds()) <= {"Committed"}
        for image in (images.app, images.pause):
            self.cri("RemoveImage", image={"image": image})
        assert self.cri.images() == set()
        self.collect_garbage()
        assert list(self.service.layers.iterdir()) == []

    def kinds(self) -> list[str]:
        """Of containerd's snapshots."""
        rows = self.containerd(*NAMESPACE, "snapshots", "--snapshotter", OURS, "ls").splitlines()[1:]
        return [row.split()[-1] for row in rows]

    def restart_service(self, number: int) -> None:
        """End it, start it, and wait until containerd has connected again: seconds pass between its tries."""
        self.service.end(number)
        self.service.start().close()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.kinds()
            except AssertionError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            else:
                return

    def restart_containerd(self, number: int) -> None:
        self.containerd.end(number)
        self.containerd.start()

    def collect_garbage(self) -> None:
        """As containerd does from time to time. A client that was killed leaves its lease, which ends after a day."""
        self.containerd(*NAMESPACE, "leases", "create", "--id", "any")
        for lease in self.containerd(*NAMESPACE, "leases", "ls", "--quiet").split():
            self.containerd(*NAMESPACE, "leases", "rm", "--sync", lease)


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
    node.expect_nothing_left(images)


def test_pods_of_one_image_share_its_layers_and_no_changes(node: Node, images: Images) -> None:
    pods = node.start_pods(images.app, ["a", "b", "c"])
    layers = node.kinds().count("Committed")
    for number, pod in enumerate(pods):
        assert node.cri.exec(pod, f"echo {number} >/mine; {CHANGE}") == SAID
    assert [node.cri.exec(pod, "cat /mine") for pod in pods] == ["0\n", "1\n", "2\n"]
    assert node.kinds().count("Committed") == layers
    node.remove_pods(pod.sandbox for pod in pods)
    node.expect_nothing_left(images)


def test_statistics_of_a_container_are_those_of_its_layer(node: Node, images: Images) -> None:
    """containerd's plugin asks for them from time to time, and so may know older ones at first."""
    pod = node.cri.start_pod("pod", images.app, *SLEEP)
    node.cri.exec(pod, "mkdir /made; for name in a b c; do cat /bin/sh >/made/$name; done")
    deadline = time.monotonic() + PATIENCE_S
    least = 3 * Path("/bin/sh").stat().st_size
    while True:
        usage = node.cri("ContainerStats", container_id=pod.container).stats.writable_layer
        if usage.used_bytes.value >= least and usage.inodes_used.value >= 5:
            break
        assert time.monotonic() < deadline, usage
        time.sleep(0.2)
    node.remove_pods([pod.sandbox])


def test_pod_outlives_both_daemons(node: Node, images: Images) -> None:
    pod = node.cri.start_pod("pod", images.app, *SLEEP)
    node.cri.exec(pod, "echo before >/before")
    node.restart_service(signal.SIGKILL)
    node.restart_containerd(signal.SIGKILL)
    assert node.cri.exec(pod, f"cat /before; {CHANGE}") == f"before\n{SAID}"
    again = node.cri.start_pod("again", images.app, *SLEEP)
    assert node.cri.exec(again, CHANGE) == SAID
    for each in (pod, again):
        node.cri.remove_pod(each.sandbox)
    node.expect_nothing_left(images)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("restart", [Node.restart_service, Node.restart_containerd])
def test_daemon_that_ends_while_pods_start_loses_and_leaves_nothing(
    node: Node, images: Images, restart: Callable[[Node, int], None], number: int
) -> None:
    kept = node.cri.start_pod("kept", images.app, *SLEEP)
    node.cri.exec(kept, "echo kept >/kept")
    for turn in range(3):
        before = len(list(node.service.layers.iterdir()))
        with ThreadPoolExecutor(1) as background:
            starting = background.submit(node.start_pods, images.app, [f"pod-{turn}-{each}" for each in range(4)])
            while not starting.done() and len(list(node.service.layers.iterdir())) <= before + turn:
                time.sleep(0.001)
            restart(node, number)
        for pod in starting.result():
            assert node.cri.exec(pod, CHANGE) == SAID
        assert node.cri.exec(kept, "cat /kept") == "kept\n"
    node.remove_pods(node.cri.sandboxes())
    if (restart, number) == (Node.restart_containerd, signal.SIGKILL):
        node.containerd.end_shims()  # it forgets those that it was starting (containerd, issue 6860)
    node.expect_nothing_left(images)


@pytest.mark.long
def test_twenty_pods_of_one_image_live_at_once(node: Node, images: Images) -> None:
    pods = node.start_pods(images.app, [f"pod-{number}" for number in range(PODS)])
    assert [node.cri.exec(pod, CHANGE) for pod in pods] == [SAID] * PODS
    node.remove_pods(pod.sandbox for pod in pods)
    node.expect_nothing_left(images)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_hundred_cycles_leave_nothing(node: Node, images: Images) -> None:
    for number in range(CYCLES):
        pod = node.cri.start_pod(f"pod-{number}", images.app, *SLEEP)
        assert node.cri.exec(pod, CHANGE) == SAID
        node.cri.remove_pod(pod.sandbox)
    node.expect_nothing_left(images)
