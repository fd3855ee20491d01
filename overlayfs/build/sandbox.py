"""Where does a step do its work? In the container of the step, mounted in a child process with its own namespaces.

The mount, other mounts that the step needs, and every process of it end with that child.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..container.child_mount import ChildMount
from ..container.containers import Container, Containers
from ..container.foreign_mounts import Needed
from ..container.namespaces import enter_mount_namespace, enter_user_namespace
from ..container.root_paths import Inside
from ..fuse.session import MountOptions
from ..image.layer.disk_format import choose_format
from ..image.store.store import Store
from ..image.tar.reader import Entry
from ..overlay.options import FsyncPolicy, OverlayOptions
from .children import Child, die_with


@dataclass(slots=True)
class Sandbox:
    """Inside of the child: the mounted `root`, and whether there are users besides root."""

    container: Container
    directory: Path
    root: Path
    inside: Inside
    has_users: bool
    stack: ExitStack
    _mounts: int = field(default=0, init=False)

    def space(self, name: str) -> Path:
        """A new directory outside of the container's tree, removed with the container."""
        self._mounts += 1
        path = self.directory / f"{name}-{self._mounts}"
        path.mkdir(0o700)
        return path

    def mount(self, lowers: Sequence[Path], *, is_writable: bool = False) -> Path:
        """Mount the layers of an image, top first, until the step ends; writes are thrown away."""
        place = self.space("mount")
        upper = work = None
        if is_writable:
            upper, work = self.space("upper"), self.space("work")
            _set_up_upper(upper)
        self.stack.enter_context(_mounted(lowers, place, upper, work))
        return place


def _set_up_upper(upper: Path) -> None:
    """Have owners kept as in the layers of this store: an ordinary user can remove all that is written there."""
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        choose_format(os.fsencode(upper)).finish(fd, Entry(b"", "d", 0o755), -1)
    finally:
        os.close(fd)


def _mounted(lowers: Sequence[Path], place: Path, upper: Path | None, work: Path | None) -> ChildMount:
    options = OverlayOptions(
        lowers=tuple(map(os.fsencode, lowers)),
        upper=None if upper is None else os.fsencode(upper),
        work=None if work is None else os.fsencode(work),
        fsync=FsyncPolicy.VOLATILE,  # a build that was cut off starts again
    )
    return ChildMount(options, MountOptions(os.fsencode(place), fuse_options=("allow_other",)))


def in_container(store: Store, container: Container, trees: Sequence[Path], work: Callable[[Sandbox], bytes]) -> bytes:
    """Do `work` on the mounted container, in a child process; its result. `trees` are directories of the host that it
    needs. Raises ChildError."""
    parent = os.getpid()

    def inner() -> bytes:
        with _sandbox(store, container, trees, parent) as sandbox:
            return work(sandbox)

    return Child(inner).wait()


@contextmanager
def _sandbox(store: Store, container: Container, trees: Sequence[Path], parent: int) -> Iterator[Sandbox]:
    containers = Containers(store)
    directory, root = containers.directory(container), containers.root(container)
    has_users = enter_namespaces(Needed.of([store.path, "/etc/resolv.conf", "/etc/hosts"], trees), parent)
    with ExitStack() as stack:
        lowers = containers.lowers(container)
        stack.enter_context(_mounted(lowers, root, containers.upper(container), containers.work(container)))
        inside = stack.enter_context(Inside(os.fsencode(root)))
        yield Sandbox(container, directory, root, inside, has_users, stack)


def enter_namespaces(needed: Needed, parent: int) -> bool:
    """Have mounts of our own, an ordinary user as root of a user namespace; whether it has users besides root."""
    if os.geteuid() == 0:
        enter_mount_namespace(needed)
        return True
    has_users = enter_user_namespace(needed)
    die_with(parent)
    return has_users
