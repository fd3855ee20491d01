"""Who owns a file in the image, if an ordinary user keeps it on disk?

Regular files and directories have their owner in the override xattr, which the reader of layers applies already.
Symlinks and fifos cannot have one: on disk they belong to the user or to a subordinate id (subuid(5)); the user stands
for root and the subordinate ids for the ids from 1, as in the user namespace of the user's containers
(container/namespaces.py).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ...overlay.changes import Version
from .subordinate_ids import Subordinate, subordinate_ids

OwnerOf = Callable[[Version], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class DiskOwners:
    """The ids that belong to one user on disk."""

    uid: int
    gid: int
    uids: Subordinate | None
    gids: Subordinate | None

    @classmethod
    def of_this_user(cls) -> Self | None:
        """The ids of the current user; None for root, whose files have their real owners on disk."""
        uid = os.geteuid()
        if uid == 0:
            return None
        subordinate = (subordinate_ids(Path(f"/etc/sub{kind}"), uid) for kind in ("uid", "gid"))
        return cls(uid, os.getegid(), *subordinate)

    def of_layer_file(self, version: Version) -> tuple[int, int]:
        """The owner in the image of a file of a layer or upper."""
        is_overridden = version.data is not None or stat.S_ISDIR(version.stat.mode)
        return (version.stat.uid, version.stat.gid) if is_overridden else self.of_plain_file(version)

    def of_plain_file(self, version: Version) -> tuple[int, int]:
        """The owner in the image of any file that the user has."""
        return _inside(version.stat.uid, self.uid, self.uids), _inside(version.stat.gid, self.gid, self.gids)


def _inside(number: int, own: int, subordinate: Subordinate | None) -> int:
    if number == own:
        return 0
    if subordinate is not None and subordinate.first <= number < subordinate.first + subordinate.size:
        return number - subordinate.first + 1
    return number
