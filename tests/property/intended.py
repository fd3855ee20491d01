"""The one table of differences that are meant; everything else that differs fails."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from .steps import Outcome, Snapshot, Step

READ_ONLY_NUMBERS = (2, 3)
"""Held files with these numbers are opened O_RDONLY, all others O_RDWR."""


@dataclass(frozen=True, slots=True)
class Intended:
    """`applies(step, plain, found)`: whether `found` may stand where a plain directory says `plain`."""

    target: str
    why: str
    applies: Callable[[Step, Outcome, Outcome], bool]


def _held_read_only(step: Step, plain: Outcome, found: Outcome) -> bool:
    return step.operation == "held_read" and step.arguments[0] in READ_ONLY_NUMBERS


INTENDED = (
    Intended("kernel", "who opened for reading before the copy-up goes on reading the lower file", _held_read_only),
)


def is_intended(target: str, step: Step, plain: Outcome, found: Outcome) -> bool:
    return any(entry.target == target and entry.applies(step, plain, found) for entry in INTENDED)


def without_deleted_names(expected: Snapshot, found: Snapshot, upper: Path) -> Snapshot:
    """What the kernel shows over an upper that we wrote, less the deleted names in the link counts of lower files.

    Deleting one name of a hard-linked lower file copies nothing here, and how many are gone stands where the kernel
    does not look; it copies the file to its index to have a place for the count.
    """
    entries = dict(found)
    for path, entry in found.items():
        wanted = expected[path].nlink if path in expected else None
        copied = os.path.lexists(os.path.join(os.fsencode(upper), path))
        if not copied and entry.nlink is not None and wanted is not None and wanted < entry.nlink:
            entries[path] = replace(entry, nlink=wanted)
    return entries
