"""`overlayfs run`, which is an engine itself; beside it podman on the other filesystems.

Neighbours: engine.py, podman.py.
"""

from pathlib import Path

from ..commands import TrialFailed
from ..peers import OURS
from .podman import Podman


class Own(Podman):
    """On our own filesystem the command `overlayfs`, with a store of its own; it stands beside the mount program."""

    name = "container"

    def set_up(self) -> None:
        if self.peer.base != OURS:
            super().set_up()
            return
        if self.peer.extra:
            raise TrialFailed("overlayfs run takes no mount options")
        self.client = str(Path(self.peer.program).with_name("overlayfs"))
        self.environment["OVERLAYFS_STORE"] = str(self.directory / "store")
