"""How does a live mount take a snapshot of its tree, and how does it go back to one?

A snapshot makes the upper the topmost of the read-only layers, and an empty directory takes its place (`history` says
how that lies on disk). Nothing that the mount shows changes by it. A rollback drops the upper and the layers above the
snapshot, and goes on in an empty upper; what the kernel knows of the tree is then partly wrong, see `former`. A
rollback that drops the snapshot too goes on in the layer of that snapshot, which is what was the upper then. A reset is
a rollback to before the first layer, and drops all snapshots; the root of the tree keeps its owner, mode and xattrs.
Where something is mounted in the tree, the places of that stay, too (see kept_places).

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
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from overlayfs._log import Log
from overlayfs._typing import TypeVar

from ..tree.syscalls import stat_of
from . import forks, freezing, history, kept_places, next_layer
from .descriptors import close_quietly
from .history import History
from .inodes import ROOT, Directory
from .next_layer import NextLayer, is_durable, lost_links_of, upper_of
from .stack import Entry
from .state import Changed, State

log = Log(__name__)

_Result = TypeVar("_Result")


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
    with _after_publishing(state):
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
def _after_publishing(state: State) -> Iterator[None]:
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


def roll_back(state: State, name: str) -> tuple[str, Changed]:
    """Go back to a snapshot, the newest where none is named; its name, and what the kernel has to forget.

    ENOENT where there is none of that name; otherwise as `take`.
    """
    present = history_of(state)
    return with_room(present, lambda: _roll_back(state, present, name))


def with_room(present: History, act: Callable[[], _Result]) -> _Result:
    """Do what makes a full disk empty again: once more, with the room that was kept for it, where there is no other."""
    try:
        return act()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not present.give_room():
            raise
    return act()


def _roll_back(state: State, present: History, name: str) -> tuple[str, Changed]:
    at = present.position(name)
    kept, dropped = present.entries[: at + 1], present.entries[at + 1 :]
    base = state.layers[state.frozen[len(state.frozen) - 1 - at]]
    lost_links = lost_links_of(present.open_links(kept[-1]))
    fresh = next_layer.make(state, present, base, lost_links)
    next_layer.publish(state, present, [*kept, fresh.entry], fresh)
    directories = [entry.directory for entry in dropped if entry.directory and not entry.upper]
    with _after_publishing(state):
        return kept[-1].snapshot or "", freezing.drop(state, fresh, at + 1, directories, lost_links)


def reset(state: State, places: Sequence[bytes] = ()) -> Changed:
    """Go back to the lower layers alone, in a fork to the layers that it was made of; what the kernel has to forget.
    `places` are paths from the root that stay, as `kept_places` has it. Otherwise as `take`."""
    present = history_of(state)
    return with_room(present, lambda: _reset(state, present, places))


def _reset(state: State, present: History, places: Sequence[bytes]) -> Changed:
    kept = tuple(entry for entry in present.entries if entry.upper)
    lost_links = lost_links_of(present.open_links(kept[-1])) if kept else {}
    fresh = next_layer.make(state, present, upper_of(state), lost_links)
    known = _keep(state, present, fresh, len(kept), places) if places else ()
    dropped = [entry.directory for entry in present.entries[len(kept) :]]
    next_layer.publish(state, present, [*kept, fresh.entry], fresh)
    directories = [directory for directory in dropped if directory or not kept]
    with _after_publishing(state):
        changed = freezing.drop(state, fresh, len(kept), directories, lost_links)
        if places:
            state.root.above = None  # the places are in it
        return changed.without(known)


def _keep(
    state: State, present: History, fresh: NextLayer, kept: int, places: Sequence[bytes]
) -> Collection[tuple[int, bytes]]:
    try:
        if len(present.entries) == 1:  # a layer that holds something, without `stack`, would say that this is lost
            present.publish(present.entries, durable=is_durable(state))
        return kept_places.keep(state, fresh, state.frozen[len(state.frozen) - kept :], places)
    except OSError:
        next_layer.give_up(present, fresh)
        raise


def undo(state: State, name: str) -> tuple[str, Changed]:
    """Go back to a snapshot and drop it: its layer takes changes again. Otherwise as `roll_back`, which is what is done
    where that layer must stay as it is: a fork uses it, or it has the content of an open file that has no name."""
    present = history_of(state)
    return with_room(present, lambda: _undo(state, present, name))


def _undo(state: State, present: History, name: str) -> tuple[str, Changed]:
    at = present.position(name)
    entry = present.entries[at]
    number = state.frozen[len(state.frozen) - 1 - at]
    if entry.upper or holds_unnamed(state, number):
        return _roll_back(state, present, name)
    with forks.alone(present.place_of(entry)) as is_alone:
        if not is_alone:
            return _roll_back(state, present, name)
        return entry.snapshot or "", _go_on_in(state, present, at)


def _go_on_in(state: State, present: History, at: int) -> Changed:
    """Have the layer at a position take changes again, without those above."""
    entry, above = present.entries[at], present.entries[at + 1 :]
    number = state.frozen[len(state.frozen) - 1 - at]
    lost_links = lost_links_of(present.open_links(entry))
    with ExitStack() as undoing:
        again = next_layer.reopen(state, present, entry, number, undoing)
        present.publish([*present.entries[:at], Entry(entry.directory)], durable=is_durable(state))
        undoing.pop_all()
    with _after_publishing(state):
        forks.forbid(present.place_of(entry))
        return freezing.drop(state, again, at, [one.directory for one in above], lost_links, number)


def holds_unnamed(state: State, number: int) -> bool:
    """Whether a file that is open and has no name has its content in a frozen layer."""
    numbers = {number, *(index.number for index in state.frozen_indexes if index.layer == number)}
    unnamed = (inode for inode in state.inodes.values() if inode.parent is None and inode.number != ROOT)
    return any(
        location is not None and location.layer in numbers
        for inode in unnamed
        for location in (inode.lowers if isinstance(inode, Directory) else (inode.lower,))
    )


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
