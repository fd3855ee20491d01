"""Where does an ephemeral mount keep its upper, and how is the upper removed?

Never through the mount: removing files while it is live would delete them from the user's own layers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

UPPER: Final = "upper"
WORK: Final = "work"
MOUNT: Final = "mount"


def make(*names: str) -> Path:
    """A new temporary directory with these directories in it."""
    root = Path(tempfile.mkdtemp(prefix="overlayfs-"))
    for name in names:
        (root / name).mkdir()
        (root / name).chmod(0o755)  # whatever the umask: the upper's is the mode of the mount's root
    return root


def remove(root: Path) -> None:
    """Remove what `make` made, once nothing serves the mount; a mountpoint that is still one stays, and `root` with it.

    May be called twice.
    """
    for name in (UPPER, WORK):
        _remove_tree(root / name)
    with suppress(OSError):
        (root / MOUNT).rmdir()
    with suppress(OSError):
        root.rmdir()


def _remove_tree(directory: Path) -> None:
    with suppress(FileNotFoundError):
        directory.chmod(0o700)  # the mount's root is this one
    for parent, names, _ in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)  # users make directories that not even they can enter
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
