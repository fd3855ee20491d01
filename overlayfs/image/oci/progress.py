"""How far is it? What work on images tells whoever watches it; the watching is another's business."""

from __future__ import annotations

from typing import Final, Protocol


class Task(Protocol):
    """One piece of work under way: a blob that is read, a layer that is unpacked. Called from any thread."""

    def advance(self, n: int) -> None:
        """`n` more bytes are done."""

    def done(self, note: str = "") -> None:
        """It ended; `note` says how, where that is not plain ("already there")."""


class Progress(Protocol):
    """Watches work; called from any thread."""

    def begin(self, what: str, total: int | None) -> Task:
        """Work on `what` begins; `total` are its bytes where that is known."""


class _Unwatched:
    """Nobody watches."""

    def begin(self, what: str, total: int | None) -> Task:
        return self

    def advance(self, n: int) -> None:
        pass

    def done(self, note: str = "") -> None:
        pass


NO_PROGRESS: Final[Progress] = _Unwatched()
