"""Which merged tree do layers make, read without inodes and without a mount?

For the questions asked about layers as they lie on disk (changes.py, provenance.py): a merged tree of
nodes, each the places in the layers that make it up.  Nothing is remembered but directories read lately, so
the layers may belong to a live mount.  Not thread-safe.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from ..tree import access, marks, xattrs
from ..tree.marks import Spelling
from ..tree.syscalls import OPEN_DIRECTORY, OPEN_NODE, Stat, file_handle, stat_of
from .layer import Layer, Location, filesystem_uuid
from .merge import Kind, Names, merge
from .ownership import Owner, bare_owner, parse_override
from .scanning import scan
from .values import Attributes

_DIRECTORIES_REMEMBERED = 512


@dataclass(frozen=True, slots=True)
class Node:
    """A file of the merged tree: the one place it is at, or all places of a directory, top first.

    `parents_below` is for a file whose data may be further down: the directories in which its name goes on.
    """

    path: bytes
    places: tuple[Location, ...]
    is_directory: bool
    parents_below: tuple[Location, ...] = ()


@dataclass(frozen=True, slots=True)
class Child:
    """A name of a directory and the places known without a further look: redirects are not followed yet."""

    candidates: tuple[Location, ...]
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Version:
    """A node's metadata and xattrs as a user of the mount sees them, and the location of its data.

    `stat` is the file's own but for an override xattr of its layer; (`device`, `stat.ino`) tells hard links.
    """

    stat: Attributes
    device: int
    xattrs: Mapping[bytes, bytes]
    target: bytes | None = None
    data: Location | None = None


class _Found(NamedTuple):
    place: Location
    parents_below: tuple[Location, ...]
    name: bytes


class _Naming:
    """A context in which an OSError gets the path of a file in a layer."""

    __slots__ = ("_layer", "_path")

    def __init__(self, layer: bytes, path: bytes) -> None:
        self._layer, self._path = layer, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, OSError):
            path = os.path.join(self._layer, self._path)
            raise OSError(error.errno, error.strerror or str(error), path) from None


class View:
    """The merged tree of `layers`, top first; the layers stay their owner's and must outlive the view."""

    def __init__(
        self, layers: Sequence[Layer], data_layers: Sequence[Layer] = (), indexes: Mapping[int, Layer] | None = None
    ) -> None:
        """`indexes` are those of the layers that are or were an upper, by the number of the layer."""
        indexes = indexes or {}
        every = (*layers, *data_layers, *indexes.values())
        self._layers: dict[int, Layer] = {layer.index: layer for layer in every}
        self._heights = {layer.index: height for height, layer in enumerate(reversed(layers))}
        self._indexes = sorted((self._heights[number], Location(at.index, b"")) for number, at in indexes.items())
        self._copied_from: dict[Location, Location] = {}
        self._uuids: dict[int, bytes] = {}
        self._roots = tuple(Location(layer.index, b"") for layer in layers)
        self._data_roots = tuple(Location(layer.index, b"") for layer in data_layers)
        self._read: OrderedDict[Location, Names] = OrderedDict()

    def open(self, place: Location, flags: int) -> int:
        """Open a place beneath its layer's root; the caller owns the descriptor."""
        layer = self._layers[place.layer]
        with self.naming(place):
            if layer.opens_quietly and not flags & os.O_PATH:
                with suppress(PermissionError):  # of others' files we may not ask for it
                    return access.open_beneath(layer.root_fd, place.path, flags | os.O_NOATIME)
            return access.open_beneath(layer.root_fd, place.path, flags)

    def naming(self, place: Location) -> _Naming:
        """Errors of the block carry the path that people know, not one of our descriptors'."""
        return _Naming(self._layers[place.layer].path, place.path)

    def names(self, place: Location) -> Names:
        """The entries and marks of one directory of one layer."""
        known = self._read.get(place)
        if known is not None:
            self._read.move_to_end(place)
            return known
        names = self._scan(place)
        self._read[place] = names
        if len(self._read) > _DIRECTORIES_REMEMBERED:
            self._read.popitem(last=False)
        return names

    def _scan(self, place: Location) -> Names:
        fd = self.open(place, OPEN_DIRECTORY)
        try:
            with self.naming(place):
                layer = self._layers[place.layer]
                opacity = marks.read_marks(fd, b".", layer.spelling).opacity
                if opacity is marks.Opacity.OPAQUE and not place.path:
                    opacity = marks.Opacity.TRANSPARENT  # on a layer's root the kernel ignores the xattr
                return scan(fd, opacity, layer.spelling, layer.opens_quietly)
        finally:
            os.close(fd)

    def root(self) -> Node:
        """The root: the layers' own, down to the first opaque one."""
        return Node(b"", self._down_to_opaque(self._roots), True)

    def _down_to_opaque(self, places: Sequence[Location]) -> tuple[Location, ...]:
        kept: list[Location] = []
        for place in places:
            kept.append(place)
            if self.names(place).opaque:
                break
        return tuple(kept)

    def children(self, node: Node) -> dict[bytes, Child]:
        """The visible names of a directory."""
        merged = merge(self.names(place) for place in node.places)
        return {
            name: Child(
                tuple(
                    node.places[position].child(name)
                    for position in ((candidates,) if isinstance(candidates, int) else candidates)
                ),
                not isinstance(candidates, int),
            )
            for name, candidates in merged.items()
        }

    def node(self, parent: Node, name: bytes, child: Child) -> Node:
        """The child of a directory, redirects followed."""
        path = parent.path + b"/" + name if parent.path else name
        if not child.is_directory:
            (place,) = child.candidates
            above = [parent_place.layer for parent_place in parent.places].index(place.layer)
            place = self.newest_copy(place)
            return Node(path, (place,), False, parent.places[above + 1 :])
        return Node(path, tuple(self._directories(parent.places, name)), True)

    def find(self, path: bytes) -> Node | None:
        """The node at a path from the root, None where there is none."""
        node: Node | None = self.root()
        for name in filter(None, path.split(b"/")):
            child = self.children(node).get(name) if node and node.is_directory else None
            if node is None or child is None:
                return None
            node = self.node(node, name, child)
        return node

    def newest_copy(self, place: Location, below: int | None = None) -> Location:
        """The copy of a hard-linked lower file of which another name was written to, in a layer above its own (and
        `below` another one); the place itself where there is none.

        An index (kernel: Documentation/filesystems/overlayfs.rst, "Inode properties" and "index") keeps it
        under the lower file's handle in hex, so that all lower names of the file show one inode.
        """
        above = self._heights.get(place.layer)
        end = len(self._heights) if below is None else self._heights.get(below, 0)
        for height, index in self._indexes:
            if above is not None and above < height < end and self.names(index).kinds:
                copy = self._copy_in(index, place)
                if copy is not None:
                    self._copied_from[copy] = place
                    place = copy
        return place

    def _copy_in(self, index: Location, place: Location) -> Location | None:
        fd = self.open(place, OPEN_NODE)
        try:
            handle = file_handle(fd) if stat_of(fd).st_nlink > 1 else None
        finally:
            os.close(fd)
        if handle is None:
            return None
        name = marks.origin_value(handle, self._uuid(place.layer)).hex().encode()
        return index.child(name) if self.names(index).kinds.get(name) is Kind.FILE else None

    @property
    def has_index(self) -> bool:
        """Whether a lower file may show a copy that the layers above have under no name of their own."""
        return any(self.names(index).kinds for _, index in self._indexes)

    def _uuid(self, layer: int) -> bytes:
        if layer not in self._uuids:
            self._uuids[layer] = filesystem_uuid(self._layers[layer].root_fd)
        return self._uuids[layer]

    def _directories(self, parents: Sequence[Location], name: bytes) -> Iterator[Location]:
        """The directories that make up `name` in these parents: down to the first that ends the search."""
        for position, parent in enumerate(parents):
            kind = self.names(parent).kinds.get(name)
            if kind is None:
                continue
            if kind not in (Kind.DIRECTORY, Kind.OPAQUE_DIRECTORY):
                return
            place = parent.child(name)
            yield place
            if self.names(place).opaque:
                return
            redirect = self.marks(place).redirect
            if redirect is not None:  # which leads out from beside a whiteout of the directory's own name
                yield from self._redirected(parents[position + 1 :], redirect, place)
                return
            if kind is Kind.OPAQUE_DIRECTORY:
                return

    def _redirected(self, parents: Sequence[Location], redirect: bytes, place: Location) -> Iterator[Location]:
        """Where the redirect of a place leads: only ever to lower layers, so it cannot loop."""
        with self.naming(place):
            target = marks.redirect_target(redirect, b"")
        if b"/" not in redirect:
            yield from self._directories(parents, target)
            return
        *above, name = target.split(b"/")
        yield from self._directories(self._walk(self._below(place.layer), above), name)

    def _below(self, layer: int) -> tuple[Location, ...]:
        roots = self._down_to_opaque(self._roots)
        return roots[[root.layer for root in roots].index(layer) + 1 :]

    def _walk(self, roots: Sequence[Location], names: Sequence[bytes]) -> tuple[Location, ...]:
        places = tuple(roots)
        for name in names:
            places = tuple(self._directories(places, name))
        return places

    def spelling(self, place: Location) -> Spelling:
        """Which xattrs are marks at a place."""
        return self._layers[place.layer].spelling

    def marks(self, place: Location) -> marks.Marks:
        """The decoded marks of one place."""
        parent, name = _parent(place)
        fd = self.open(parent, OPEN_DIRECTORY)
        try:
            with self.naming(place):
                return marks.read_marks(fd, name, self.spelling(place))
        finally:
            os.close(fd)

    def mark_names(self, place: Location) -> frozenset[bytes]:
        """The overlay xattrs that one place has, by their full names."""
        parent, name = _parent(place)
        fd = self.open(parent, OPEN_DIRECTORY)
        try:
            with self.naming(place):
                stored = xattrs.list_xattrs(fd, name)
        finally:
            os.close(fd)
        prefixes = (self.spelling(place).prefix, marks.FUSE)
        return frozenset(name for name in stored if name.startswith(prefixes))

    def data(self, node: Node) -> Location | None:
        """Where the bytes of a regular file are: below its metacopies; None where no layer has them."""
        place, parents, name = node.places[0], node.parents_below, node.path.rpartition(b"/")[2]
        while True:
            found = self.marks(place)
            if not found.metacopy:
                return place
            if place in self._copied_from:
                place = self._copied_from[place]
                continue
            below = self._data_below(place, parents, name, found.redirect)
            if below is None:
                return None
            place, parents, name = below._replace(place=self.newest_copy(below.place, place.layer))

    def _data_below(
        self, place: Location, parents: Sequence[Location], name: bytes, redirect: bytes | None
    ) -> _Found | None:
        if redirect is not None:
            with self.naming(place):
                *above, name = marks.redirect_target(redirect, b"").split(b"/")
            if b"/" in redirect:
                parents = self._walk(self._below(place.layer), above)
                return self._first_file(parents, name) or self._in_data_layers(b"/".join([*above, name]))
        return self._first_file(parents, name)

    def _first_file(self, parents: Sequence[Location], name: bytes) -> _Found | None:
        for position, parent in enumerate(parents):
            kind = self.names(parent).kinds.get(name)
            if kind is Kind.FILE:
                return _Found(parent.child(name), tuple(parents[position + 1 :]), name)
            if kind is not None:
                return None
        return None

    def _in_data_layers(self, path: bytes) -> _Found | None:
        for root in self._data_roots:
            place = Location(root.layer, path)
            try:
                os.close(self.open(place, OPEN_NODE))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
            else:
                return _Found(place, (), path)
        return None

    def version(self, node: Node) -> Version:
        """Read what a node is; OSError where a layer changed underneath."""
        fd = self.open(node.places[0], OPEN_NODE)
        try:
            with self.naming(node.places[0]):
                st = stat_of(fd)
                shown = self._attributes(node.places[0], fd, st)
                stored = xattrs.list_xattrs_of_descriptor(fd)
                spelling = self.spelling(node.places[0])
                shown_xattrs = _shown_xattrs(fd, stored, spelling)
                target = os.readlink(b"", dir_fd=fd) if stat.S_ISLNK(st.st_mode) else None
        finally:
            os.close(fd)
        data = node.places[0] if stat.S_ISREG(st.st_mode) else None
        if data is not None and spelling.prefix + marks.METACOPY in stored:
            data = self.data(node)
        return Version(shown, st.st_dev, shown_xattrs, target, data)

    def _attributes(self, place: Location, fd: int, st: Stat) -> Attributes:
        owner = self._overridden(place, fd, st) or Owner(st.st_uid, st.st_gid, st.st_mode, st.st_rdev)
        return Attributes.pack(
            ino=st.st_ino,
            mode=owner.mode,
            nlink=st.st_nlink,
            uid=owner.uid,
            gid=owner.gid,
            rdev=owner.rdev,
            size=st.st_size,
            blocks=st.st_blocks,
            blksize=st.st_blksize,
            atime_ns=st.st_atime_ns,
            mtime_ns=st.st_mtime_ns,
            ctime_ns=st.st_ctime_ns,
        )

    def _overridden(self, place: Location, fd: int, st: Stat) -> Owner | None:
        name = self._layers[place.layer].override
        if name is None:
            return None
        if not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
            return bare_owner(st)
        value = xattrs.read_xattr_of_descriptor(fd, name)
        owner = None if value is None else parse_override(value)
        if owner is not None and not stat.S_IFMT(owner.mode):
            return owner._replace(mode=owner.mode | stat.S_IFMT(st.st_mode))
        return owner


def _parent(place: Location) -> tuple[Location, bytes]:
    if not place.path:
        return place, b"."
    above, _, name = place.path.rpartition(b"/")
    return Location(place.layer, above), name


def _shown_xattrs(fd: int, stored: Sequence[bytes], spelling: Spelling) -> dict[bytes, bytes]:
    names = ((name, marks.shown_xattr(name, spelling)) for name in stored)
    return {shown: access.getxattr(fd, name) for name, shown in names if shown is not None}
