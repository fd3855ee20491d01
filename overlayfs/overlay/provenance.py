"""Where does a file of the merged tree come from, and what hides or deletes the others?

Unlike a lookup this asks every layer, top first, also those that no longer count. One layer is walked at a
time, as the kernel's ovl_lookup does (fs/overlayfs/namei.c): what a redirect in one layer says holds for the
layers below it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from ..tree import access, marks, xattrs
from ..tree.syscalls import OPEN_DIRECTORY, Stat
from .layer import Layer, Location
from .view import View

_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class Role(Enum):
    """The role of a layer for a path."""

    PROVIDES = "provides"  # the visible file, or the top of a merged directory
    MERGED = "merged"  # a directory below, whose entries show through
    DATA = "data"  # the bytes of a metacopy file above
    HIDDEN = "hidden"  # something above hides it
    DELETES = "deletes"  # a whiteout, or a file where the path needs a directory


@dataclass(frozen=True, slots=True)
class Answer:
    """What one layer has at a path. `place` is where: of a deletion the mark itself; `kind` are S_IFMT bits.

    `notes` say how its marks are spelled. `hidden_by` is the layer of the mark or file that hides it.
    """

    place: Location
    role: Role
    kind: int
    notes: tuple[str, ...] = ()
    hidden_by: int | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """All answers to one path, top first; layers that have nothing to do with it give none."""

    path: bytes
    answers: tuple[Answer, ...]

    @property
    def provider(self) -> Answer | None:
        """Who provides the visible file; None where the merged tree has none."""
        return next((answer for answer in self.answers if answer.role is Role.PROVIDES), None)

    @property
    def deleter(self) -> Answer | None:
        """The answer with the whiteout or file that deletes the path; None if the path is present, or absent for
        another reason."""
        return None if self.provider else next((a for a in self.answers if a.role is Role.DELETES), None)


class _Seen(NamedTuple):
    """One name in one directory of one layer; `kind` is 0 where it is only a mark beside the name."""

    place: Location
    kind: int = 0
    whiteout: str = ""
    opaque: str = ""
    redirect: bytes | None = None
    metacopy: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        return (
            *((f"whiteout: {self.whiteout}",) if self.whiteout else ()),
            *((f"opaque: {self.opaque}",) if self.opaque else ()),
            *(() if self.redirect is None else (f"redirect to {os.fsdecode(self.redirect)}",)),
            *(("metacopy",) if self.metacopy else ()),
        )


def trace(
    path: bytes, layers: Sequence[Layer], data_layers: Sequence[Layer] = (), indexes: Mapping[int, Layer] = {}
) -> Provenance:
    """Ask every layer for a path relative to the root of the merged tree, whether it is there or not. `indexes` keep
    hard links of layers, by the number of the layer.

    OSError where a layer cannot be read or a redirect is malformed. The layers stay the caller's.
    """
    names = [name for name in path.split(b"/") if name]
    steps = _Trace(View(layers, data_layers, indexes), names)
    return Provenance(path, tuple(steps.run(layers, data_layers)))


class _Trace:
    """The walk down the layers: what the next one is asked for, and what hides all below."""

    def __init__(self, view: View, names: list[bytes]) -> None:
        self._view = view
        self._names = names
        self._from_root = False
        self._closed_by: int | None = None
        self._provider: Answer | None = None
        self._wants_data = False

    def run(self, layers: Sequence[Layer], data_layers: Sequence[Layer]) -> Iterator[Answer]:
        for layer in layers:
            yield from self._ask(layer.index)
        for layer in data_layers:
            if self._wants_data and self._from_root:
                yield from self._ask_data_layer(layer.index)

    def _ask(self, layer: int) -> Iterator[Answer]:
        walk = _Walk(self._view, layer, self._names)
        if walk.end is not None:
            yield from self._answers(walk.end, walk.is_blocked)
        if self._closed_by is None:
            self._names = walk.names_below
            self._from_root = self._from_root or walk.redirects_from_root
            self._closed_by = layer if walk.is_opaque else None

    def _answers(self, seen: _Seen, blocks: bool) -> Iterator[Answer]:
        if self._closed_by is not None:
            yield self._answer(seen, Role.HIDDEN, self._closed_by)
        elif blocks:
            yield self._answer(seen, Role.DELETES)
            self._closed_by = seen.place.layer
        elif self._provider is None:
            yield from self._provide(seen)
        elif stat.S_ISDIR(self._provider.kind) and stat.S_ISDIR(seen.kind):
            yield self._answer(seen, Role.MERGED)
        elif self._wants_data and stat.S_ISREG(seen.kind):
            yield self._answer(seen, Role.DATA)
            self._take_data(seen)
        else:
            yield self._answer(seen, Role.HIDDEN, self._provider.place.layer)
            self._closed_by = seen.place.layer

    def _provide(self, seen: _Seen) -> Iterator[Answer]:
        copy = seen.place if stat.S_ISDIR(seen.kind) else self._view.newest_copy(seen.place)
        if copy == seen.place:
            self._provider = self._answer(seen, Role.PROVIDES)
            yield self._provider
            if not stat.S_ISDIR(seen.kind):
                self._take_data(seen)
            return
        note = "another name of this hard link was written to; the index keeps the copy"
        self._provider = Answer(copy, Role.PROVIDES, seen.kind, (note,))
        self._closed_by = copy.layer
        yield self._provider
        yield self._answer(seen, Role.HIDDEN, copy.layer)

    def _take_data(self, seen: _Seen) -> None:
        self._wants_data = seen.metacopy
        if not seen.metacopy:
            self._closed_by = seen.place.layer

    def _ask_data_layer(self, layer: int) -> Iterator[Answer]:
        end = _Walk(self._view, layer, self._names).end
        if end is not None and stat.S_ISREG(end.kind):
            yield self._answer(end, Role.DATA)
            self._wants_data = False

    def _answer(self, seen: _Seen, role: Role, hidden_by: int | None = None) -> Answer:
        return Answer(seen.place, role, seen.kind, seen.notes, hidden_by)


class _Walk:
    """One path in one layer alone.

    `end` is what the walk ended at: the file asked for, or what is in its way (then `is_blocked`); None where
    the layer has neither. `is_opaque` says that nothing below counts, `names_below` where the layers below
    have the path.
    """

    def __init__(self, view: View, layer: int, names: Sequence[bytes]) -> None:
        self.end: _Seen | None = None
        self.is_blocked = False
        self.redirects_from_root = False
        self.names_below: list[bytes] = []
        here = Location(layer, b"")
        root_mark = _opaque_mark(view, here)
        self._hides_all = self.is_opaque = bool(root_mark)
        if not names:
            self.end = _Seen(here, stat.S_IFDIR, opaque=root_mark)
        for position, name in enumerate(names):
            seen = None if marks.is_reserved_name(name) else _look(view, here, name)
            self._pass(seen, name, is_last=position == len(names) - 1)
            if self.end is not None or seen is None:
                self.names_below += names[position + 1 :]
                return
            here = here.child(name)

    def _pass(self, seen: _Seen | None, name: bytes, is_last: bool) -> None:
        self.names_below.append(name)
        if seen is None:
            return
        self.is_blocked = bool(seen.whiteout) or not (is_last or stat.S_ISDIR(seen.kind))
        if is_last or self.is_blocked:
            self.end = seen
        self.is_opaque = self.is_opaque or bool(seen.opaque)
        if seen.redirect is not None and not seen.opaque:
            self._follow(seen.redirect)

    def _follow(self, redirect: bytes) -> None:
        target = marks.redirect_target(redirect, b"").split(b"/")
        if b"/" not in redirect:
            self.names_below[-1:] = target
            return
        self.names_below = target
        self.redirects_from_root = True
        self.is_opaque = self._hides_all  # an opaque parent does not hide what lies elsewhere


def _look(view: View, parent: Location, name: bytes) -> _Seen | None:
    """What a directory of a layer has under a name, a whiteout beside it included."""
    fd = view.open(parent, OPEN_DIRECTORY)
    try:
        with view.naming(parent.child(name)):
            return _seen(view, fd, parent, name)
    finally:
        os.close(fd)


def _seen(view: View, dir_fd: int, parent: Location, name: bytes) -> _Seen | None:
    place, beside = parent.child(name), marks.oci_whiteout(name)
    st, oci = _stat(dir_fd, name), _stat(dir_fd, beside)
    if st is None:
        return None if oci is None else _Seen(parent.child(beside), whiteout="a .wh. file")
    kind = stat.S_IFMT(st.st_mode)
    if marks.is_whiteout_device(st):
        return _Seen(place, kind, whiteout="character device 0/0")
    spelling = view.spelling(place)
    if marks.may_be_xattr_whiteout(st) and marks.has_whiteout_xattr(dir_fd, name, spelling):
        return _Seen(place, kind, whiteout="an xattr")
    found = marks.read_marks(dir_fd, name, spelling)
    if not stat.S_ISDIR(kind):
        redirect = found.redirect if found.metacopy else None
        return _Seen(place, kind, metacopy=found.metacopy, redirect=redirect)
    hidden_below = oci is not None and found.redirect is None
    opaque = _opaque_mark(view, place) or ("a .wh. file beside it" if hidden_below else "")
    return _Seen(place, kind, opaque=opaque, redirect=found.redirect)


def _stat(dir_fd: int, name: bytes) -> Stat | None:
    try:
        return access.stat_at(dir_fd, name)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def _opaque_mark(view: View, directory: Location) -> str:
    """How a directory says that it is opaque; empty where it does not. A layer's root can by a file only."""
    fd = view.open(directory, OPEN_DIRECTORY)
    try:
        if _stat(fd, marks.OPAQUE_NAME) is not None:
            return "a .wh..wh..opq file"
        if not directory.path:
            return ""
        values = ((name, xattrs.read_xattr(fd, b".", name)) for name in view.spelling(directory).opaque)
        name, value = next(((name, value) for name, value in values if value is not None), (b"", b""))
        return os.fsdecode(name) if value == b"y" else ""
    finally:
        os.close(fd)
