"""A process that has imported the program once and mounts on request: a mount costs a fork.

Started as `python -m tests.contract.mount_server`. It reads pickled `(OverlayOptions, MountOptions)`
pairs from its standard input and answers each with a pickled error message, or None once the mount
is live. The daemons are its children's children; it adopts and reaps them.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import sys

import overlayfs.fuse.handlers  # what the session imports late, imported before the forks
import overlayfs.overlay.engine  # noqa: F401
from overlayfs.fuse.session import MountOptions, serve_in_background
from overlayfs.overlay.options import MountError, OverlayOptions

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Serve requests until the input ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    while True:
        try:
            overlay, mount = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_mount(overlay, mount), sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _mount(overlay: OverlayOptions, mount: MountOptions) -> str | None:
    ours, childs = os.pipe()
    pid = os.fork()
    if pid == 0:
        _serve(overlay, mount, childs)
    os.close(childs)
    with open(ours, "rb") as stream:
        answer: str | None = pickle.load(stream)
    os.waitpid(pid, 0)
    _reap()
    return answer


def _serve(overlay: OverlayOptions, mount: MountOptions, answer_fd: int) -> None:
    answer: str | None = None
    try:
        serve_in_background(overlay, mount)
    except MountError as refusal:
        answer = str(refusal)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test must hear of it
        answer = f"not a MountError: {error!r}"
    os.write(answer_fd, pickle.dumps(answer))
    os._exit(0)


def _reap() -> None:
    """Collect daemons that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    main()
