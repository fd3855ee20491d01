"""Which settings make each container engine use our mount program, and in which files are they?

storage.conf: containers-storage.conf(5). daemon.json: dockerd(8), whose fuse-overlayfs driver runs the program of that
name in dockerd's PATH. config.toml: containerd's documentation, PLUGINS.md (proxy plugins).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from overlayfs.cli.host.settings import JSON, TOML, Format, Key
from overlayfs.cli.mounts.live import CommandError

SNAPSHOTTER: Final = "overlayfs-fuse"
SNAPSHOTTER_SOCKET: Final = "/run/overlayfs-snapshotter/snapshotter.sock"

_MOUNT_PROGRAM: Final = ("storage", "options", "overlay", "mount_program")
_DRIVER: Final = ("storage", "driver")
_STORAGE: Final[dict[Key, str]] = {
    _DRIVER: "overlay",
    ("storage", "runroot"): "/run/containers/storage",
    ("storage", "graphroot"): "/var/lib/containers/storage",
}


class Engine(StrEnum):
    """The engines by the name of their program."""

    PODMAN = "podman"
    BUILDAH = "buildah"
    DOCKER = "docker"
    CONTAINERD = "containerd"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is written where.

    `values` are set, `defaults` only where the file has no value; a file with another value than one of `required` is
    refused. `template` is the file that the engine reads where `file` is absent. `link` is a name of the program in a
    directory of the engine's PATH. Where `is_for_all`, the engines of all users read the file.
    """

    file: Path
    form: Format
    values: dict[Key, str | int]
    defaults: dict[Key, str | int]
    required: dict[Key, str]
    notes: tuple[str, ...]
    template: Path | None = None
    link: Path | None = None
    undo_notes: tuple[str, ...] = ()
    is_for_all: bool = False


def plan_of(engine: Engine, program: Path, *, for_user: bool) -> Plan:
    """The plan for the whole machine, or for the calling user's own engine."""
    match engine:
        case Engine.PODMAN | Engine.BUILDAH:
            return _storage_plan(program, for_user)
        case Engine.DOCKER:
            return _docker_plan(for_user)
        case Engine.CONTAINERD:
            return _containerd_plan(for_user)


def _user_configuration() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def _storage_plan(program: Path, for_user: bool) -> Plan:
    top = _user_configuration() / "containers" if for_user else Path("/etc/containers")
    return Plan(
        file=Path(os.environ.get("CONTAINERS_STORAGE_CONF") or top / "storage.conf"),
        form=TOML,
        values={_MOUNT_PROGRAM: str(program)},
        defaults={_DRIVER: "overlay"} if for_user else {**_STORAGE},
        required={_DRIVER: "overlay"},
        notes=("podman, buildah and CRI-O share this file. Containers that run keep their present mounts.",),
        template=None if for_user else Path("/usr/share/containers/storage.conf"),
        undo_notes=(
            "podman remembers that a mount program was used, and now looks for fuse-overlayfs in PATH.",
            "For the kernel's overlayfs, remove overlay/.has-mount-program below the graph root.",
        ),
        is_for_all=not for_user,
    )


def _docker_plan(for_user: bool) -> Plan:
    links = Path.home() / ".local/bin" if for_user else Path("/usr/local/bin")
    top = _user_configuration() / "docker" if for_user else Path("/etc/docker")
    return Plan(
        file=top / "daemon.json",
        form=JSON,
        values={("storage-driver",): "fuse-overlayfs"},
        defaults={},
        required={},
        notes=(
            f"{links} must come before the directory of another fuse-overlayfs in dockerd's PATH.",
            "Restart dockerd. Its images of the driver used so far are hidden, and come back when this is undone.",
        ),
        undo_notes=("Restart dockerd.",),
        link=links / "fuse-overlayfs",
    )


def _containerd_plan(for_user: bool) -> Plan:
    if for_user:
        raise CommandError("the snapshotter is a service of root; set containerd up without --user")
    plugin = ("proxy_plugins", SNAPSHOTTER)
    return Plan(
        file=Path("/etc/containerd/config.toml"),
        form=TOML,
        values={(*plugin, "type"): "snapshot", (*plugin, "address"): SNAPSHOTTER_SOCKET},
        defaults={("version",): 2},
        required={},
        notes=(f"Start overlayfs-snapshotter, restart containerd, then: ctr run --snapshotter {SNAPSHOTTER} …",),
        undo_notes=("Restart containerd.",),
    )
