"""Where the kernel's overlayfs departs from the contract, and why we do not follow.

Each row is asserted as what the kernel does, so a row that no longer holds fails.
"""

from __future__ import annotations

import errno

from .case import Deviation
from .cases.owners import NOBODY
from .cases.renaming import FAR, WHITEOUT_CELLS, expected_errno, matrix_case, untouched
from .cases.states import LOW, UP
from .steps import WHITEOUT, chmod, fstat, mkdir, rename, stat
from .tree import Tree, absent, directory, file


def _refused_whiteouts() -> dict[str, Deviation]:
    """The kernel's overlayfs does not know RENAME_WHITEOUT; an upper layer of a nested overlay needs it."""
    rows = {}
    for source, target in WHITEOUT_CELLS:
        if expected_errno(source, target, WHITEOUT):
            continue
        steps = {0: rename("old", "new", WHITEOUT).fails(errno.EINVAL), 1: stat("old")}
        why = "refuses RENAME_WHITEOUT"
        rows[matrix_case(source, target, WHITEOUT).id] = Deviation(why, steps, untouched(source, target))
    return rows


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
    **_refused_whiteouts(),
}
