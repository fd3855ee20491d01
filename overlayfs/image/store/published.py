"""Does podman see the images of this store, and those that there are now? See podman.py.

Asked after every command that had the store open, so it imports nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

DIRECTORY: Final = "podman"
"""Of a store: where podman looks, an additional image store of containers-storage.conf(5)."""
_STAMP: Final = "published"


def images_file(store: Path) -> Path:
    return store / DIRECTORY / "overlay-images/images.json"


def is_shared(store: Path) -> bool:
    """Whether podman sees the images of the store in this directory."""
    return images_file(store).exists()


def stamp_of(store: Path) -> str:
    """Another one after each change of the images, since their list is replaced by a new file."""
    found = (store / "index.json").stat()
    return f"{found.st_ino} {found.st_mtime_ns}"


def stamp_file(store: Path) -> Path:
    """Has the stamp of the images that podman sees."""
    return store / DIRECTORY / _STAMP


def is_outdated(store: Path) -> bool:
    """Whether podman sees other images than there are now."""
    try:
        return is_shared(store) and stamp_file(store).read_bytes() != stamp_of(store).encode()
    except FileNotFoundError:
        return True
