"""`overlayfs mount IMAGE MNT`: the layers of an image, for a writable mount with the upper of a container.

Root sees the owners of the image, as does anybody in a read-only mount. In a writable mount of an ordinary user, that
user and the image's root change places: so the user may change the image, and commits new files as root's.
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct, structs

from overlayfs.cli.background import leave_behind
from overlayfs.cli.mount_program import UsageError
from overlayfs.cli.mounts.mount import Request, announce, serve
from overlayfs.container.containers import Container, Containers
from overlayfs.image.oci.digest import Digest
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.lowers import lower_keys
from overlayfs.image.store.store import Image, Store
from overlayfs.image.store.uses import Process, Use
from overlayfs.overlay.ownership import exchanged_with_root


class _Plan(Struct, frozen=True):
    """A mount to make; `record` protects its layers from pruning until the daemon has its own record."""

    request: Request
    use: Use
    store: Path
    container: Container | None
    record: str


def mount_image(request: Request, writable: bool, name: str | None, store_directory: Path | None) -> None:
    """Mount an image, and return once it is live (in the foreground: unmounted). Raises ImageError, MountError."""
    writable = writable or request.ephemeral
    _check(request, writable, name)
    with Store.open(store_directory) as store:
        plan = _plan(store, request, writable, name)
    # closed: a mount in the foreground may last for days
    daemon = None
    try:
        daemon = serve(plan.request, plan.request.upper, plan.request.work)
    finally:
        with Store.open(plan.store) as store:
            _hand_over(store, plan, daemon)
    announce(plan.request, _becomes_of(plan.container))


def _check(request: Request, writable: bool, name: str | None) -> None:
    if len(request.words) != 2 or request.lowers:
        raise UsageError("--rw and --name are for images: IMAGE MNT, without --lower")
    if name is not None and (not writable or request.ephemeral):
        raise UsageError("--name needs --rw, and excludes --ephemeral")
    if writable and (request.upper is not None or request.read_only):
        raise UsageError("--rw excludes --upper, --work and --read-only")
    if (request.upper is None) != (request.work is None):
        raise UsageError("--upper and --work belong together")


def _plan(store: Store, request: Request, writable: bool, name: str | None) -> _Plan:
    image = store.find(request.words[0])
    keys = lower_keys(store, image)
    mountpoint = request.words[1]
    request = request._replace(words=(mountpoint,), lowers=tuple(map(str, LayerStore(store).directories(keys))))
    use = Use(Process.of(os.getpid()), keys, image.descriptor.digest, os.path.realpath(mountpoint))
    container = None
    if writable:
        from overlayfs.cli.container.leftovers import sweep  # other mounts need not wait for it

        sweep(store)
        containers = Containers(store)
        container = _make_or_claim(containers, image, keys, name)
        request = _on_container(request, containers, container)
        use = structs.replace(use, container=container.id)
    return _Plan(request, use, store.path, container, store.record_mount(use))


def _make_or_claim(containers: Containers, image: Image, keys: list[Digest], name: str | None) -> Container:
    found = None if name is None else containers.named(name)
    if found is not None:
        return containers.claim(found, image)
    return containers.create(name, image, keys, is_ephemeral=name is None)


def _on_container(request: Request, containers: Containers, container: Container) -> Request:
    options = request.options
    if os.geteuid() != 0:
        options = (
            f"uidmapping={_exchanged_with_root(os.geteuid())}",
            f"gidmapping={_exchanged_with_root(os.getegid())}",
        )
        options += request.options  # explicit options of the user take precedence
    upper, work = containers.upper(container), containers.work(container)
    return request._replace(upper=str(upper), work=str(work), ephemeral=False, options=options)


def _exchanged_with_root(own: int) -> str:
    return ":".join(f"{disk}:{shown}:{size}" for disk, shown, size in exchanged_with_root(own))


def _hand_over(store: Store, plan: _Plan, daemon: int | None) -> None:
    """Hand the container and its record over to the daemon; give them up if there is none, or none any more."""
    container, containers = plan.container, Containers(store)
    try:
        if daemon is None:
            raise ProcessLookupError
        process, daemon_fd = Process.of(daemon), os.pidfd_open(daemon)
    except (FileNotFoundError, ProcessLookupError):  # nothing was mounted, or it has been unmounted already
        if container is not None:
            containers.release(container)
    else:
        store.record_mount(structs.replace(plan.use, process=process))
        if container is not None:
            container = containers.change(container, process=process, mountpoint=plan.use.mountpoint)
        if container is not None and container.is_ephemeral:
            leave_behind(lambda: _give_up(plan.store, container), after=daemon_fd)
        else:
            os.close(daemon_fd)
    store.forget_mount(plan.record)


def _give_up(store: Path, container: Container) -> None:
    with Store.open(store) as opened:
        Containers(opened).release(container)


def _becomes_of(container: Container | None) -> str:
    if container is None:
        return ""
    if container.is_ephemeral:
        return "; what is written is thrown away at the unmount"
    return f"; what is written is kept in the container {container.name}"
