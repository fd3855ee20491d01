"""podman, with the peer as mount program, or without one for the kernel's overlayfs.

Neighbours: engine.py. Nothing of the user's own configuration or storage is read or written.
"""

import json
import shutil

from .. import machine
from ..peers import KERNEL
from .engine import Engine, limits

STORAGE = """[storage]
driver = "overlay"
runroot = "{run}"
graphroot = "{root}"
[storage.options.overlay]
{options}
"""
CONTAINERS = """[containers]
default_ulimits = {ulimits}
netns = "none"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{run}/libpod"
image_copy_tmp_dir = "{temporary}"
[network]
network_config_dir = "{run}/networks"
"""
"""Locks are files: the shared memory that they are in otherwise belongs to all podmans of the machine."""


class Podman(Engine):
    """No daemon: each command is a process."""

    name = "podman"
    client = "podman"
    programs = ("podman", "runc")

    def set_up(self) -> None:
        files = {"STORAGE_CONF": self._storage(), "CONF": self._containers(), "REGISTRIES_CONF": ""}
        for name, text in files.items():
            path = self.scratch / f"{name.lower()}.toml"
            path.write_text(text)
            self.environment[f"CONTAINERS_{name}"] = str(path)

    def _storage(self) -> str:
        options = []
        if self.peer.base != KERNEL:
            program = shutil.which(self.peer.program, path=machine.ENVIRONMENT["PATH"])
            options.append(f"mount_program = {json.dumps(program)}")
        if self.peer.extra:
            options.append(f"mountopt = {json.dumps(','.join(self.peer.extra))}")
        return STORAGE.format(run=self.scratch / "run", root=self.directory / "root", options="\n".join(options))

    def _containers(self) -> str:
        ulimits = [f"{name}={limit}:{limit}" for name, limit in limits().items()]
        return CONTAINERS.format(
            ulimits=json.dumps(ulimits), run=self.scratch / "run", temporary=self.directory / "tmp"
        )
