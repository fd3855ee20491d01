"""Times the snapshotter and pods on it, beside containerd's own snapshotter on the kernel's overlayfs.

    scripts/bench --containerd [--runs N] [--snapshots N]

Needs root, and the test environment of the clone (scripts/setup test): it uses the containerd of the tests and their
client of the Container Runtime Interface. Figures: Prepare and Mounts where there are many snapshots, the memory of the
snapshotter, the start of a pod (RunPodSandbox, CreateContainer, StartContainer), the snapshotters taking turns. What
it started and mounted is gone when it ends.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.container.small import layer_of, programs
from tests.engines.containerd import OURS, Containerd, containerd_with_cri, write_oci_archive
from tests.engines.cri import Cri
from tests.snapshotter.service import Client, new_service

KERNEL_S = "overlayfs"
IMAGE = "localhost/measured:1"
LAYERS = 8
PREPARE_LIMIT_MS = 5.0
MEMORY_LIMIT_MIB = 60.0
POD_FACTOR, POD_MORE_S = 1.1, 0.15
FASTEST = "overlayfs-mount by the snapshotter"  # and the one that the systemd unit has; the target is its
WAYS = {"overlayfs-mount by containerd": (), FASTEST: ("--self-mount",)}


def main() -> int:
    """Measure and print; the exit status says whether the targets are met."""
    options = _options()
    met = _measure_service(options.snapshots, options.runs)
    met &= _measure_pods(options.runs)
    return 0 if met else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench --containerd", description="Times pods on the snapshotter.")
    parser.add_argument("--runs", type=int, default=10, help="how often each figure is taken (default: 10)")
    parser.add_argument("--snapshots", type=int, default=1000, help="how many there are meanwhile (default: 1000)")
    return parser.parse_args()


def _measure_service(count: int, runs: int) -> bool:
    with new_service() as service:
        client = service.start()
        _fill(client, count)
        seconds = [_prepare_and_mounts(client, number) for number in range(runs)]
        memory_mib = _memory_mib(service.pid)
        client.close()
    memory_mib += _starter_mib()
    prepare_ms = statistics.median(seconds) * 1000
    spread = f"{min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f}"
    _say(f"Prepare and Mounts at {count} snapshots", f"{prepare_ms:.1f} ms ({spread})", PREPARE_LIMIT_MS, "ms")
    _say("memory of the snapshotter and its starter of mounts", f"{memory_mib:.1f} MiB", MEMORY_LIMIT_MIB, "MiB")
    return prepare_ms <= PREPARE_LIMIT_MS and memory_mib <= MEMORY_LIMIT_MIB


def _fill(client: Client, count: int) -> None:
    """A chain of layers, and active snapshots on its top."""
    for number in range(LAYERS):
        client.add(f"layer-{number}", f"layer-{number - 1}" if number else "")
    for number in range(count - LAYERS):
        client("Prepare", key=f"active-{number}", parent=f"layer-{LAYERS - 1}")


def _prepare_and_mounts(client: Client, number: int) -> float:
    begin = time.perf_counter()
    client("Prepare", key=f"measured-{number}", parent=f"layer-{LAYERS - 1}")
    client("Mounts", key=f"measured-{number}")
    return time.perf_counter() - begin


def _memory_mib(pid: int) -> float:
    """Of a process and its children, pages that they share counted once."""
    found = re.search(r"Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    assert found
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found[1]) / 1024 + sum(_memory_mib(int(child)) for child in children)


def _starter_mib() -> float:
    """What the process that mounts takes more."""
    with new_service("--self-mount") as service:
        client = service.start()
        client.add("base")
        client("Prepare", key="active", parent="base")  # answered when the process has imported everything
        client.close()
        (child,) = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
        return _memory_mib(int(child))


def _measure_pods(runs: int) -> bool:
    """The snapshotters take turns, so that what else the machine does meets all alike."""
    seconds: dict[str, list[float]] = {KERNEL_S: [], **{way: [] for way in WAYS}}
    for _ in range(2):
        for name, taken in seconds.items():
            with _node(KERNEL_S if name == KERNEL_S else OURS, WAYS.get(name, ())) as cri:
                _start_pod(cri, "warm")
                taken += [_start_pod(cri, f"pod-{number}") for number in range((runs + 1) // 2)]
    limit_s = POD_FACTOR * statistics.median(seconds[KERNEL_S]) + POD_MORE_S
    for name, taken in seconds.items():
        spread = f"{min(taken):.3f} to {max(taken):.3f}"
        _say(f"start of a pod, {name}", f"{statistics.median(taken):.3f} s ({spread})", limit_s, "s")
    return statistics.median(seconds[FASTEST]) <= limit_s


def _start_pod(cri: Cri, name: str) -> float:
    begin = time.perf_counter()
    pod = cri.start_pod(name, IMAGE, "/bin/sleep", "1000")
    seconds = time.perf_counter() - begin
    cri.remove_pod(pod.sandbox)
    return seconds


@contextmanager
def _node(snapshotter: str, options: Sequence[str]) -> Iterator[Cri]:
    with new_service(*options) as service:
        service.start().close()
        archive = service.top / "image.tar"
        write_oci_archive(archive, IMAGE, _layers(), ["/bin/sleep", "infinity"])
        with containerd_with_cri(service, snapshotter, IMAGE) as containerd:
            _import(containerd, snapshotter, archive)
            cri = Cri(containerd.address, service.top / "logs")
            try:
                yield cri
            finally:
                for sandbox in cri.sandboxes():
                    cri.remove_pod(sandbox)
                cri.close()


def _layers() -> list[bytes]:
    return [layer_of(programs()), *(layer_of({f"data/{number}": b"data"}) for number in range(LAYERS - 1))]


def _import(containerd: Containerd, snapshotter: str, archive: Path) -> None:
    containerd("--namespace", "k8s.io", "images", "import", "--snapshotter", snapshotter, archive)


def _say(what: str, found: str, limit: float, unit: str) -> None:
    print(f"{what:<52} {found:<30} at most {limit:.3g} {unit}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
