# cython: language_level=3, annotation_typing=False
"""Where in the lower layers is the rest of a directory, or the data of a metacopy?

Follows opaque and redirect marks down the stack as the kernel's ovl_lookup (fs/overlayfs/namei.c): a redirect
in one layer names a path in the layers below it, walked inside each layer alone.
"""

from __future__ import annotations

import errno
import stat

from ..tree import access, marks
from ..tree.marks import Marks, Opacity
from . import linked
from .inodes import Directory
from .layer import Location
from .state import State


def join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def is_opaque(dir_fd: int, name: bytes, found: Marks) -> bool:
    """True where the directory `name` in `dir_fd` hides all below it, by xattr or by an OCI opaque file."""
    if found.opacity is Opacity.OPAQUE:
        return True
    try:
        access.stat_at(dir_fd, name + b"/" + marks.OPAQUE_NAME)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return False
        raise
    return True


def show_roots(state: State) -> None:
    """Have the root of the tree show the roots of the layers. One that hides all below hides it from redirects too."""
    numbers = (*state.frozen, *range(state.data_start))
    above = [state.upper, *(state.layers[number] for number in numbers)]
    shown = next((at for at, layer in enumerate(above) if layer is not None and layer.hides_below), len(numbers))
    state.root.lowers = tuple(Location(number, b"") for number in numbers[:shown])
    state.stack = tuple(state.layers[: max(shown - len(state.frozen), 0)])


def stack_of(state: State, parent: Directory, name: bytes, positions: tuple[int, ...]) -> tuple[Location, ...]:
    """The lower directories that make up the child `name`, from the parent's layers that have it."""
    found: list[Location] = []
    bottom = len(state.stack) - 1
    for position in positions:
        above_it = parent.lowers[position]
        found.append(above_it.child(name))
        if above_it.layer == bottom:
            break
        dir_fd = state.lower_fd(above_it)
        here = marks.read_marks(dir_fd, name, state.layers[above_it.layer].spelling)
        if is_opaque(dir_fd, name, here):
            break
        if here.redirect is not None and state.follows_redirects:
            return tuple(found) + _redirected(state, parent, position, here.redirect)
    return tuple(found)


def _redirected(state: State, parent: Directory, position: int, redirect: bytes) -> tuple[Location, ...]:
    above_it = parent.lowers[position]
    if redirect.startswith(b"/"):
        return locate(state, above_it.layer + 1, marks.redirect_target(redirect, b""))
    marks.redirect_target(redirect, b"")  # EIO where malformed
    found: list[Location] = []
    for location in parent.lowers[position + 1 :]:
        step = _Walk(state, location.layer, location.path, redirect)
        if step.directory is not None:
            found.append(step.directory)
        if step.stop:
            break
    return tuple(found)


def locate(state: State, first_layer: int, path: bytes) -> tuple[Location, ...]:
    """The lower directories at `path` (no leading slash), from layer `first_layer` down."""
    found: list[Location] = []
    for layer in state.numbers_from(first_layer):
        step = _Walk(state, layer, b"", path)
        if step.directory is not None:
            found.append(step.directory)
        if step.stop:
            break
        path = step.path
    return tuple(found)


class _Walk:
    """One path in one layer: what is there, and where the next layer must look.

    `path` is the path for the layers below (redirects on the way applied); `stop` says that nothing below counts.
    """

    def __init__(self, state: State, layer: int, start: bytes, path: bytes) -> None:
        self.directory: Location | None = None
        self.file: Location | None = None
        self.stop = False
        self.path = path
        here, parts = Location(layer, start), path.split(b"/")
        for index, part in enumerate(parts):
            rest = parts[index + 1 :]
            kind = self._step(state, here, part, rest)
            here = here.child(part)
            if kind == stat.S_IFDIR:
                continue
            if kind == stat.S_IFREG and not rest:
                self.file = here
            return
        self.directory = here

    def _step(self, state: State, here: Location, part: bytes, rest: list[bytes]) -> int:
        """The type of the next component, 0 where it is absent; notes opaque marks and redirects."""
        dir_fd, spelling = state.lower_fd(here), state.layers[here.layer].spelling
        try:
            st = access.stat_at(dir_fd, part)
        except FileNotFoundError:
            self.stop = self.stop or _has_oci_whiteout(dir_fd, part)
            return 0
        if marks.is_whiteout(dir_fd, part, st, spelling):
            self.stop = True
            return 0
        if not stat.S_ISDIR(st.st_mode):
            self.stop = True
            return stat.S_IFMT(st.st_mode)
        found = marks.read_marks(dir_fd, part, spelling)
        if found.redirect is not None and state.follows_redirects:
            # an absolute redirect leads out from under an opaque parent; a relative one stays beside the way so far
            self.stop = self.stop and not found.redirect.startswith(b"/")
            before = self.path.split(b"/")[: -1 - len(rest)]
            self.path = b"/".join([marks.redirect_target(found.redirect, b"/".join(before)), *rest])
        hidden_below = found.redirect is None and _has_oci_whiteout(dir_fd, part)
        self.stop = self.stop or is_opaque(dir_fd, part, found) or hidden_below
        return stat.S_IFDIR


def _has_oci_whiteout(dir_fd: int, name: bytes) -> bool:
    try:
        access.stat_at(dir_fd, marks.oci_whiteout(name))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return False
        raise
    return True


# -- metacopy


def data_below(state: State, parent: Directory, name: bytes, redirect: bytes | None) -> Location | None:
    """The next file below an upper metacopy: at its redirect, or of its own name; None where there is none."""
    if redirect is not None and state.follows_redirects:
        if redirect.startswith(b"/"):
            return _file_at(state, state.top, marks.redirect_target(redirect, b""))
        name = marks.redirect_target(redirect, b"")
    for location in parent.lowers:
        step = _Walk(state, location.layer, location.path, name)
        if step.file is not None:
            return linked.newest_copy(state, step.file, state.top)
        if step.stop:
            break
    return None


def data_below_lower(state: State, location: Location) -> Location:
    """The file with the data of a lower file: itself, or what its metacopy marks lead to. EIO where that is nothing,
    ENOENT where it may be in a data-only layer that lacks it: those are only looked into for the data itself."""
    absolute = False
    for _ in range(len(state.layers) + 1):
        found = marks.read_marks(*state.lower_place(location), state.layers[location.layer].spelling)
        if not found.metacopy:
            return location
        copied = state.copied_from.get(location)
        if copied is not None:
            location = copied
            continue
        path = location.path
        if found.redirect is not None and state.follows_redirects:
            path = marks.redirect_target(found.redirect, path.rpartition(b"/")[0])
        absolute = (found.redirect or b"").startswith(b"/")
        if not absolute:  # it is where the layers below have the directory
            path = _Walk(state, location.layer, b"", path).path
        following = _file_at(state, location.layer + 1, path, data_only=absolute)
        if following is None:
            break
        location = following
    if absolute and state.data_end > state.data_start:
        raise marks.MissingDataError(location.path)
    raise marks.MalformedMarkError("metacopy without data", location.path)


def _file_at(state: State, first_layer: int, path: bytes, data_only: bool = True) -> Location | None:
    """The topmost regular file at `path` from `first_layer` down; data-only layers only count for redirects."""
    for layer in state.numbers_from(first_layer):
        step = _Walk(state, layer, b"", path)
        if step.file is not None:
            return linked.newest_copy(state, step.file, first_layer)
        if step.stop:  # what hides the path in the ordinary layers does not reach the data-only ones
            break
        path = step.path
    for layer in range(max(first_layer, state.data_start), state.data_end) if data_only else ():
        step = _Walk(state, layer, b"", path)
        if step.file is not None:
            return step.file
        path = step.path
    return None
