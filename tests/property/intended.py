"""The one table of differences that are meant; everything else that differs fails."""

from collections.abc import Callable
from dataclasses import dataclass

from .steps import Outcome, Step

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
