"""How is the tree of a running container reset? From its own mount namespace, as its mount is nowhere else.

Its daemon takes commands from there alone, and an ordinary user may give them as the root of its user namespace. The
program goes on, and what is mounted in its tree stays mounted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from overlayfs.cli.mounts.listing import status_of
from overlayfs.cli.mounts.live import CommandError
from overlayfs.container.containers import Container
from overlayfs.container.namespaces import enter_namespaces_of
from overlayfs.fuse import commanding
from overlayfs.image.oci.errors import InUseError
from overlayfs.overlay.options import MountError

_DONE: Final = "done"


def reset_running(container: Container, root: Path, upper: Path) -> None:
    """Reset the tree of a container in use, which is mounted on `root`. Raises CommandError, InUseError."""
    assert container.process is not None
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if not child:
        try:
            _tell(write_fd, _reset(container, bytes(root), bytes(upper)))
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as answer:
        said = answer.read().decode(errors="replace")
    os.waitpid(child, 0)
    if said != _DONE and not container.process.is_alive():
        raise InUseError(f"the container {container.name} has just ended: try again")
    if said != _DONE:
        raise CommandError(f"{container.name}: {said or 'the resetting process died'}")


def _tell(fd: int, text: str) -> None:
    os.write(fd, text.encode("utf-8", "backslashreplace"))


def _reset(container: Container, root: bytes, upper: bytes) -> str:
    """The reset itself, in a process of its own: why it failed, or `_DONE`."""
    try:
        assert container.process is not None
        enter_namespaces_of(container.process)
        entry, status = status_of(os.fsdecode(root))
        if status.upper != upper:
            return "another mount covers that of the container"
        # the working directory may be among the scaffold, too
        commanding.reset(entry.mountpoint, map(os.fsencode, container.scaffold))
    except (CommandError, MountError) as error:
        return str(error).removeprefix(f"{os.fsdecode(root)}: ")
    except OSError as error:
        return f"the mount of its tree cannot be reached: {error.strerror}"
    return _DONE
