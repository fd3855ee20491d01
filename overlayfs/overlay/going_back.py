"""How does a live mount go back to a snapshot?

A rollback drops the upper and the layers above the snapshot, and goes on in an empty upper; what the kernel knows of
the tree is then partly wrong, see `former`. A rollback that drops the snapshot too goes on in the layer of that
snapshot, which is what was the upper then. A reset is a rollback to before the first layer, and drops all snapshots;
the root of the tree keeps its owner, mode and xattrs. Where something is mounted in the tree, the places of that stay,
too (see kept_places).

Everything that can fail comes before the one rename that publishes; after that only memory changes. No await anywhere.
Neighbours: snapshots, which has the rule for open files, and freezing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import chain

from overlayfs._typing import TYPE_CHECKING, TypeVar

from . import forks, freezing, next_layer, redirects
from .descriptors import close_quietly
from .former import NO_NAMES, Former
from .history import History
from .inodes import ROOT, Directory
from .next_layer import NextLayer, is_durable, lost_links_of, upper_of
from .snapshots import after_publishing, history_of
from .stack import Entry
from .state import Changed, State

if TYPE_CHECKING:
    from .kept_places import Kept

_Result = TypeVar("_Result")


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
    with after_publishing(state):
        return kept[-1].snapshot or "", _drop(state, fresh, at + 1, directories, lost_links)


def reset(state: State, places: Sequence[bytes] = ()) -> Changed:
    """Go back to the lower layers alone, in a fork to the layers that it was made of; what the kernel has to forget.
    `places` are paths from the root that stay, as `kept_places` has it. Otherwise as `take`."""
    present = history_of(state)
    return with_room(present, lambda: _reset(state, present, places))


def _reset(state: State, present: History, places: Sequence[bytes]) -> Changed:
    kept = tuple(entry for entry in present.entries if entry.upper)
    lost_links = lost_links_of(present.open_links(kept[-1])) if kept else {}
    fresh = next_layer.make(state, present, upper_of(state), lost_links)
    known = _keep(state, present, fresh, len(kept), places) if places else None
    dropped = [entry.directory for entry in present.entries[len(kept) :]]
    next_layer.publish(state, present, [*kept, fresh.entry], fresh)
    directories = [directory for directory in dropped if directory or not kept]
    with after_publishing(state):
        changed = _drop(state, fresh, len(kept), directories, lost_links)
        if known is None:
            return changed
        state.root.above = None  # the places are in it
        return changed._replace(names=chain(changed.names, known.shown)).without(known.names)


def _keep(state: State, present: History, fresh: NextLayer, kept: int, places: Sequence[bytes]) -> Kept:
    try:
        from . import kept_places  # few resets have any

        if len(present.entries) == 1:  # a layer that holds something, without `stack`, would say that this is lost
            present.publish(present.entries, durable=is_durable(state))
        return kept_places.keep(state, fresh, state.frozen[len(state.frozen) - kept :], places)
    except BaseException:  # an import may fail in many ways
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
    with after_publishing(state):
        forks.forbid(present.place_of(entry))
        return _drop(state, again, at, [one.directory for one in above], lost_links, number)


def holds_unnamed(state: State, number: int) -> bool:
    """Whether a file that is open and has no name has its content in a frozen layer."""
    numbers = {number, *(index.number for index in state.frozen_indexes if index.layer == number)}
    unnamed = (inode for inode in state.inodes.values() if inode.parent is None and inode.number != ROOT)
    return any(
        location is not None and location.layer in numbers
        for inode in unnamed
        for location in (inode.lowers if isinstance(inode, Directory) else (inode.lower,))
    )


def _drop(
    state: State,
    fresh: NextLayer,
    kept: int,
    directories: Sequence[str],
    lost_links: dict[int, int],
    resumed: int | None = None,
) -> Changed:
    """All above the first `kept` frozen layers counts no more, but for a layer that is the upper again."""
    number = freezing.number_for(state)
    gone = state.frozen[: len(state.frozen) - kept]
    unused = [index for index in state.frozen_indexes if index.layer in (number, *gone)]
    dropped = [layer for layer in (number, *gone) if layer != resumed]
    indexes = [index for index in unused if index.layer != resumed]
    former = state.former
    if former is None:
        former = state.former = Former()
    assert isinstance(former, Former)
    remove = _remover(state, [number, *gone, *(index.number for index in unused)], directories)
    changed = former.absorb(state, number, dropped, [index.number for index in indexes], remove)
    for inode in state.inodes.values():
        if inode.index_name is not None:  # its names that were known are gone, and the others are another file's now
            freezing.freeze_copy(state, inode, indexes[0].number)
            inode.lost_links = NO_NAMES
    state.frozen = state.frozen[len(gone) :]
    del state.frozen_indexes[: len(unused)]
    root = state.root
    root.below = root.attributes = root.xattr_names = None
    root.default_acl = False
    root.protection = None
    root.forget_upper()
    root.above = {} if resumed is None else None
    for opened in state.created.values():
        opened.unpin()
    state.created.clear()
    state.descriptors.drop({*range(state.data_end), *state.frozen})
    freezing.use(state, fresh)
    redirects.show_roots(state)  # a layer that is gone may have hidden others
    state.lost_links = lost_links
    former.sweep()
    return changed


def _remover(state: State, numbers: Sequence[int], directories: Sequence[str]) -> Callable[[], object]:
    """Removes the dropped layers, once nothing needs them any more."""
    present = state.history

    def remove() -> None:
        if state.work_fd is None:  # going back failed, and what is shown may be in these
            return
        state.descriptors.close_dropped()
        for number in numbers:
            layer = state.layers[number]
            if layer.path == state.options.upper:  # its descriptor has the lock
                continue
            state.layers[number] = layer._replace(root_fd=-1)
            close_quietly(layer.root_fd)
        assert isinstance(present, History)
        present.waste.extend(directories)

    return remove
