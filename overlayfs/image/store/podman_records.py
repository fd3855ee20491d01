"""What does podman read of this store, and which layers does it use?

The records are those of containers/storage: images.go, layers.go, pkg/lockfile. Podman's own storage tells what it
uses: `overlay/ID/lower` there lists the links of all layers below a layer, and `overlay-images/images.json` the topmost
layer of each image.
"""

from __future__ import annotations

import base64
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, field

from ...tree.mount_table import mount_entries
from ..oci.digest import Digest
from ..oci.errors import InUseError, InvalidError
from .published import DIRECTORY, is_shared

Record = TypeVar("Record")

_ROOTS: Final = "graph-roots.json"
_RETRY_S: Final = 0.05
_PATIENCE_S: Final = 10.0
_LAYERS_REMEDY: Final = "remove it if podman has no container on an image that was removed here"
_ROOTS_REMEDY: Final = "remove it and run overlayfs share podman"
_LINK_BYTES: Final = 16  # 26 characters, as podman's own


class LayerRecord(Struct, frozen=True, omit_defaults=True):
    """A layer of an image, on its parent. `key` is that of its tree."""

    id: str
    key: Digest = field(name="metadata")
    parent: str = ""
    compressed_digest: str = field(default="", name="compressed-diff-digest")
    compressed_size: int = field(default=0, name="compressed-size")
    digest: str = field(default="", name="diff-digest")
    size: int = field(default=0, name="diff-size")
    uids: list[int] = field(default=[], name="uidset")
    gids: list[int] = field(default=[], name="gidset")

    @property
    def link(self) -> str:
        """The short name by which mounts refer to the layer."""
        return base64.b32encode(bytes.fromhex(self.id)[:_LINK_BYTES]).decode().rstrip("=")


class ImageRecord(Struct, frozen=True, omit_defaults=True):
    """An image with its names and, by name, the sizes and digests of its documents."""

    id: str
    digest: str
    names: list[str]
    layer: str
    created: str = ""
    documents: list[str] = field(default=[], name="big-data-names")
    sizes: dict[str, int] = field(default={}, name="big-data-sizes")
    digests: dict[str, str] = field(default={}, name="big-data-digests")


class _ForeignImage(Struct):
    layer: str = ""


def layers_file(store: Path) -> Path:
    return store / DIRECTORY / "overlay-layers/layers.json"


def split_file(store: Path, layer: str) -> Path:
    """What the tar of a layer has besides the data of files."""
    return layers_file(store).with_name(f"{layer}.tar-split.gz")


def layer_records(store: Path) -> list[LayerRecord]:
    """The layers that podman sees. Raises InvalidError."""
    return read_records(layers_file(store), LayerRecord, _LAYERS_REMEDY)


def graph_roots(store: Path) -> list[Path]:
    """The directories of podmans that may use layers; none unless the store is shared. Raises InvalidError."""
    roots = known_roots(store)
    if not roots and is_shared(store):  # anything may be in use
        raise InvalidError(f"{roots_file(store)} is missing or lists nothing: {_ROOTS_REMEDY}")
    return list(map(Path, roots))


def known_roots(store: Path) -> list[str]:
    """As `graph_roots`, but none where their list is missing."""
    return read_records(roots_file(store), str, _ROOTS_REMEDY)


def read_records(path: Path, kind: type[Record], remedy: str = "mend it first") -> list[Record]:
    """The records in a file; none where there is no file. Raises InvalidError for a damaged file, with the remedy."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[kind])  # type: ignore[valid-type]
    except FileNotFoundError:
        return []
    except msgspec.MsgspecError as error:
        raise InvalidError(f"{path} is damaged: {error}; {remedy}") from None


@contextmanager
def podmans_lock(path: Path) -> Iterator[None]:
    """Hold a lock file against podman; at the end, tell those who have read the records that they have changed.

    containers/storage locks with fcntl(2), and writes a random text whenever it changes something. InUseError as for
    `no_new_uses`.
    """
    with ExitStack() as stack:
        fd = _locked(stack, path, time.monotonic() + _PATIENCE_S)
        try:
            yield
        finally:  # some of it may have changed
            os.pwrite(fd, os.urandom(32).hex().encode(), 0)


@contextmanager
def no_new_uses(store: Path, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Let no podman put a new layer on ours: a container that it makes meanwhile waits, or finds the image gone.

    Not to be nested: when the inner context closes its files, the locks of the process are gone. InUseError if podman
    itself holds its lock after `patience_s`, as for a layer that it unpacks.
    """
    deadline = time.monotonic() + patience_s
    with ExitStack() as stack:
        for root in graph_roots(store):
            with suppress(FileNotFoundError):  # a podman without a graph root has nothing
                (root / "overlay-layers").mkdir(0o700, exist_ok=True)
                _locked(stack, root / "overlay-layers/layers.lock", deadline)
        yield


def _locked(stack: ExitStack, path: Path, deadline: float) -> int:
    """The descriptor of a lock file, made if missing and locked until the end of the stack."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    stack.callback(os.close, fd)
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise InUseError(f"podman is at work in {path.parent}: try again when it has ended") from None
            time.sleep(_RETRY_S)
        else:
            return fd


def roots_file(store: Path) -> Path:
    """Lists the directories in which podmans keep what they put on the layers of this store."""
    return store / DIRECTORY / _ROOTS


def layers_in_use(store: Path) -> list[LayerRecord]:
    """The layers that containers and images of podman stand on, or that it has mounted."""
    if not is_shared(store):
        return []
    records = {record.id: record for record in layer_records(store)}
    links, tops = set[str](), set[str]()
    for root in graph_roots(store):
        try:
            links |= set(_links(root))
        except PermissionError:  # a container with ids of its own: it may stand on any
            return list(records.values())
        tops |= {image.layer for image in read_records(root / "overlay-images/images.json", _ForeignImage)}
    mounted = _mounted_below(store)
    used = [record for record in records.values() if record.link in links or record.id in tops or record.key in mounted]
    return [records[name] for name in _with_parents(used, records)]


def _links(root: Path) -> Iterator[str]:
    """The links of all layers that lie below others in a podman's own storage."""
    try:
        names = os.listdir(root / "overlay")
    except FileNotFoundError:
        return
    for name in names:
        with suppress(FileNotFoundError, NotADirectoryError):
            for lower in (root / "overlay" / name / "lower").read_text("ascii", "replace").split(":"):
                yield lower.removeprefix("l/")


def _mounted_below(store: Path) -> set[str]:
    """The keys of the layers in whose directories something is mounted: podman mounts images there."""
    layers = os.path.realpath(store / "layers")
    points = (os.fsdecode(entry.mountpoint) for entry in mount_entries())
    return {f"sha256:{point[len(layers) + 1 :].split('/')[0]}" for point in points if point.startswith(f"{layers}/")}


def _with_parents(used: Iterable[LayerRecord], records: dict[str, LayerRecord]) -> dict[str, None]:
    found: dict[str, None] = {}
    for record in used:
        name = record.id
        while name in records and name not in found:
            found[name] = None
            name = records[name].parent
    return found
