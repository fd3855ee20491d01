"""A daemon in the foreground that can be told to break: `live_daemon.py LOWER UPPER WORK MOUNTPOINT SWITCH LANE`.

The method of the engine that the file SWITCH names raises an exception which is no `OSError`: what a bug in
it would do.  LANE is `on` or `off`.  Says "live" on its standard output when it serves.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import overlayfs.fuse.lane  # noqa: F401 - takes the engine's class as it is
from overlayfs.fuse.session import MountOptions, serve_in_foreground
from overlayfs.overlay import engine
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import MountError, OverlayOptions

NOT_REQUESTS = frozenset({"open", "close"})


class InjectedBugError(Exception):
    """Raised in place of an answer."""


def _breakable(method: Callable[..., Any], switch: Path) -> Callable[..., Any]:
    @functools.wraps(method)
    def attempt(*arguments: Any, **named: Any) -> Any:
        if switch.read_text() == method.__name__:
            raise InjectedBugError(method.__name__)
        return method(*arguments, **named)

    return attempt


def make_breakable(switch: Path) -> None:
    methods = {
        name: _breakable(method, switch)
        for name, method in vars(Overlay).items()
        if callable(method) and not name.startswith("_") and name not in NOT_REQUESTS
    }
    vars(engine)["Overlay"] = type("BreakableOverlay", (Overlay,), methods)


def main(lower: str, upper: str, work: str, mountpoint: str, switch: str, lane: str) -> None:
    if os.path.exists(switch):
        make_breakable(Path(switch))
    options = OverlayOptions(lowers=(os.fsencode(lower),), upper=os.fsencode(upper), work=os.fsencode(work))
    mount = MountOptions(mountpoint=os.fsencode(mountpoint), lane=lane == "on")
    try:
        serve_in_foreground(options, mount, on_live=lambda: print("live", flush=True))
    except MountError as refusal:
        sys.exit(str(refusal))


if __name__ == "__main__":
    main(*sys.argv[1:])
