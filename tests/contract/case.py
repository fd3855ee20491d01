"""A case of the contract as data: layers, steps, and what must hold afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .client import Credentials
from .tree import Format, Tree

ENGINE, FUSE, PYFUSE3, KERNEL = "engine", "fuse", "pyfuse3", "kernel"  # PYFUSE3: our mount without the fast lane
EVERYWHERE = frozenset({ENGINE, FUSE, PYFUSE3, KERNEL})
OURS = frozenset({ENGINE, FUSE, PYFUSE3})
MOUNTED = frozenset({FUSE, PYFUSE3, KERNEL})
ALL_FORMATS = (Format.OVERLAY, Format.OVERLAY_XATTR, Format.OCI)


class Anything:
    """A result that is not compared."""


ANYTHING = Anything()
ROOT = Credentials()


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a client: its name, its arguments and its outcome, an errno or a result.

    For `stat` and `fstat` the result is a mapping of some fields; for listings it is the set of
    names.
    """

    call: str
    arguments: tuple[Any, ...] = ()
    errno: int = 0
    result: Any = ANYTHING
    caller: Credentials = ROOT

    def fails(self, errno: int) -> Step:
        """The same step, expected to fail."""
        return replace(self, errno=errno, result=ANYTHING)

    def gives(self, result: Any) -> Step:
        """The same step, expected to return this."""
        return replace(self, errno=0, result=result)

    def by(self, uid: int, gid: int | None = None, umask: int = 0) -> Step:
        """The same step, called by someone else."""
        return replace(self, caller=Credentials(uid, uid if gid is None else gid, umask))

    def __str__(self) -> str:
        return f"{self.call}{self.arguments!r}"


@dataclass(frozen=True, slots=True)
class Case:
    """One case. `lowers` has the top layer first; `upper` None makes the mount read-only.

    `view` is the whole merged tree afterwards; `upper_after` says what the upper holds at some of
    its paths. `cell` marks one of many cases that a matrix makes. `formats` are the write formats in
    which our targets run the case. `targets` leaves out the kernel where the case is about marks or
    options that only we have, and the engine where the kernel's path walk does the work.
    `unreadable` is the errno with which walking the merged tree must fail.
    """

    id: str
    lowers: Sequence[Tree]
    view: Tree
    steps: Sequence[Step] = ()
    upper: Tree | None = field(default_factory=dict)
    upper_after: Tree = field(default_factory=dict)
    data_lowers: Sequence[Tree] = ()
    targets: frozenset[str] = EVERYWHERE
    formats: Sequence[Format] = (Format.OVERLAY,)
    options: Mapping[str, Any] = field(default_factory=dict)
    separate_filesystems: bool = False
    cell: bool = False
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class Deviation:
    """What the kernel does instead in one case, and why we do not.

    `steps` replaces outcomes by position; `view` and `upper_after` replace the case's own.
    `unreadable` is the errno with which walking the tree fails.
    """

    why: str
    steps: Mapping[int, Step] = field(default_factory=dict)
    view: Tree | None = None
    upper_after: Tree | None = None
    unreadable: int = 0

    def applied(self, case: Case) -> Case:
        """The case as the kernel plays it."""
        steps = [self.steps.get(at, step) for at, step in enumerate(case.steps)]
        return replace(
            case,
            steps=steps,
            view=case.view if self.view is None else self.view,
            upper_after=case.upper_after if self.upper_after is None else self.upper_after,
            unreadable=self.unreadable,
        )
