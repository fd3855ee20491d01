"""Which problems can an upper and its workdir have, how severe is each, and how is it repaired?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Severity(Enum):
    """What a problem does to the merged tree."""

    ERROR = "error"  # files cannot be reached, or are not what they were
    WARNING = "warning"  # may be so, or confuses another reader of the upper
    NOTE = "note"  # takes up space, no more


class _Facts(NamedTuple):
    severity: Severity
    meaning: str
    remedy: str = ""  # empty: repair leaves it alone


class Problem(Enum):
    """Each kind of problem; `value` is its name for programs."""

    LEFTOVER = "workdir-leftover"
    VOLATILE = "volatile"
    FOREIGN_WORK = "foreign-in-workdir"
    ORPHAN_INDEX = "orphan-index-entry"
    BAD_INDEX = "bad-index-entry"
    BAD_LINK_COUNT = "bad-link-record"
    BAD_OPAQUE = "bad-opaque"
    BAD_REDIRECT = "bad-redirect"
    STRAY_REDIRECT = "stray-redirect"
    BAD_DATA_REDIRECT = "bad-data-redirect"
    BAD_METACOPY = "bad-metacopy"
    STRAY_METACOPY = "stray-metacopy"
    BAD_ORIGIN = "bad-origin"
    BAD_NUMBER = "bad-number"
    BAD_NLINK = "bad-nlink"
    BAD_OVERRIDE = "bad-override"
    WHITEOUT_IN_OPAQUE = "whiteout-in-opaque"
    DOUBLE_WHITEOUT = "double-whiteout"
    UNMARKED_WHITEOUT = "unmarked-xattr-whiteout"
    WHITEOUT_MODE = "whiteout-mode"
    FULL_WHITEOUT = "whiteout-with-content"
    NAMELESS_WHITEOUT = "nameless-whiteout"

    @property
    def severity(self) -> Severity:
        return _FACTS[self].severity

    @property
    def meaning(self) -> str:
        """What it does, as a sentence without its full stop."""
        return _FACTS[self].meaning

    @property
    def remedy(self) -> str:
        """What repair does about it; empty where it leaves the decision to a person."""
        return _FACTS[self].remedy


_FACTS = {
    Problem.LEFTOVER: _Facts(Severity.NOTE, "an unfinished change that a crash left", "remove it"),
    Problem.VOLATILE: _Facts(
        Severity.WARNING,
        "the upper was mounted volatile: after a crash of the machine, files in it may be damaged",
        "sync the filesystem and remove the mark, so that it can be mounted again",
    ),
    Problem.FOREIGN_WORK: _Facts(Severity.NOTE, "the workdir holds what no overlay filesystem put there"),
    Problem.ORPHAN_INDEX: _Facts(
        Severity.NOTE, "the index keeps a file that has no name any more", "remove the index entry"
    ),
    Problem.BAD_INDEX: _Facts(Severity.WARNING, "an index entry whose name is not that of its origin"),
    Problem.BAD_LINK_COUNT: _Facts(
        Severity.NOTE, "a record of deleted hard links that cannot be read", "remove the record"
    ),
    Problem.BAD_OPAQUE: _Facts(
        Severity.WARNING,
        "an opaque mark without meaning: the directory counts as not opaque",
        "remove the mark",
    ),
    Problem.BAD_REDIRECT: _Facts(
        Severity.ERROR,
        "where this directory was renamed from cannot be read: opening it fails with EIO",
        "remove the redirect and make the directory opaque: what the upper has in it can be reached again",
    ),
    Problem.STRAY_REDIRECT: _Facts(
        Severity.NOTE, "a redirect on what is neither a directory nor a metacopy", "remove the mark"
    ),
    Problem.BAD_DATA_REDIRECT: _Facts(
        Severity.ERROR, "where the data of this file is cannot be read: opening it fails with EIO"
    ),
    Problem.BAD_METACOPY: _Facts(
        Severity.WARNING,
        "a metacopy mark that the kernel's overlayfs refuses with EIO",
        "replace it by the plain mark, without a digest",
    ),
    Problem.STRAY_METACOPY: _Facts(Severity.NOTE, "a metacopy mark on what is not a regular file", "remove the mark"),
    Problem.BAD_ORIGIN: _Facts(
        Severity.NOTE, "an origin that is no file handle", 'replace it by "copied up, from where is unknown"'
    ),
    Problem.BAD_NUMBER: _Facts(
        Severity.NOTE, "an inode number that cannot be read: the file shows another one", "remove the mark"
    ),
    Problem.BAD_NLINK: _Facts(
        Severity.NOTE, "a link count that cannot be read: the file may show a wrong one", "remove the mark"
    ),
    Problem.BAD_OVERRIDE: _Facts(
        Severity.WARNING, "an owner-and-mode xattr that cannot be read: the file shows its own owner and mode"
    ),
    Problem.WHITEOUT_IN_OPAQUE: _Facts(
        Severity.WARNING,
        "a whiteout in an opaque directory hides nothing; the kernel's overlayfs lists a broken file",
        "remove the whiteout",
    ),
    Problem.DOUBLE_WHITEOUT: _Facts(
        Severity.NOTE, "a deletion spelled twice: a .wh. file beside a whiteout", "remove the .wh. file"
    ),
    Problem.UNMARKED_WHITEOUT: _Facts(
        Severity.ERROR,
        "an xattr whiteout in a directory that does not say it has any: listed, but not there",
        "mark the directory",
    ),
    Problem.WHITEOUT_MODE: _Facts(Severity.NOTE, "a whiteout device with permission bits", "take the bits away"),
    Problem.FULL_WHITEOUT: _Facts(
        Severity.WARNING, "a .wh. name on what is not an empty file: it deletes, and what it holds is hidden"
    ),
    Problem.NAMELESS_WHITEOUT: _Facts(Severity.NOTE, "a .wh. name that deletes nothing and is never shown"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem at one place; `path` is relative to the upper or, with `in_workdir`, to the workdir."""

    problem: Problem
    path: bytes
    detail: str = ""
    in_workdir: bool = False
    repaired: bool = False


class Found(NamedTuple):
    """A finding, and the step that mends it where there is one: it does what `Problem.remedy` says."""

    finding: Finding
    mend: Callable[[], None] | None = None
