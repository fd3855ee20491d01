"""After each command: does podman see the images as they are now? See `image.store.podman`."""

from __future__ import annotations

import sys
from pathlib import Path

from overlayfs.cli.output import safe
from overlayfs.image.oci.errors import ImageError
from overlayfs.image.store.published import is_outdated
from overlayfs.image.store.store import Store, default_directory


def bring_up_to_date(directory: Path | None) -> None:
    """Let podman see what has changed, if the store is shared with it."""
    if is_outdated(directory or default_directory()):
        from overlayfs.image.store.podman import publish

        with Store.open(directory) as store:
            try:
                publish(store)
            except (ImageError, OSError) as error:  # the command itself has done its work
                print(f"overlayfs: done, but podman does not see it yet: {safe(str(error))}", file=sys.stderr)
