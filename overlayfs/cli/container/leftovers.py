"""What do killed runs leave, and who removes it? The next command that lists, makes, uses or removes containers.

A janitor does so at once if it lives; a bundle of a container that nobody uses shows that it was killed too.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from overlayfs.container import anonymous
from overlayfs.container.containers import BUNDLE, RECORD, Container, Containers
from overlayfs.container.namespaces import in_user_namespace_of
from overlayfs.container.runtime import Kind, find_runtime
from overlayfs.container.supervise import PID, RUNC_STATE, stop_runc
from overlayfs.image.oci.errors import ImageError, InUseError, NotFoundError
from overlayfs.image.store.staging import remove_leftovers
from overlayfs.image.store.store import Store


def sweep(store: Store) -> None:
    """End programs whose keeper was killed, and remove ephemeral containers that nobody uses."""
    containers = Containers(store)
    places = list((store.path / "containers").iterdir())
    for container in containers.readable().containers:
        clean_up(store, container)
    for place in places:
        _remove_remains(place)
    anonymous.sweep(store)


def find(store: Store, text: str) -> Container:
    """A container that is to be used or removed, without the program of a killed run. Raises as `Containers.find`."""
    container = Containers(store).find(text)
    clean_up(store, container)
    return container


def _remove_remains(directory: Path) -> None:
    """Remove the empty directories that runc makes for its state, also when it begins just after its container was
    removed."""
    if (directory / RECORD).exists():
        return
    bundle = directory / BUNDLE
    with suppress(OSError):  # there is more in it
        for path in (bundle / RUNC_STATE, bundle, directory):
            with suppress(FileNotFoundError):
                path.rmdir()


def clean_up(store: Store, container: Container) -> None:
    """End the program of a killed run of a container, and remove its bundle."""
    containers = Containers(store)
    bundle = containers.directory(container) / BUNDLE
    if container.process is None or container.is_in_use or not bundle.exists():
        return
    with suppress(NotFoundError, InUseError), containers.left(container) as is_left:
        if is_left:  # else somebody has done it
            with suppress(NotFoundError):  # without runc, no program of it is there
                _, runc = find_runtime(Kind.RUNC, has_terminal=False)
                stop_runc(runc, bundle, container.place, before=_inside(bundle))
            remove_leftovers([bundle])


def _inside(bundle: Path) -> list[str]:
    """What leads into the user namespace of the program, whose users an ordinary user can only kill there.

    Root can kill them anyway, and enters no namespace: after a reboot the pid may be that of anybody's process.
    """
    if os.geteuid() == 0:
        return []
    try:
        return in_user_namespace_of(int((bundle / PID).read_text()))
    except (OSError, ValueError, ImageError):  # it has ended, or was never made
        return []
