"""How does long work report its progress? The interface between the work and whoever shows it."""

from __future__ import annotations

from typing import Final, Protocol


class Task(Protocol):
    """One piece of work, such as the reading of a blob. Its methods may be called from any thread."""

    def advance(self, n: int) -> None:
        """`n` more bytes are done."""

    def done(self, note: str = "") -> None:
        """The work has ended; `note` gives a result worth mentioning ("already there")."""


class Progress(Protocol):
    """Shows the progress of work. Its methods may be called from any thread."""

    def begin(self, what: str, total: int | None) -> Task:
        """Work on `what` begins; `total` is its number of bytes, None if unknown."""


class _Unwatched:
    """Nobody watches."""

    def begin(self, what: str, total: int | None) -> Task:
        return self

    def advance(self, n: int) -> None:
        pass

    def done(self, note: str = "") -> None:
        pass


NO_PROGRESS: Final[Progress] = _Unwatched()
