"""What is a figure: its name and unit, the project's own limit for it, and what each peer reached.

Neighbours: rows.py and engines/steps.py have figures, measure.py and engines/turns.py fill cells, report.py shows them.
"""

from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from .peers import FUSE_OVERLAYFS, KERNEL


class Start(Enum):
    """What the mount or the engine has seen before the clock starts."""

    UNMOUNTED = "unmounted"
    FRESH = "fresh mount"
    COLD = "fresh mount, caches dropped"
    WARM = "after the same once"
    ENGINE = "storage of its own, in the order of the rows"


@dataclass(slots=True)
class Cell:
    """What one peer did in one row: figures so far, or why there are none."""

    samples: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def median(self) -> float | None:
        return median(self.samples) if self.samples and self.failure is None else None


Cells = dict[str, Cell]
"""One row's, by the peer's name."""


def ratio(cells: Cells, name: str, of: str) -> float | None:
    """A peer's median as a multiple of another's."""
    own, other = cells[name].median, cells[of].median if of in cells else None
    return None if own is None or not other else own / other


@dataclass(frozen=True, slots=True)
class Target:
    """The most that the project allows itself: a multiple of the figure of the peer `of`, or an absolute figure."""

    limit: float
    of: str | None = None

    def is_missed(self, cells: Cells, name: str) -> bool:
        own = cells[name].median if self.of is None else ratio(cells, name, self.of)
        return own is not None and own > self.limit


def of_kernel(limit: float) -> Target:
    return Target(limit, KERNEL)


def of_fuse_overlayfs(limit: float) -> Target:
    return Target(limit, FUSE_OVERLAYFS)


@dataclass(frozen=True, slots=True)
class Figure:
    """What the report says of one row, apart from its cells."""

    name: str
    title: str
    start: Start
    target: Target | None = None
    unit: str = "s"
