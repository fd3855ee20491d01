"""Where does an ephemeral mount keep its upper, and how is the upper removed?

Never through the mount: removing files while it is live would delete them from the user's own layers. Nor while forks
use its layers (see overlay.forks): then a process stays behind that removes it once they have ended. A fork's own
directory lies in the workdir of another mount, which is kept while that directory is removed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from ..overlay import forks

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


def remove(root: Path, *, waits: bool = False, stays_behind: bool = False) -> None:
    """Remove what `make` made, once nothing serves the mount; a mountpoint that is still one stays, and `root` with it.

    While forks use it, it stays: with `waits` they are awaited, with `stays_behind` by another process. May be called
    twice.
    """
    with suppress(FileNotFoundError), ExitStack() as stack:  # it is gone, or goes with what it lies in
        if os.fsencode(root.name).startswith(forks.PREFIX):
            stack.callback(os.close, forks.hold(bytes(root.parent.parent)))
        lock = forks.alone(bytes(root / WORK), patience_s=None if waits else 0)
        if (root / WORK).exists() and not stack.enter_context(lock):
            if stays_behind:
                _stay_behind(root)
            return
        _remove(root)


def _stay_behind(root: Path) -> None:
    """Have another process wait for the forks."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    command = [sys.executable, "-P", "-m", "overlayfs.fuse.throwaway", str(root)]
    os.posix_spawn(sys.executable, command, environment, file_actions=null, setsid=True)


def _remove(root: Path) -> None:
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


if __name__ == "__main__":
    remove(Path(sys.argv[1]), waits=True)
