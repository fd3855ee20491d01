"""How is runc called for a live container, as root and as an ordinary user?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from overlayfs.container.containers import BUNDLE, Container, Containers
from overlayfs.container.live.signals import program_of
from overlayfs.container.namespaces import in_user_namespace_of
from overlayfs.container.runtime import Kind, find_runtime
from overlayfs.container.supervise import RUNC_STATE
from overlayfs.image.oci.errors import ImageError, InvalidError
from overlayfs.image.store.store import Store


def bundle_of(store: Path, container: Container) -> Path:
    return store / "containers" / container.place / BUNDLE


def running_under_runc(store_directory: Path | None, name: str) -> tuple[Container, Path]:
    """A live container of runc, and the store. Raises InvalidError for others."""
    with Store.open(store_directory) as store:
        container, path = Containers(store).find(name), store.path
    if not container.is_active or container.mountpoint:
        raise InvalidError(f"the container {container.name} is not running: see overlayfs start")
    if program_of(container, bundle_of(path, container)) is None:
        raise no_program(container, "does not run under runc: run it detached, or with --runtime runc")
    return container, path


def no_program(container: Container, otherwise: str) -> InvalidError:
    """Says why a container in use has no program that can be reached."""
    if container.process is not None and not container.process.is_of_our_namespace:
        return InvalidError(f"the container {container.name} is used in another pid namespace: do that there")
    if container.is_detached:
        return InvalidError(f"the container {container.name} is just starting or ending: try again")
    return InvalidError(f"{container.name} {otherwise}")


def begin_again_inside(pid: int, store: Path) -> None:
    """Run this very command once more in the user namespace of a process, where an ordinary user is the container's
    root and may enter its tree; nothing to do if that is our namespace."""
    words = in_user_namespace_of(pid)
    if words:
        again = [sys.executable, "-m", "overlayfs.cli.main", "--store", str(store), *sys.argv[1:]]
        os.execv(words[0], [*words, *again])


def runc_words(container: Container, store: Path) -> list[str]:
    """The start of a command line of runc on this container; an ordinary user's is in the user namespace of it."""
    _, runc = find_runtime(Kind.RUNC, has_terminal=False)
    pid = program_of(container, bundle_of(store, container)) or 0
    return [*in_user_namespace_of(pid), runc, "--root", str(bundle_of(store, container) / RUNC_STATE)]


def call_runc(container: Container, store: Path, *words: str) -> str:
    """What runc says. Raises ImageError with its reason."""
    command = [*runc_words(container, store), *words, container.place]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"runc {words[0]} {container.name}: {' '.join(done.stderr.split())[:300]}")
    return done.stdout
