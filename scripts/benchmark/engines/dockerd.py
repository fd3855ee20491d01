"""dockerd, with the peer found in PATH under the name fuse-overlayfs, or with overlay2 for the kernel's overlayfs.

Neighbours: engine.py. The daemon has its own data, socket and namespaces of containerd, and leaves the network alone.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .. import machine
from ..commands import Clock, TrialFailed, last_line, run_command
from ..peers import FUSE_OVERLAYFS, KERNEL
from .engine import LOOK_S, Engine, limits

START_LIMIT_S = 60.0
END_LIMIT_S = 30.0
NAMESPACE = "overlayfs-bench"
"""Of containerd's namespaces and of the parent of the containers' control groups."""

LEFT_BEHIND = (
    "/etc/docker/key.json",
    "/etc/docker",
    "/run/docker/plugins",
    "/run/docker",
    "/run/containerd/s",
    "/run/containerd",
    "/opt/containerd/bin",
    "/opt/containerd/lib",
    "/opt/containerd",
)
"""What dockerd and containerd make in places that no option changes; directories after what is in them."""


class Docker(Engine):
    """A client (the classic builder, which mounts in each step) and a daemon of its own."""

    name = "docker"
    client = "docker"
    programs = ("docker", "dockerd", "containerd", "runc")
    _daemon: subprocess.Popen[bytes] | None = None
    _absent: tuple[Path, ...] = ()

    def set_up(self) -> None:
        if self.peer.extra:
            raise TrialFailed("dockerd passes no mount options on")
        self._absent = tuple(path for path in map(Path, LEFT_BEHIND) if not path.exists())
        socket = f"unix://{self.scratch}/docker.sock"
        self.environment |= {"DOCKER_HOST": socket, "DOCKER_BUILDKIT": "0", "DOCKER_CONFIG": str(self.scratch)}
        log = self.scratch / "dockerd.log"
        self._daemon = self._start(socket, log)
        self._await(self._daemon, log)

    def _driver_path(self) -> str:
        """A PATH in which the peer's program is fuse-overlayfs."""
        path = machine.ENVIRONMENT["PATH"]
        if self.peer.base in (KERNEL, FUSE_OVERLAYFS):
            return path
        programs = self.scratch / "bin"
        programs.mkdir()
        (programs / "fuse-overlayfs").symlink_to(str(shutil.which(self.peer.program, path=path)))
        return f"{programs}:{path}"

    def _configuration(self) -> dict[str, object]:
        return {
            "data-root": str(self.directory / "root"),
            "exec-root": str(self.scratch / "exec"),
            "pidfile": str(self.scratch / "docker.pid"),
            "storage-driver": "overlay2" if self.peer.base == KERNEL else "fuse-overlayfs",
            "bridge": "none",
            "iptables": False,
            "ip-forward": False,
            "ip-masq": False,
            "userland-proxy": False,
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "cgroup-parent": f"/{NAMESPACE}",
            "default-ulimits": {name: {"Name": name, "Soft": limit, "Hard": limit} for name, limit in limits().items()},
        }

    def _start(self, socket: str, log: Path) -> subprocess.Popen[bytes]:
        configuration = self.scratch / "daemon.json"
        configuration.write_text(json.dumps(self._configuration()))
        namespaces = ["--containerd-namespace", NAMESPACE, "--containerd-plugins-namespace", f"{NAMESPACE}-plugins"]
        with log.open("wb") as output:
            return subprocess.Popen(
                ["dockerd", "--config-file", str(configuration), "--host", socket, *namespaces],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=machine.ENVIRONMENT | self.environment | {"PATH": self._driver_path()},
                start_new_session=True,
            )

    def _await(self, daemon: subprocess.Popen[bytes], log: Path) -> None:
        """Return when the daemon answers. Raises TrialFailed with its last words."""
        clock = Clock(START_LIMIT_S)
        while clock.left_s() > 0:
            try:
                run_command(["docker", "info"], clock, self.output, None, self.environment)
            except TrialFailed:
                if machine.wait_for(daemon.pid, LOOK_S):
                    break
                time.sleep(LOOK_S)
            else:
                return
        raise TrialFailed(f"dockerd: {last_line(log.read_text(errors='replace'))}")

    def shut_down(self) -> Iterable[int]:
        """The daemon, which ends its containerd; the base class then sees to containers that are left."""
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.terminate()
            machine.wait_for(self._daemon.pid, END_LIMIT_S)
            yield self._daemon.pid

    def take_away(self) -> None:
        super().take_away()
        hierarchies = Path("/sys/fs/cgroup")
        for group in (*hierarchies.glob(NAMESPACE), *hierarchies.glob(f"*/{NAMESPACE}")):
            remove(group)
        for path in self._absent:
            remove(path)


def remove(path: Path) -> None:
    """Delete a file, or a directory unless somebody else put something into it."""
    with suppress(OSError):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
