"""Which mounts of the host must a container not keep busy?

A copy of the host's mount table keeps every filesystem in it in use: after an unmount on the host no daemon would end
and no disk space would be freed while the container runs. Shared mounts follow the unmounts of the host; all others are
detached in the copy, except those that the container and its runtime need.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from overlayfs._log import Log

from ..tree.mount_table import MountEntry, mount_entries
from ..tree.syscalls import unmount

log = Log(__name__)

_MOST_LINKS: Final = 40  # that the kernel follows: path_resolution(7)
_SYSTEM: Final = ("/proc", "/sys", "/dev", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")


class Needed(Struct, frozen=True):
    """Absolute paths: `paths` alone, `trees` with all mounts below them. For a path through symlinks, all paths on
    the way are included."""

    paths: frozenset[bytes]
    trees: frozenset[bytes]

    @classmethod
    def of(cls, paths: Iterable[str | Path], trees: Iterable[str | Path]) -> Needed:
        """These paths, and the parts of the system that this program itself needs."""
        ours = [sys.executable, sys.prefix, sys.base_prefix, *filter(os.path.isabs, sys.path)]
        return cls(_ways([*paths, *ours]), _ways([*trees, *_SYSTEM]))

    def covers(self, mountpoint: bytes) -> bool:
        return any(_is_inside(path, mountpoint) for path in self.paths | self.trees) or any(
            _is_inside(mountpoint, tree) for tree in self.trees
        )


def _ways(paths: Iterable[str | Path]) -> frozenset[bytes]:
    return frozenset(step for path in paths for step in _way(os.path.abspath(os.fsencode(path))))


def _way(path: bytes) -> Iterator[bytes]:
    """The path, and the paths it becomes as its symlinks are followed one by one."""
    yield os.path.realpath(path)
    for _ in range(_MOST_LINKS):
        yield path
        link = next(filter(os.path.islink, _from_the_top(path)), None)
        if link is None:
            return
        target = os.path.join(os.path.dirname(link), os.readlink(link))
        path = os.path.normpath(os.path.join(target, os.path.relpath(path, link)))


def _from_the_top(path: bytes) -> Iterator[bytes]:
    """`/a`, `/a/b`, … to the path itself."""
    end = path.find(b"/", 1)
    while end > 0:
        yield path[:end]
        end = path.find(b"/", end + 1)
    yield path


def _is_inside(path: bytes, directory: bytes) -> bool:
    return (path + b"/").startswith(directory.rstrip(b"/") + b"/")


def foreign_mounts(entries: Sequence[MountEntry], needed: Needed) -> list[MountEntry]:
    """The mounts to detach, in order: those on top first."""
    return [entry for entry in reversed(entries) if not entry.follows and not needed.covers(entry.mountpoint)]


def detach_foreign_mounts(needed: Needed) -> None:
    """Detach them in the mount namespace of this process, which is private and whose unmounts do not propagate.

    In a new user namespace the kernel locks the copied mounts together; there they stay.
    """
    for entry in foreign_mounts(mount_entries(), needed):
        try:
            unmount(entry.mountpoint, lazy=True)
        except OSError as error:
            log.info("the mount at %r stays in the container's namespace: %s", entry.mountpoint, error)
