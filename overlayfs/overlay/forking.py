"""How are upper and workdir of a fork made: a mount that goes on from a snapshot of another, live one?

The other mount notices nothing, and is not asked: its layers up to a snapshot never change. Neighbour: forks, whose
locks keep them.
"""

from __future__ import annotations

import os
import secrets

from overlayfs._typing import Final

from . import drafts, forks, history, next_layer
from .layer import open_layer
from .options import MountError
from .stack import Entry

UPPER: Final = b"upper"
WORK: Final = forks.WORK
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def make(upper: bytes, work: bytes, snapshot: str, prefix: bytes) -> bytes:
    """A directory with UPPER and WORK, for a fork of the mount with this upper and workdir, whose marks have this xattr
    prefix. OSError, with nothing left; MountError where there is no such snapshot."""
    entries = _up_to(history.entries_of(work), snapshot)
    shared = [entry.as_shared(upper, work) for entry in entries]
    home = forks.home_of(os.fsencode(shared[0].directory))
    for directory in (home, *(os.fsencode(entry.directory) for entry in shared)):
        forks.let_share(directory)
    if _up_to(history.entries_of(work), snapshot) != entries:  # a layer may have been let change just before
        raise MountError(f"snapshot {snapshot} has just been dropped")
    made = os.path.join(home, history.DIRECTORY, forks.PREFIX + secrets.token_hex(8).encode())
    os.mkdir(made, 0o700)
    try:
        _make_workdir(os.path.join(made, WORK), shared)
        _make_upper(os.path.join(made, UPPER), os.fsencode(shared[-1].upper), prefix)
    except OSError:
        _remove(made)
        raise
    return made


def _remove(made: bytes) -> None:
    above, name = os.path.split(made)
    above_fd = os.open(above, _OPEN)
    try:
        with drafts.afterwards():
            drafts.remove(above_fd, name)
    finally:
        os.close(above_fd)


def _up_to(entries: list[Entry], snapshot: str) -> list[Entry]:
    names = [entry.snapshot for entry in entries[:-1]]
    if not snapshot or snapshot not in names:
        told = ", ".join(filter(None, names))
        raise MountError(f"there is no snapshot {snapshot}" + (f", but {told}" if told else ""))
    return entries[: names.index(snapshot) + 1]


def _make_workdir(work: bytes, shared: list[Entry]) -> None:
    """A workdir that says which layers there are."""
    os.mkdir(work, 0o755)
    forks.let_share(work)
    present = history.new(os.open(work, _OPEN))
    try:
        counts = next_layer.lost_links_of(present.open_links(shared[-1]))
        next_layer.write_lost_links(present.work_fd, counts)
        present.open()
        present.publish([*shared, Entry("")], durable=False)
    finally:
        for fd in present.descriptors():
            os.close(fd)


def _make_upper(upper: bytes, model: bytes, prefix: bytes) -> None:
    """An empty upper whose root is like that of the topmost layer."""
    os.mkdir(upper, 0o700)
    layer = open_layer(0, model).spelled(prefix).as_upper()
    try:
        root_fd = os.open(upper, _OPEN)
        try:
            next_layer.copy_root(prefix, layer, root_fd)
        finally:
            os.close(root_fd)
    finally:
        os.close(layer.root_fd)
