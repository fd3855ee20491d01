"""Does the lane wait briefly for a disk, or serve other requests at once?

A thread costs the wakings of two sleeping processors, more than a fast disk takes. So the lane has the disk fetch or
sync the data, waits for a moment, and only then turns to others. Where that is in vain, as on a slow disk, it soon
stops to try, and tries again now and then.

The first thread of a mount costs the import of an event loop besides, a pause for all. So the first requests are waited
for longer, until they have taken as long together as that import does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from overlayfs._typing import Final

_LONGEST_NS: Final = 200_000  # what others wait at most for one request
FIRST_NS: Final = 100_000_000  # what the import takes at least
_SPIN_NS: Final = 200_000  # how long a wait keeps the processor awake
_NAP_S: Final = 50e-6
_LATE_IN_A_ROW: Final = 4
_PAUSE: Final = 60  # requests


class Patience:
    """How often requests of one kind finished within the wait, on one mount; `first_ns` is for the first ones."""

    def __init__(self, longest_ns: int = _LONGEST_NS, first_ns: int = 0) -> None:
        self.longest_ns = longest_ns
        self._first_ns = first_ns
        self._late = 0  # requests in a row that were not done in time
        self._pause = 0  # requests to come that are not waited for

    def is_left(self) -> bool:
        """Whether this request is to be waited for."""
        if self._pause:
            self._pause -= 1
            return False
        return self.longest_ns > 0

    def wait(self, read: Callable[[], int | None]) -> int | None:
        """Try until there is something or the time is over; the processor is left to whoever wants it."""
        start = time.perf_counter_ns()
        longest, passed, count = max(self.longest_ns, self._first_ns), 0, None
        while count is None and passed < longest:
            if passed < _SPIN_NS:
                os.sched_yield()
            else:
                time.sleep(_NAP_S)
            count = read()
            passed = time.perf_counter_ns() - start
        self._first_ns = max(0, self._first_ns - passed)
        self.note(in_time=count is not None)
        return count

    def note(self, *, in_time: bool) -> None:
        """Record whether the awaited request finished in time."""
        self._late = 0 if in_time else self._late + 1
        if self._late == _LATE_IN_A_ROW:
            self._late, self._pause = 0, _PAUSE
