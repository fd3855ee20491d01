"""How do long operations run beside the request loop?

Each is a trio task, and its blocking system calls run in trio's threads. Importing trio is slow and a mount may do
without, so a task that begins before there is a loop waits for one: `bare` then ends, and `looping` runs it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine

from overlayfs._typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import trio

Task = Callable[[], Coroutine[Any, Any, None]]
GiveUp = Callable[[], None]

_Result = TypeVar("_Result")


class Tasks:
    """The tasks of one mount."""

    def __init__(self) -> None:
        self._postponed: deque[tuple[Task, GiveUp]] = deque()
        self._nursery: trio.Nursery | None = None

    @property
    def has_loop(self) -> bool:
        """True where a task would run at once."""
        return self._nursery is not None

    @property
    def are_postponed(self) -> bool:
        """True where a task waits for a loop."""
        return bool(self._postponed)

    def begin(self, task: Task, give_up: GiveUp) -> None:
        """Run a task: now, or as soon as there is a loop. `give_up` is called instead where there can be none."""
        if self._nursery is None:
            self._postponed.append((task, give_up))
        else:
            self._nursery.start_soon(task)

    def run_in(self, nursery: trio.Nursery) -> None:
        """The trio loop has started: run the postponed tasks, and all later ones at once."""
        self._nursery = nursery
        while self._postponed:
            nursery.start_soon(self._postponed.popleft()[0])

    def give_up(self) -> None:
        """The trio loop cannot start: give up the postponed tasks without running them."""
        while self._postponed:
            self._postponed.popleft()[1]()


async def in_thread(call: Callable[..., _Result], *arguments: object) -> _Result:
    """What `call` returns or raises, from a worker thread."""
    import trio

    return await trio.to_thread.run_sync(call, *arguments)
