"""Which image did a step make before? Records in the store's `build`, by a key of everything that the step depends on.

A record names a manifest, and nothing else refers to that: `prune` (image/store/pruning.py) decides which steps stay.
A record that is lost, torn or unreadable, or names an image that is gone, is a miss.
"""

from __future__ import annotations

import hashlib
from typing import Final

from ..image.oci.digest import Digest, parse_digest
from ..image.oci.errors import ImageError
from ..image.store.store import Image, Store

VERSION: Final = "1"
"""Part of every key: another version of this program may run steps otherwise."""


def key_of(*parts: object) -> str:
    """A key of these parts, which are told apart whatever they contain."""
    return hashlib.sha256(repr((VERSION, *parts)).encode("utf-8", "surrogateescape")).hexdigest()


class Cache:
    """The records of one store. Any number of processes; the last one to keep a key wins, with an equal step."""

    def __init__(self, store: Store, *, finds: bool = True) -> None:
        """Without `finds` nothing is found, but results are kept for later builds."""
        self._store, self._finds = store, finds
        self._directory = store.path / "build"
        self._directory.mkdir(0o700, exist_ok=True)

    def find(self, key: str) -> Image | None:
        if not self._finds:
            return None
        path = self._directory / key
        try:
            image = self._store.load_by_manifest(parse_digest(path.read_text("ascii")))
            self._store.check_complete(image.descriptor)
        except FileNotFoundError:
            return None
        except (ImageError, OSError, UnicodeDecodeError):
            path.unlink(missing_ok=True)
            return None
        return image

    def keep(self, key: str, manifest: Digest) -> None:
        """Remember the image, which is in the store."""
        staged = self._store.stage.new_name()
        staged.write_text(manifest, "ascii")
        staged.rename(self._directory / key)
