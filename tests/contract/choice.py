"""Which cases of the contract a default run plays, and on what; the long run plays everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import pytest

from .case import ENGINE, Case
from .cases import CASES

# The engine plays every case in the first of its formats. A mount costs three times as much and adds the way to the
# engine, which depends on the calls alone: there the first cases of each kind are played. The lane in the event loop
# and pyfuse3 alone play every 24th case. Of the other formats the engine plays every eighth, the mount every 24th.
_OF_A_KIND, _THINLY = 4, 24
_OTHER_FORMATS = {ENGINE: 8}


def plays(target: str, *, thinly: bool = False) -> list[object]:
    """The cases of a target in the formats they have, as parameters; those of the long run only are marked."""
    chosen: list[object] = []
    seen = Counter[Hashable]()
    for at, case in enumerate(case for case in CASES if target in case.targets):
        rank = seen[_kind(case)]
        seen[_kind(case)] += 1
        for nth, form in enumerate(case.formats):
            by_default = _in_first_format(target, at, rank, thinly) if nth == 0 else _in_other_format(target, at + nth)
            marks = [] if by_default else [pytest.mark.long]
            chosen.append(pytest.param(case, form, id=f"{case.id}-{form.value}", marks=marks))
    return chosen


def _in_first_format(target: str, at: int, rank: int, thinly: bool) -> bool:
    if target == ENGINE:
        return True
    return at % _THINLY == 0 if thinly else rank < _OF_A_KIND


def _in_other_format(target: str, number: int) -> bool:
    return number % _OTHER_FORMATS.get(target, _THINLY) == 0


def _kind(case: Case) -> Hashable:
    """What decides which requests a mount gets: calls, callers and options."""
    calls = frozenset((step.call, step.errno) for step in case.steps)
    has_other_callers = len({step.caller for step in case.steps}) > 1
    return calls, has_other_callers, frozenset(case.options), case.upper is None, bool(case.data_lowers)
