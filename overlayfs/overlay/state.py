"""All mutable state of one mount: layers, inodes, descriptors.

One thread owns it. Worker threads only ever see descriptors that were pinned for them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, TypeVar

from ..tree import access, deputies, marks, syscalls
from ..tree.fileflags import Inheritance
from ..tree.syscalls import Stat
from .claim import Claim
from .inodes import ROOT, Directory, Inode
from .layer import Layer, Location, filesystem_uuid
from .options import OverlayOptions, RedirectDir, WhiteoutFormat
from .ownership import Ownership

_DIRECTORY_DESCRIPTORS: Final = 512
_FILE_DESCRIPTORS: Final = 1024
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)

_Result = TypeVar("_Result")


class OpenFile:
    """A pooled descriptor of a file. Closed when evicted and no longer pinned; a `with` block pins it.

    `may_wait` is False where it is known that reading waits for no disk.
    """

    __slots__ = ("fd", "may_wait", "pins", "stale", "writable")

    def __init__(self, fd: int, writable: bool) -> None:
        self.fd = fd
        self.writable = writable
        self.may_wait = True
        self.pins = 0
        self.stale = False

    @classmethod
    def unpooled(cls, fd: int) -> OpenFile:
        """One that closes with its last pin."""
        opened = cls(fd, writable=False)
        opened.stale = True
        return opened

    def __enter__(self) -> int:
        self.pins += 1
        return self.fd

    def __exit__(self, *exc: object) -> None:
        self.unpin()

    def retire(self) -> None:
        self.stale = True
        if not self.pins:
            os.close(self.fd)

    def unpin(self) -> None:
        self.pins -= 1
        if self.stale and not self.pins:
            os.close(self.fd)


class Descriptors:
    """Bounded pools of directory and file descriptors, least recently used evicted first.

    A directory descriptor is good until the end of the operation that asked for it (`begin` starts the next). A file
    descriptor that must outlive the current operation is pinned.
    """

    _FEWEST: Final = 8

    def __init__(self, limit: int) -> None:
        self._directory_limit = max(self._FEWEST, min(_DIRECTORY_DESCRIPTORS, limit // 4))
        self._file_limit = max(self._FEWEST, min(_FILE_DESCRIPTORS, limit // 4))
        self._directories: dict[object, tuple[int, int]] = {}  # key: (descriptor, operation that used it last)
        self._files: dict[int, OpenFile] = {}
        self.operation = 0  # the number of the one that goes on
        self.last_resort: Callable[[], bool] = lambda: False  # closes what can be done without; False: nothing is left

    def __len__(self) -> int:
        return len(self._directories) + len(self._files)

    def begin(self) -> None:
        """A new operation starts: directory descriptors handed out before may be closed from now on."""
        self.operation += 1

    def directory(self, key: object, opener: Callable[[], int]) -> int:
        """The descriptor of a directory, opened when it is not in the pool; the pool keeps it."""
        fd = self.cached_directory(key)
        if fd is None:
            fd = self.open(opener)
            if len(self._directories) >= self._directory_limit:
                self._evict_directory()
            self._directories[key] = fd, self.operation
        return fd

    def cached_directory(self, key: object) -> int | None:
        found = self._directories.pop(key, None)
        if found is None:
            return None
        self._directories[key] = found[0], self.operation
        return found[0]

    def file(self, number: int) -> OpenFile | None:
        found = self._files.pop(number, None)
        if found is not None:
            self._files[number] = found
        return found

    def add_file(self, number: int, fd: int, writable: bool) -> OpenFile:
        self.drop_file(number)
        if len(self._files) >= self._file_limit:
            self._evict_file()
        opened = self._files[number] = OpenFile(fd, writable)
        return opened

    def drop_file(self, number: int) -> None:
        opened = self._files.pop(number, None)
        if opened is not None:
            opened.retire()

    def drop_directory(self, key: object) -> None:
        found = self._directories.pop(key, None)
        if found is not None:
            os.close(found[0])

    def open(self, opener: Callable[[], _Result]) -> _Result:
        """Call what opens descriptors, giving pooled ones up as long as there are too few."""
        while True:
            try:
                return opener()
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS or not self._make_room():
                    raise

    def _make_room(self) -> bool:
        """Close half of what may be closed: the limit was lowered, or somebody else uses it up. False: nothing may."""
        closed = 0
        for evict, size in ((self._evict_file, len(self._files)), (self._evict_directory, len(self._directories))):
            for _ in range((size + 1) // 2):
                closed += evict()
        return closed > 0 or self.last_resort()

    def _evict_file(self) -> bool:
        for number, opened in self._files.items():
            if not opened.pins:
                del self._files[number]
                opened.retire()
                return True
        return False

    def _evict_directory(self) -> bool:
        for key, (fd, operation) in self._directories.items():
            if operation == self.operation:  # the oldest is in use, so all are
                return False
            del self._directories[key]
            os.close(fd)
            return True
        return False

    def close(self) -> None:
        for opened in self._files.values():
            opened.retire()
        for fd, _ in self._directories.values():
            os.close(fd)
        self._files.clear()
        self._directories.clear()


@dataclass(slots=True)
class DraftPlace:
    """A directory for drafts: what it hands on changes from draft to draft, and is None where it is not known."""

    fd: int
    name: bytes
    hands_on: Inheritance | None = None


class State:
    """Everything that changes while the mount lives.

    `layers` is indexed as `Location.layer`; data-only layers come last. `upper`, `work_fd` and `index_fd` are None
    for a read-only mount. `lost_links` says how many names of a lower hard-linked file were deleted, kept in the
    directory `links_fd`. `orphans` are descriptors (O_PATH) of upper files that lost their last name but are in use.
    `by_real` finds inodes that may have several names. `sync_errors` holds files whose fsync failed: it stays failed
    until they are deleted; `synced_names` those whose name in the upper is known to be on the disk: for others
    fdatasync alone is not enough. `passed_through` are files that the kernel serves without us now, `written_unseen`
    those that it may write so. `draft_place` is the directory of the workdir for drafts that take other flags than the
    workdir hands on. `cannot_clone` are the devices whose files the upper can have no reflinks of; `in_memory` those
    that are no disks. `unsynced` are directories that the operation changed and is to sync.
    """

    def __init__(
        self, options: OverlayOptions, layers: list[Layer], upper: Layer | None, descriptor_limit: int
    ) -> None:
        self.options = options
        self.layers = layers
        self.stack = tuple(layer for layer in layers if not layer.data_only)
        self.upper = upper
        self.ownership = Ownership(options)
        self.descriptors = Descriptors(descriptor_limit)
        self.inodes: dict[int, Inode] = {}
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
        self.root = Directory(ROOT, None, b"")
        self.root.upper = upper is not None
        self.root.lowers = tuple(Location(layer.index, b"") for layer in self.stack)
        self.root.nlookup = 1
        self.inodes[ROOT] = self.root

    def use_prefix(self, prefix: bytes) -> None:
        """Write marks with this xattr prefix, and read all layers so. Before any inode but the root is known."""
        self.prefix = prefix
        self.layers = [layer.spelled(prefix) for layer in self.layers]
        self.stack = tuple(layer for layer in self.layers if not layer.data_only)
        self.upper = None if self.upper is None else self.upper.spelled(prefix)

    # -- inodes

    def inode(self, number: int) -> Inode:
        """The inode with this number; ESTALE when the kernel asks for one that it was never told of."""
        try:
            return self.inodes[number]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def directory(self, number: int) -> Directory:
        inode = self.inode(number)
        if not isinstance(inode, Directory):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return inode

    def free_number(self, wanted: int) -> int:
        """A number that no live inode has, the wanted one if possible: a tampered or colliding number never makes
        one inode of two files."""
        while wanted <= ROOT or wanted in self.inodes:
            wanted = (wanted + 1) & 0x7FFF_FFFF_FFFF_FFFF
        return wanted

    def drop_if_unused(self, inode: Inode) -> None:
        """Forget an inode that neither the kernel nor a live child needs, and the parents of its names likewise."""
        while inode.nlookup == 0 and not inode.opens:
            if isinstance(inode, Directory) and inode.children:
                return
            parent, aliases = inode.parent, inode.aliases
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
        del self.inodes[inode.number]
        for parent, name in inode.names():
            if parent.children.get(name) is inode:
                del parent.children[name]
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

    def drop_orphan(self, inode: Inode) -> None:
        """Let go of the descriptor of a file that had no name: it is not needed, or no longer right."""
        orphan = self.orphans.pop(inode.number, None)
        if orphan is not None:
            os.close(orphan)

    def share(self, inode: Inode, layer: int, st: Stat) -> None:
        """Let other names of the same file on disk find this inode."""
        key = (layer, st.st_dev, st.st_ino)
        self.by_real[key] = inode
        if inode.shared_as is None or key not in inode.shared_as:
            inode.shared_as = [*(inode.shared_as or ()), key]

    def unshare(self, inode: Inode) -> None:
        """The inode is no longer the file on disk that other names may lead to."""
        for key in inode.shared_as or ():
            if self.by_real.get(key) is inode:
                del self.by_real[key]
        inode.shared_as = None

    def shared(self, layer: int, st: Stat) -> Inode | None:
        return self.by_real.get((layer, st.st_dev, st.st_ino))

    # -- directories on disk

    def lower_fd(self, location: Location) -> int:
        """A descriptor (O_PATH) of a lower directory."""
        layer, path = location
        root_fd = self.layers[layer].root_fd
        if not path:
            return root_fd
        if self.revalidates:  # another directory may have its path since the last operation
            key = self.descriptors.operation, location
            return self.descriptors.directory(key, lambda: access.open_beneath(root_fd, path, syscalls.OPEN_DIRECTORY))
        fd = self.descriptors.cached_directory(location)
        if fd is not None:
            return fd
        above, _, name = path.rpartition(b"/")
        start = self.descriptors.cached_directory(Location(layer, above)) if above else root_fd
        if start is None:
            start, name = root_fd, path
        return self.descriptors.directory(location, lambda: access.open_beneath(start, name, syscalls.OPEN_DIRECTORY))

    def upper_fd(self, directory: Directory) -> int:
        """A descriptor (O_PATH) of a directory in the upper, opened from the nearest parent that is in the pool."""
        fd = self._held_upper_fd(directory)
        if fd is not None:
            return fd
        start, path = self._nearest_held(directory)
        return self.descriptors.directory(
            directory.number, lambda: access.open_beneath(start, path, syscalls.OPEN_DIRECTORY)
        )

    def _nearest_held(self, directory: Directory) -> tuple[int, bytes]:
        """The descriptor of the nearest parent that is in the pool, and the path from there."""
        names = [directory.name]
        here = directory.parent
        while here is not None:
            fd = self._held_upper_fd(here)
            if fd is not None:
                return fd, b"/".join(reversed(names))
            names.append(here.name)
            here = here.parent
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _held_upper_fd(self, directory: Directory) -> int | None:
        if directory.number == ROOT:
            return self._root_upper_fd()
        orphan = self.orphans.get(directory.number)
        return self.descriptors.cached_directory(directory.number) if orphan is None else orphan

    def _root_upper_fd(self) -> int:
        assert self.upper is not None
        return self.upper.root_fd

    def place(self, inode: Inode) -> tuple[int, bytes]:
        """Where a file that has a name is, as (directory descriptor, name); the upper before the lower."""
        if not inode.upper:
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

    def node(self, inode: Inode) -> AbstractContextManager[int]:
        """A descriptor of the file itself (O_PATH, or a pooled one of its data) for the length of a `with` block,
        whatever its type, name or none."""
        orphan = self.orphans.get(inode.number)
        if orphan is not None:
            return nullcontext(orphan)
        if isinstance(inode, Directory):
            return nullcontext(self.upper_fd(inode) if inode.upper else self.lower_fd(inode.lowers[0]))
        if inode.upper and not inode.metacopy and (opened := self.descriptors.file(inode.number)) is not None:
            return opened
        dir_fd, name = self.place(inode)
        return OpenFile.unpooled(self.descriptors.open(lambda: access.open_at(dir_fd, name, syscalls.OPEN_NODE)))

    def upper_node(self, inode: Inode) -> AbstractContextManager[int]:
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
        held = [layer.root_fd for layer in self.layers] + list(self.orphans.values())
        held += [] if self.upper is None else [self.upper.root_fd]
        held += [fd for fd in (self.work_fd, self.workdir_fd, self.index_fd, self.links_fd) if fd is not None]
        self.orphans.clear()
        deputies.dismiss(*held)
        for fd in held:
            os.close(fd)
