"""The process behind `overlayfs.mount`: reads what to mount from standard input, and ends when that is closed."""

from __future__ import annotations

import os
import pickle
import sys

from ..overlay.options import MountError, OverlayOptions
from .session import MountOptions, serve_in_foreground, set_up_logging


def main() -> int:
    """Answer `live`, or one line that says why not, on standard output."""
    options, mountpoint = pickle.load(sys.stdin.buffer)  # written by our own parent process
    assert isinstance(options, OverlayOptions)
    set_up_logging(debug=False)
    flags = (1 if options.read_only or options.upper is None else 0) | (6 if os.geteuid() else 0)
    shared = ("allow_other",) if os.geteuid() == 0 else ()
    mount = MountOptions(mountpoint=mountpoint, flags=flags, fuse_options=shared)
    try:
        serve_in_foreground(options, mount, on_live=lambda: _answer("live"), lifeline_fd=0)
    except MountError as error:
        _answer(str(error))
        return 1
    return 0


def _answer(line: str) -> None:
    sys.stdout.buffer.write(os.fsencode(line) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
