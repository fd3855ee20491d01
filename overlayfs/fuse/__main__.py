"""The process behind `overlayfs.mount`: reads what to mount from standard input, and ends when that is closed.

This process outlives a caller that is killed, so it removes the files of an ephemeral mount.
"""

from __future__ import annotations

import os
import pickle
import sys

from overlayfs._typing import Final

from ..overlay.mount_flags import MS_NODEV, MS_NOSUID, MS_RDONLY
from ..overlay.options import MountError, OverlayOptions
from . import throwaway
from .session import MountOptions, serve_for_parent

LIVE: Final = b"live\n"


def main() -> int:
    """Answer `live`, or one line that says why not, on standard output."""
    options, mountpoint, scratches = pickle.load(sys.stdin.buffer)  # written by our own parent process
    assert isinstance(options, OverlayOptions)
    try:
        serve_for_parent(options, _mount_options(options, mountpoint), lambda: _answer(LIVE), lifeline_fd=0)
    except MountError as error:
        _answer(os.fsencode(str(error)) + b"\n")
        return 1
    finally:
        for scratch in scratches:
            throwaway.remove(scratch, stays_behind=True)
    return 0


def _mount_options(options: OverlayOptions, mountpoint: bytes) -> MountOptions:
    is_root, is_read_only = os.geteuid() == 0, options.read_only or options.upper is None
    return MountOptions(
        mountpoint=mountpoint,
        flags=(MS_RDONLY if is_read_only else 0) | (0 if is_root else MS_NOSUID | MS_NODEV),
        fuse_options=("allow_other",) if is_root else (),
    )


def _answer(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
