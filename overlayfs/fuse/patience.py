"""Is a read from a disk waited for a moment, or given to a thread at once?

A thread costs the wakings of two sleeping processors, more than a fast disk takes. So the lane has the disk fetch the
data, looks for them for a moment, and only then gives the read to a thread. Where that is in vain, as on a slow disk,
it soon stops to try, and tries again now and then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

_LONGEST_NS: Final = 200_000  # what others wait at most for one read
_LATE_IN_A_ROW: Final = 4
_PAUSE: Final = 60  # reads


class Patience:
    """The experience with the disks of one mount."""

    def __init__(self, longest_ns: int = _LONGEST_NS) -> None:
        self._longest_ns = longest_ns
        self._late = 0  # reads in a row that did not come in time
        self._pause = 0  # reads to come that are not waited for

    def is_left(self) -> bool:
        """Whether this read is to be waited for."""
        if self._pause:
            self._pause -= 1
            return False
        return self._longest_ns > 0

    def wait(self, read: Callable[[], int | None]) -> int | None:
        """Try until there is something or the time is over; the processor is left to whoever wants it."""
        end = time.perf_counter_ns() + self._longest_ns
        while time.perf_counter_ns() < end:
            os.sched_yield()
            count = read()
            if count is not None:
                self._late = 0
                return count
        self._late += 1
        if self._late == _LATE_IN_A_ROW:
            self._late, self._pause = 0, _PAUSE
        return None
