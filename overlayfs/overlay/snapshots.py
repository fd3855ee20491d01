"""How does a live mount take a snapshot of its tree?

A snapshot makes the upper the topmost of the read-only layers, and an empty directory takes its place (`history` says
how that lies on disk). Nothing that the mount shows changes by it. `going_back` has what goes back to one.

The rule for files that are open at such a moment: a descriptor belongs to its file, and not to a version of it.

- After a snapshot it goes on reading and writing the live tree. The snapshot keeps what had been written by then; the
  next write copies the file up again.
- After a rollback it reads the file as the snapshot has it, and a write changes the file in the live tree. So do
  mappings. Where the snapshot has no such file, it was made since, and behaves as an unlinked file does.
- A file that has no name any more belongs to no snapshot: it stays what it is.

Everything that can fail comes before the one rename that publishes; after that only memory changes. No await anywhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from overlayfs._log import Log

from ..tree.syscalls import stat_of
from . import freezing, history, next_layer
from .descriptors import close_quietly
from .history import History
from .next_layer import upper_of
from .state import State

log = Log(__name__)


def take(state: State, name: str) -> str:
    """Take a snapshot; its name, which is a number where none is given. EEXIST, EINVAL for a name; EBUSY where the
    kernel writes to files without us; ETXTBSY, see `_refuse_unseen_names`; any error of the disk. Then nothing has
    happened."""
    present = history_of(state)
    _refuse_unseen_names(state)
    name = present.free_name(name)
    fresh = next_layer.make(state, present, upper_of(state), state.lost_links)
    named = present.entries[-1]._replace(snapshot=name, taken_at=history.now())
    next_layer.publish(state, present, [*present.entries[:-1], named, fresh.entry], fresh)
    with after_publishing(state):
        freezing.freeze(state, fresh)
    return name


def _refuse_unseen_names(state: State) -> None:
    """ETXTBSY where a deleted file that is open has other names, none of which was looked up: what is written to it
    would be in the snapshot, under these names."""
    for fd in state.orphans.values():
        st = stat_of(fd)
        if stat.S_ISREG(st.st_mode) and st.st_nlink:
            raise OSError(errno.ETXTBSY, os.strerror(errno.ETXTBSY))


@contextmanager
def after_publishing(state: State) -> Iterator[None]:
    """A block that only changes memory. Where it fails all the same, the mount takes no changes any more (EROFS): they
    would go to a layer that is frozen, or that was dropped and is gone with the next mount."""
    try:
        yield
    except Exception as error:
        log.exception("the mount takes no changes any more; unmount it and mount it again")
        work_fd, state.work_fd = state.work_fd, None
        if work_fd is not None:
            close_quietly(work_fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error


def history_of(state: State) -> History:
    """The history of a mount in which no change is under way."""
    if state.upper is None or state.work_fd is None or state.workdir_fd is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if state.written_unseen or state.passed_through:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    if state.history is None:
        state.history = history.new(state.workdir_fd)
        state.history.upperdir_fd = upper_of(state).root_fd
    assert isinstance(state.history, History)
    state.history.room.keep()
    state.history.look_again()
    return state.history
