"""Where the kernel's overlayfs departs from the contract, and why we do not follow.

Each row is asserted as what the kernel does, so a row that no longer holds fails.
"""

from __future__ import annotations

import errno

from .case import Deviation
from .cases import content
from .cases.owners import NOBODY
from .cases.renaming import FAR
from .cases.states import LOW, UP
from .steps import chmod, fstat, lsattr, mkdir, rename
from .tree import Tree, absent, directory, file


def _copied_by_opening() -> dict[str, Deviation]:
    """Programs open for writing and write nothing: databases that are read, lock files, `git status`."""
    why = "copies a lower file up when it is opened for writing; we copy at the first write"
    names = ("open-read-write-and-only-read", "open-append-and-write-nothing", "open-create-existing-keeps")
    return {name: Deviation(why, upper_after={"f": content.LOW}) for name in names}


def _cross_device(old: str, new: str, view: Tree) -> Deviation:
    return Deviation(
        "cannot record the rename of a lower directory, and says EXDEV; we copy the directory up",
        {0: rename(old, new).fails(errno.EXDEV)},
        view,
        {},
    )


KERNEL_DIFFERENCES: dict[str, Deviation] = {
    "whiteout-in-opaque-directory-is-ignored": Deviation(
        "lists a whiteout in an opaque directory, but does not find the name",
        unreadable=errno.ENOENT,
    ),
    "rename-directory-redirect-off": _cross_device("d", "e", {"d/f": LOW}),
    "rename-merged-directory-redirect-nofollow": _cross_device("d", "e", {"d/f": LOW, "d/u": UP}),
    "rename-far-beyond-the-longest-redirect": _cross_device(FAR, "e", {FAR + "/f": LOW}),
    "unlinked-lower-file-stays-readable": Deviation(
        "an open lower file that was deleted without a copy-up keeps the nlink of the lower layer",
        {2: fstat("h", nlink=1, size=7)},
    ),
    "replaced-by-rename-while-open": Deviation(
        "an open lower file that was replaced without a copy-up keeps the nlink of the lower layer",
        {3: fstat("h", nlink=1)},
    ),
    "nodump-survives-copy-up": Deviation(
        "copies up the flags A and S alone; a backup that leaves a file out must not find it after a chmod",
        {1: lsattr("x", "")},
        upper_after={"x": file(mode=0o600)},
    ),
    **_copied_by_opening(),
    "ids-beyond-the-map-kept-by-copy-up": Deviation(
        "refuses to change a file whose owner has no id in the mount; we let who may",
        {0: chmod("f", 0o600).fails(errno.EOVERFLOW)},
        {"": directory(0o755, 1, 200), "f": file(b"x", 0o644, NOBODY, NOBODY)},
        {"f": absent()},
    ),
    "ids-of-setgid-directory-beyond-the-map": Deviation(
        "refuses to make a name in a directory whose group has no id in the mount; we let who may",
        {0: mkdir("d/e").by(34, 1).fails(errno.EACCES)},
        {"": directory(0o755, 1, 200), "d": directory(0o2777, 1, NOBODY)},
        {"d/e": absent()},
    ),
}
