"""`images --from ENGINE` and `mount ENGINE:NAME`: images straight from an engine's storage."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.mounts.mount import Request, mount
from overlayfs.cli.output import Cell, format_size, print_json, print_table, safe
from overlayfs.image.foreign.containerd import images_of_containerd
from overlayfs.image.foreign.docker import images_of_docker
from overlayfs.image.foreign.podman import images_of_podman
from overlayfs.image.foreign.stored_image import StoredImage, find, trees
from overlayfs.image.oci.errors import ImageError, NotFoundError
from overlayfs.image.store.store import Store

_SHORT: Final = 12
_CONTAINERD: Final = Path("/etc/containerd/config.toml")
_OUR_SNAPSHOTTERS: Final = {"overlayfs-fuse": Path("/var/lib/overlayfs-snapshotter")}
"""By the name that `setup containerd` gives it."""


def is_in_store(name: str, store_directory: Path | None) -> bool:
    """Whether our own store has an image of this name."""
    with Store.open(store_directory) as store:
        try:
            store.find_entry(name)
        except ImageError:
            return False
    return True


def mount_of_engine(request: Request) -> None:
    """Mount an image of an engine: its layers are the lowers. Raises ImageError, MountError."""
    engine, _, name = request.words[0].partition(":")
    layers = trees(find(_images_of(engine), name))
    if not layers:
        raise NotFoundError(f"{safe(name)} has no layers")
    mount(request._replace(words=request.words[1:], lowers=tuple(map(str, layers))))


def show_images_of(engine: str, as_json: bool) -> None:
    """List the images of an engine."""
    images = list(_images_of(engine))
    if as_json:
        print_json([_document(image) for image in images])
    elif images:
        print_table(("NAME", "IMAGE ID", "LAYERS", "SIZE"), [row for image in images for row in _rows(image)])


def _rows(image: StoredImage) -> Iterator[list[Cell]]:
    size = Cell("?" if image.size is None else format_size(image.size))
    for name in image.names or ("<none>",):
        yield [Cell(safe(name), "bold"), Cell(image.identity[:_SHORT]), Cell(str(len(image.layers))), size]


def _document(image: StoredImage) -> dict[str, Any]:
    return {
        "Id": f"sha256:{image.identity}",
        "RepoTags": list(image.names),
        "Created": image.created,
        "Size": image.size,
        "Layers": [str(path) for path in image.layers],
    }


def _images_of(engine: str) -> Iterator[StoredImage]:
    match engine:
        case "podman":
            return images_of_podman(podman_graph_root(), _additional_stores())
        case "docker":
            return images_of_docker(_data_root())
        case "containerd":
            namespace = os.environ.get("CONTAINERD_NAMESPACE") or "default"
            return images_of_containerd(_containerd_root(), _OUR_SNAPSHOTTERS, namespace)
        case _:
            raise CommandError(f"{safe(engine)}: the storage of podman, docker and containerd can be read")


def _user_directory(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default)


def podman_graph_root() -> Path:
    """Where podman keeps images."""
    if named := _setting(_storage_settings(), "graphroot"):
        return Path(os.path.expandvars(named))
    if os.geteuid() == 0:
        return Path("/var/lib/containers/storage")
    return _user_directory("XDG_DATA_HOME", ".local/share") / "containers/storage"


def _additional_stores() -> list[Path]:
    """Where podman finds further images."""
    storage = _storage_settings()
    options = storage.get("options") if isinstance(storage, dict) else None
    found = options.get("additionalimagestores") if isinstance(options, dict) else None
    return [Path(path) for path in found if isinstance(path, str)] if isinstance(found, list) else []


def _storage_settings() -> Any:
    """What containers-storage.conf(5) says: the first of its files that is there."""
    is_root = os.geteuid() == 0
    files = [Path("/etc/containers/storage.conf"), Path("/usr/share/containers/storage.conf")]
    if not is_root:
        files = [_user_directory("XDG_CONFIG_HOME", ".config") / "containers/storage.conf"]
    if named := os.environ.get("CONTAINERS_STORAGE_CONF"):
        files = [Path(named)]
    present = next((file for file in files if file.exists()), None)
    return _settings(present, tomllib.loads).get("storage") if present else None


def _data_root() -> Path:
    """Where dockerd keeps images: `data-root` of daemon.json."""
    is_root = os.geteuid() == 0
    file = Path("/etc") if is_root else _user_directory("XDG_CONFIG_HOME", ".config")
    file = file / "docker/daemon.json"
    if file.exists() and (named := _setting(_settings(file, json.loads), "data-root")):
        return Path(named)
    return Path("/var/lib/docker") if is_root else _user_directory("XDG_DATA_HOME", ".local/share") / "docker"


def _containerd_root() -> Path:
    """Where containerd keeps images: `root` of its configuration."""
    named = _setting(_settings(_CONTAINERD, tomllib.loads), "root") if _CONTAINERD.exists() else ""
    return Path(named or "/var/lib/containerd")


def _settings(file: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(file.read_text())
    except ValueError as error:
        raise CommandError(f"{file}: {error}") from None


def _setting(table: Any, name: str) -> str:
    """The text of a setting, empty where there is none."""
    found = table.get(name) if isinstance(table, dict) else None
    return found if isinstance(found, str) else ""
