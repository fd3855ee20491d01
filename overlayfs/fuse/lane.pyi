"""What Python sees of lane.pyx."""

from collections.abc import Callable, Coroutine, Set
from typing import Any, Final

from ..overlay.engine import Overlay
from ..overlay.values import AttributeChanges, Attributes
from .channel import Channel
from .copying import CopyUps
from .tasks import Tasks

RETRY_S: Final[float]
TURN_OVER: Final[int]
NOTHING: Final[int]
UNMOUNTED: Final[int]
FAILED: Final[int]

class Forwarded(Exception): ...

def invalidate_each(device_fd: int, numbers: list[int]) -> list[int]: ...

class Lane:
    _overlay: Overlay
    _copy_ups: CopyUps
    _tasks: Tasks
    _channel: Channel
    _unseen: Set[int]
    pending: int
    @property
    def tasks_pending(self) -> int: ...
    counts_opens: bool
    def __init__(
        self,
        overlay: Overlay,
        copy_ups: CopyUps,
        tasks: Tasks,
        channel: Channel,
        poll_us: int,
        timeout_s: float | None,
    ) -> None: ...
    @property
    def unique(self) -> int: ...
    @property
    def poll_ns(self) -> int: ...
    @property
    def pauses(self) -> int: ...
    def facts(self) -> dict[str, object]: ...
    def rest(self) -> None: ...
    def serve_turn(self, turn_ns: int, polls: bool) -> int: ...
    def _change_attributes(
        self, node: int, changes: AttributeChanges, valid: int, asker: tuple[int, int, int]
    ) -> Attributes: ...
    def _later(self, work: Callable[[], Coroutine[Any, Any, bytes]]) -> None: ...
    def _refuse(self, unique: int, failure: BaseException) -> None: ...
