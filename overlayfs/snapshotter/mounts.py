"""How is a snapshot mounted?

A snapshot whose tree is one directory is bound; any other is a mount of our program. containerd starts it through
mount.fuse3(8): the type is `fuse3.` and the program, and its options are those of the mount program. Or the snapshotter
does: see `own_mounts`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .metadata import InvalidArgument, Kind, Snapshot

# containerd's labels: the mapping of a container's user namespace, as `container:host:size`, separated by commas
_MAPPING_LABELS = {
    "uidmapping": "containerd.io/snapshot/uidmapping",
    "gidmapping": "containerd.io/snapshot/gidmapping",
}
_MAPPING = re.compile(r"\d+:\d+:\d+(,\d+:\d+:\d+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount in containerd's terms."""

    type: str
    source: str
    options: tuple[str, ...]


class Mounts:
    """How the snapshots under one directory are mounted, by the mount program of that name."""

    def __init__(self, snapshots: Path, program: str) -> None:
        self._snapshots = snapshots
        self._type = f"fuse3.{program}"

    def upper(self, number: int) -> Path:
        """The directory of a snapshot's own tree."""
        return self._snapshots / str(number) / "fs"

    def work(self, number: int) -> Path:
        """The directory beside it that the mount works in."""
        return self._snapshots / str(number) / "work"

    def of(self, snapshot: Snapshot) -> Mount:
        """The mount that shows a snapshot."""
        mapping = mapping_options(snapshot.info.labels)
        is_view = snapshot.info.kind == Kind.VIEW
        if not snapshot.parents:
            if mapping:
                raise InvalidArgument(f"snapshot {snapshot.info.name} has no parent: its ids cannot be mapped")
            return bound(self.upper(snapshot.id), "ro" if is_view else "rw")
        if is_view and len(snapshot.parents) == 1 and not mapping:
            return bound(self.upper(snapshot.parents[0]), "ro")
        lower = "lowerdir=" + ":".join(_escaped(self.upper(parent)) for parent in snapshot.parents)
        return Mount(self._type, "overlay", (*self._writable(snapshot.id, is_view), lower, *mapping))

    def _writable(self, number: int, is_view: bool) -> tuple[str, ...]:
        if is_view:
            return ("ro",)
        return (f"workdir={_escaped(self.work(number))}", f"upperdir={_escaped(self.upper(number))}")


def mapping_options(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The mount program's options for the id mappings that the labels ask for; InvalidArgument for a malformed one."""
    options = []
    for option, label in _MAPPING_LABELS.items():
        if value := labels.get(label):
            if not _MAPPING.fullmatch(value):
                raise InvalidArgument(f"label {label}: {value!r} is not container:host:size")
            options.append(f"{option}={value.replace(',', ':')}")
    return tuple(options)


def bound(directory: Path, access: str) -> Mount:
    """A bind mount, `rw` or `ro`."""
    return Mount("bind", str(directory), (access, "rbind"))


def _escaped(path: Path) -> str:
    return re.sub(r"([\\:,])", r"\\\1", str(path))
