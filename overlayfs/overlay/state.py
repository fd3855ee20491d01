# cython: language_level=3, annotation_typing=False
"""All mutable state of one mount: layers, inodes, descriptors.

One thread owns it. Worker threads only ever see descriptors that were pinned for them. Compiled; C types are in
state.pxd.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable, Sequence

from overlayfs._typing import NamedTuple

from ..tree import deputies, marks, syscalls
from ..tree.fileflags import Inheritance
from ..tree.syscalls import Stat
from .claim import Claim
from .descriptors import Descriptors, OpenFile, borrowed, close_quietly, unpooled
from .inodes import ROOT, Directory, Inode, InodeTable
from .layer import Layer, Location, filesystem_uuid
from .options import OverlayOptions, RedirectDir, WhiteoutFormat
from .ownership import Ownership


class Held:
    """How the layers of the writable side lie on disk: `history` says it. `newest` is the name of the last snapshot."""

    @property
    def newest(self) -> str | None:
        raise NotImplementedError

    def descriptors(self) -> list[int]:
        """All that it holds open."""
        raise NotImplementedError

    def stop(self) -> None:
        """Touch the workdir no more, for another mount may; waits for a thread that removes layers."""
        raise NotImplementedError

    def take_waste(self) -> Callable[[], None] | None:
        """What removes layers that nobody needs any more, None where there are none."""
        raise NotImplementedError

    def facts(self, state: State) -> list[dict[str, object]]:
        """The layers of the writable side, the lowest first, each with the name of the snapshot it is the top of."""
        raise NotImplementedError


class FrozenIndex(NamedTuple):
    """The index of a layer that was the upper once. `layer` is the number of that layer, and `number` that under which
    the index itself is one of the layers."""

    layer: int
    number: int
    names: Collection[bytes]


class Changed(NamedTuple):
    """What the kernel has to be told of after a rollback: inodes by number, and names with their directory's number.
    The names are to be taken before anything else happens: most kernels need not be told, and it takes a while.

    `gone` are names of earlier rollbacks that the kernel has not looked up since, so that it keeps their inodes.
    """

    inodes: list[int]
    names: Iterable[tuple[int, bytes]]
    gone: Sequence[tuple[int, bytes]] = ()

    def without(self, kept: Collection[tuple[int, bytes]]) -> Changed:
        """The same, but the kernel keeps these names."""
        if not kept:
            return self
        names, gone = ([name for name in some if name not in kept] for some in (self.names, self.gone))
        return self._replace(names=names, gone=gone)


class Known:
    """Inodes from before a rollback that the kernel knows: `former` has them."""

    def revive(self, state: State, number: int) -> Inode | None:
        """The inode of a number that the kernel uses again, None for one that is not among them."""
        raise NotImplementedError

    def hand_over(self, inode: Inode) -> None:
        """A new inode is, by its number, one of them perhaps: then it gets what the kernel holds of that."""
        raise NotImplementedError

    def note_gone(self, number: int) -> None:
        """Nobody needs the inode of this number any more."""
        raise NotImplementedError

    def forget(self, number: int, count: int) -> None:
        """Give back lookups of an inode that was not used since."""
        raise NotImplementedError

    def release(self, number: int) -> None:
        """Give back an open of such an inode."""
        raise NotImplementedError


class DraftPlace:
    """A directory for drafts: what it hands on changes from draft to draft, and is None where it is not known."""

    __slots__ = ("fd", "hands_on", "name")

    def __init__(self, fd: int, name: bytes) -> None:
        self.fd = fd
        self.name = name
        self.hands_on: Inheritance | None = None


class State:
    """Everything that changes while the mount lives.

    `layers` is indexed by `Location.layer`; data-only layers come last. `upper`, `work_fd` and `index_fd` are None in a
    read-only mount. `lost_links` counts the deleted names of each lower hard-linked file, and is kept in the directory
    `links_fd`. `orphans` holds descriptors (O_PATH) of upper files that have no name left but are in use. `by_real`
    finds inodes that may have several names. `sync_errors` holds the errno of files whose fsync failed, until the files
    are deleted; `synced_names` the files whose name in the upper is known to be on disk: for other files fdatasync does
    not suffice. `passed_through` holds the files that the kernel serves by passthrough now, `written_unseen` those that
    it may write by it. `draft_place` is the subdirectory of the workdir for drafts that must inherit other flags.
    `cannot_clone` holds devices from which the upper cannot clone files (FICLONE), `in_memory` devices that are no
    disks. `unsynced` holds the directories that the operation has changed and must fsync. Layers that were the upper
    once have negative numbers, so that those of the others stay what they are: `frozen` are the numbers of those that
    count, the topmost (and least) first. A number leads to its layer as an index of the list does that counts from the
    end; the last of the list is the upper itself then, and a number is never used again. `data_start` is the first
    data-only layer, `data_end` follows the last. `frozen_indexes` are the indexes of the frozen layers, in the same
    order; `copied_from` tells of the copies in them what each was made of. `history` says how those layers lie on disk,
    `former` holds inodes from before a rollback; each is None until it is needed.
    """

    def __init__(  # noqa: PLR0915 - one line for each fact
        self, options: OverlayOptions, layers: list[Layer], upper: Layer | None, descriptor_limit: int
    ) -> None:
        self.options = options
        self.layers = layers
        self.stack = tuple(layer for layer in layers if not layer.data_only)
        self.upper = upper
        self.data_start, self.data_end = len(self.stack), len(layers)
        self.frozen: tuple[int, ...] = ()
        self.frozen_indexes: list[FrozenIndex] = []
        self.copied_from: dict[Location, Location] = {}
        self.history: Held | None = None
        self.former: Known | None = None
        self.ownership = Ownership(options)
        self.descriptors = Descriptors(descriptor_limit)
        self.inodes = InodeTable()
        self.by_real: dict[tuple[int, int, int], Inode] = {}
        self.orphans: dict[int, int] = {}
        self.sync_errors: dict[int, int] = {}
        self.synced_names: set[int] = set()
        self.unsynced: list[Directory] = []
        self.cannot_clone: set[int] = set()
        self.in_memory: set[int] = set()
        self.created: dict[int, OpenFile] = {}
        self.passed_through: set[int] = set()
        self.written_unseen: set[int] = set()
        self.draft_place: DraftPlace | None = None
        self.work_inheritance: Inheritance | None = None
        self.claim: Claim | None = None
        self.work_fd: int | None = None
        self.workdir_fd: int | None = None
        self.index_fd: int | None = None
        self.index_names: set[bytes] = set()
        self.names_to_link: set[int] = set()  # files of the index of which a lower name was looked up lately
        self.links_fd: int | None = None
        self.lost_links: dict[int, int] = {}
        self.prefix = marks.TRUSTED
        self.whiteout = WhiteoutFormat.OVERLAY
        self.xattrs_work = False
        self.tmpfiles_work = False
        self.uuids: dict[int, bytes] = {}
        self.follows_redirects = options.redirect_dir in (RedirectDir.ON, RedirectDir.FOLLOW, RedirectDir.OFF)
        self.revalidates = options.timeout_s == 0
        self._draft_count = 0
        self._plant_root()

    def _plant_root(self) -> None:
        self.root = Directory(ROOT, None, b"")
        self.root.upper = self.upper is not None
        self.root.lowers = tuple(Location(layer.index, b"") for layer in self.stack)
        self.root.nlookup = 1
        self.inodes.add(self.root)

    def use_prefix(self, prefix: bytes) -> None:
        """Write marks with this xattr prefix, and read all layers so. Before any inode but the root is known."""
        self.prefix = prefix
        self.layers = [layer.spelled(prefix) for layer in self.layers]
        self.stack = tuple(layer for layer in self.layers[: self.data_end] if not layer.data_only)
        self.upper = None if self.upper is None else self.upper.spelled(prefix)

    # -- inodes

    def inode(self, number: int) -> Inode:
        """The inode with this number; ESTALE when the kernel asks for one that it was never told of."""
        found = self.inodes.get(number)
        if found is None and self.former is not None:
            found = self.former.revive(self, number)
        if found is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found

    def add(self, inode: Inode) -> None:
        """Take a new inode into the table; after a rollback it may be one that the kernel knew before."""
        self.inodes.add(inode)
        if self.former is not None:
            self.former.hand_over(inode)

    def directory(self, number: int) -> Directory:
        inode = self.inode(number)
        if not isinstance(inode, Directory):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return inode

    def free_number(self, wanted: int) -> int:
        """A number that no live inode has, the wanted one if possible: a tampered or colliding number never makes
        one inode of two files."""
        while wanted <= ROOT or self.inodes.get(wanted) is not None:
            wanted = (wanted + 1) & 0x7FFF_FFFF_FFFF_FFFF
        return wanted

    def drop_if_unused(self, inode: Inode) -> None:
        """Forget an inode that neither the kernel nor a live child needs, and the parents of its names likewise."""
        while inode.nlookup == 0 and not inode.opens:
            if isinstance(inode, Directory) and inode.children:
                return
            parent: Directory | None = inode.parent
            aliases = inode.aliases
            self.discard(inode)
            for other, _ in aliases or ():
                self.drop_if_unused(other)
            if parent is None:
                return
            inode = parent

    def discard(self, inode: Inode) -> None:
        """Take an inode out of all tables and give back what it holds."""
        if self.inodes.get(inode.number) is not inode:
            return
        self.inodes.discard(inode.number)
        if inode.parent is not None:
            self._forget_child(inode.parent, inode.name, inode)
        for parent, name in inode.aliases or ():
            self._forget_child(parent, name, inode)
        self.unshare(inode)
        self.descriptors.drop_file(inode.number)
        self.descriptors.drop_directory(inode.number)
        for location in inode.lowers if isinstance(inode, Directory) else ():
            self.descriptors.drop_directory(location)
        self.synced_names.discard(inode.number)
        self.written_unseen.discard(inode.number)
        self.passed_through.discard(inode.number)
        self.names_to_link.discard(inode.number)
        self.drop_orphan(inode)
        if self.former is not None:
            self.former.note_gone(inode.number)

    def _forget_child(self, parent: Directory, name: bytes, inode: Inode) -> None:
        if parent.children.get(name) is inode:
            del parent.children[name]

    def pin_created(self, number: int, opened: OpenFile) -> None:
        """Have the descriptor of a file that was made and is open since take the place of the one that it had."""
        before = self.created.get(number)
        if before is not None:
            before.unpin()
            opened.pins += 1
            self.created[number] = opened

    def drop_orphan(self, inode: Inode) -> None:
        """Let go of the descriptor of a file that had no name: it is not needed, or no longer right."""
        orphan = self.orphans.pop(inode.number, None)
        if orphan is not None:
            close_quietly(orphan)

    def share(self, inode: Inode, layer: int, st: Stat) -> None:
        """Let other names of the same file on disk find this inode."""
        key = (layer, st.st_dev, st.st_ino)
        self.by_real[key] = inode
        if inode.shared_as is None or key not in inode.shared_as:
            inode.shared_as = [*(inode.shared_as or ()), key]

    def unshare(self, inode: Inode) -> None:
        """Remove the inode from `by_real`, so other names of the file on disk no longer find it."""
        for key in inode.shared_as or ():
            if self.by_real.get(key) is inode:
                del self.by_real[key]
        inode.shared_as = None

    def shared(self, layer: int, st: Stat) -> Inode | None:
        return self.by_real.get((layer, st.st_dev, st.st_ino))

    # -- layers

    @property
    def top(self) -> int:
        """The number of the topmost lower layer."""
        return self.frozen[0] if self.frozen else 0

    def numbers_from(self, first: int) -> Sequence[int]:
        """The numbers of the lower layers from that one down, without the data-only ones."""
        below = range(max(first, 0), len(self.stack))
        return below if first >= 0 else [*(number for number in self.frozen if number >= first), *below]

    # -- directories on disk

    def lower_fd(self, location: Location) -> int:
        """A descriptor (O_PATH) of a lower directory."""
        layer, path = location
        root_fd = self.layers[layer].root_fd
        if not path:
            return root_fd
        # where lower layers change, another directory may have its path since the last operation
        key = (self.descriptors.operation, location) if self.revalidates else location
        fd = self.descriptors.cached_directory(key)
        if fd >= 0:
            return fd
        start, name = root_fd, path
        above, _, last = path.rpartition(b"/")
        if above and not self.revalidates:
            held = self.descriptors.cached_directory(Location(layer, above))
            start, name = (root_fd, path) if held < 0 else (held, last)
        return self.descriptors.open_directory(key, start, name)

    def upper_fd(self, directory: Directory) -> int:
        """A descriptor (O_PATH) of a directory in the upper, opened from the nearest parent that is in the pool."""
        fd = self._held_upper_fd(directory)
        if fd >= 0:
            return fd
        start, path = self._nearest_held(directory)
        return self.descriptors.open_directory(directory.number, start, path)

    def _nearest_held(self, directory: Directory) -> tuple[int, bytes]:
        """The descriptor of the nearest parent that is in the pool, and the path from there."""
        names = [directory.name]
        here = directory.parent
        while here is not None:
            fd = self._held_upper_fd(here)
            if fd >= 0:
                return fd, b"/".join(reversed(names))
            names.append(here.name)
            here = here.parent
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _held_upper_fd(self, directory: Directory) -> int:
        """The descriptor without opening one; -1 where there is none."""
        if directory is self.root:
            return self._root_upper_fd()
        if self.orphans:
            orphan = self.orphans.get(directory.number)
            if orphan is not None:
                return orphan
        return self.descriptors.cached_directory(directory.number)

    def _root_upper_fd(self) -> int:
        assert self.upper is not None
        return self.upper.root_fd

    def place(self, inode: Inode) -> tuple[int, bytes]:
        """Where a file that has a name is, as (directory descriptor, name); the upper before the lower."""
        if not inode.upper:
            if inode.position >= 0 and inode.parent is not None:  # as most files: under its name in one of these
                return self.lower_fd(inode.parent.lowers[inode.position]), inode.name
            location = inode.lowers[0] if isinstance(inode, Directory) else inode.lower
            assert location is not None
            return self.lower_place(location)
        if inode.number == ROOT:
            return self._root_upper_fd(), b"."
        if inode.index_name is not None and self.index_fd is not None:
            return self.index_fd, inode.index_name
        if inode.parent is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self.upper_fd(inode.parent), inode.name

    def lower_place(self, location: Location) -> tuple[int, bytes]:
        directory, _, name = location.path.rpartition(b"/")
        return self.lower_fd(Location(location.layer, directory)), name or b"."

    def node(self, inode: Inode) -> OpenFile:
        """A descriptor of the file itself (O_PATH, or a pooled one of its data) for the length of a `with` block,
        whatever its type, name or none."""
        if self.orphans:
            orphan = self.orphans.get(inode.number)
            if orphan is not None:
                return borrowed(orphan)
        if isinstance(inode, Directory):
            return borrowed(self.upper_fd(inode) if inode.upper else self.lower_fd(inode.lowers[0]))
        if inode.upper and not inode.metacopy:
            opened = self.descriptors.file(inode.number)
            if opened is not None:
                return opened
        dir_fd, name = self.place(inode)
        return unpooled(self.descriptors.open_at(dir_fd, name, syscalls.OPEN_NODE))

    def upper_node(self, inode: Inode) -> OpenFile:
        """As `node`, for changes: what is not in the upper is refused, so that no lower layer is ever written."""
        if not inode.upper:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self.node(inode)

    def draft_name(self) -> bytes:
        """A name in the workdir that nothing has."""
        self._draft_count += 1
        return b"#%x" % self._draft_count

    def uuid(self, layer: Layer) -> bytes:
        if layer.index not in self.uuids:
            self.uuids[layer.index] = filesystem_uuid(layer.root_fd)
        return self.uuids[layer.index]

    def close(self) -> None:
        """Give back the locks and every descriptor."""
        if self.claim is not None:
            self.claim.release()
        self.descriptors.close()
        for inode in self.inodes.values():
            if isinstance(inode, Directory):
                inode.children.clear()
        held = [layer.root_fd for layer in self.layers if layer.root_fd >= 0] + list(self.orphans.values())
        held += [] if self.upper is None else [self.upper.root_fd]
        held += [fd for fd in (self.work_fd, self.workdir_fd, self.index_fd, self.links_fd) if fd is not None]
        held += [] if self.history is None else self.history.descriptors()
        held = list(dict.fromkeys(held))  # the history may have the workdir too
        self.orphans.clear()
        deputies.dismiss(*held)
        for fd in held:
            close_quietly(fd)
