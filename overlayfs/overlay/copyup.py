"""How does a lower file come into the upper before it changes?

prepare (what, from where) → transfer (data, owner, mode, xattrs, times, fsync; descriptors only, so any thread may
do it) → publish (one link or rename, and the inode points at the upper). Observers see the file before or after,
and so does the next mount after a crash. Parents come first.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Self

from ..tree import access, filedata, fileflags, marks, metadata, syscalls, xattrs
from ..tree.syscalls import Stat, descriptor_path, stat_of
from . import attributes, content, drafts, impure, indexing, inheritance, lookup, protection
from .drafts import Draft
from .inodes import ROOT, Directory, Inode
from .layer import Location
from .merge import Kind
from .options import FsyncPolicy
from .ownership import Owner
from .state import OpenFile, State

_SMALL = 64 << 10  # bytes; holes in so much are not worth asking for where the blocks say that there are none
_NEVER_CLONES = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV)


class Need(Enum):
    """What an operation is going to change."""

    METADATA = auto()
    DATA = auto()


def ensure_upper(state: State, inode: Inode, need: Need = Need.DATA, size: int | None = None) -> bool:
    """Copy up unless done; with `size`, the copy is published as if truncated to that. True where this did so."""
    if state.work_fd is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    truncated = copy_up(state, inode, need, size) if inode.metacopy or not inode.upper else False
    if inode.number in state.names_to_link:
        indexing.link_known_names(state, inode)
    drafts.sync_changed(state)
    return truncated


def copy_up(state: State, inode: Inode, need: Need = Need.DATA, size: int | None = None) -> bool:
    """As `ensure_upper`, as a part of an operation that syncs what it changed itself."""
    if isinstance(inode, Directory):
        ensure_upper_directory(state, inode)
        return False
    work = begin(state, inode, need, size)
    if work is None:
        return False
    with work:
        work.transfer()
        work.publish()
    return work.truncates


def bytes_to_copy(state: State, inode: Inode, need: Need, size: int | None = None) -> int:
    """How much data `ensure_upper` would copy: whether it is worth a thread."""
    if (inode.upper and not inode.metacopy) or inode.kind != stat.S_IFREG:
        return 0
    if need is Need.METADATA and (inode.upper or _metadata_only(state, need)):
        return 0
    total = attributes.attributes_of(state, inode).size
    if protection.flags_of(state, inode) & fileflags.IMMUTABLE:  # nearly all that would need it is going to be refused
        return 0
    return total if size is None else min(size, total)


def _metadata_only(state: State, need: Need) -> bool:
    return need is Need.METADATA and state.options.metacopy and state.xattrs_work


class CopyUp(ABC):
    """One file on its way up, in a `with` block that undoes what is not published.

    All on the thread that owns the state, but for `transfer`, which runs anywhere. `fill` and an fsync of `fd_to_sync`
    do the same in two steps.
    """

    truncates = False  # whether what is published has the new size already

    def __init__(self, state: State, inode: Inode) -> None:
        self._state, self._inode = state, inode
        self._data: tuple[int, Stat] | None = None  # the descriptor of the data to copy, if any
        self._at_end: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        try:
            self._prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for step in reversed(self._at_end):
            with drafts.afterwards():
                step()

    def _pin(self, opened: OpenFile) -> int:
        """The descriptor, good until the block ends."""
        opened.pins += 1
        self._at_end.append(opened.unpin)
        return opened.fd

    @abstractmethod
    def _prepare(self) -> None:
        """Open what `transfer` needs."""

    def _open_data(self) -> tuple[int, Stat]:
        fd = self._pin(content.open_pooled(self._state, self._inode, writable=False))
        return fd, stat_of(fd)

    def transfer(self) -> None:
        """Fill what is not seen yet. May block for long; touches nothing but its descriptors."""
        self.fill()
        if self.fd_to_sync is not None:
            os.fsync(self.fd_to_sync)

    @abstractmethod
    def fill(self) -> None:
        """As `transfer`, but for the fsync."""

    @property
    def fd_to_sync(self) -> int | None:
        """What must be on the disk before it is published, or a crash could leave an empty file in place of the lower
        one; None where nothing must."""
        wanted = self._data is not None and self._state.options.fsync is not FsyncPolicy.VOLATILE
        return self._target if wanted else None

    @property
    @abstractmethod
    def _target(self) -> int:
        """The descriptor that is filled."""

    def has_at_hand(self, size: int) -> bool:
        """True where the first `size` bytes, which are few, need not be read from a disk."""
        return self._data is None or content.is_at_hand(self._data[0], size)

    @abstractmethod
    def publish(self) -> None:
        """Let the file appear in the upper, and the inode point at it; no step where another copy-up came first."""


def begin(state: State, inode: Inode, need: Need, size: int | None) -> CopyUp | None:
    """The copy-up that an operation needs, None where it needs none."""
    if inode.upper:
        if not inode.metacopy or need is not Need.DATA:
            return None
        if not indexing.has_one_name(state, inode):
            return _Completion(state, inode)
    for parent, _ in inode.names():
        ensure_upper_directory(state, parent)
    return _Copy(state, inode, need, size)


class _Copy(CopyUp):
    """A new file, of which nothing is seen until it takes the place of the old one.

    The source of the metadata is the lower file, or the upper one where that is a metacopy that gets its data now.
    """

    truncates = True

    def __init__(self, state: State, inode: Inode, need: Need, size: int | None) -> None:
        super().__init__(state, inode)
        self._new_size = size
        self._before = inode.upper, inode.metacopy
        self._metacopy = inode.kind == stat.S_IFREG and _metadata_only(state, need)

    def _prepare(self) -> None:
        state, inode = self._state, self._inode
        has_data = inode.kind == stat.S_IFREG and not self._metacopy
        if has_data and self._new_size != 0:
            with suppress(PermissionError):  # of an empty file nothing need be read
                self._data = self._open_data()
        self._source, self._st = self._open_source()
        self._owner = _owner_on_disk(state, inode, self._st)
        self._metacopy = self._metacopy and self._st.st_size > 0
        self._size = self._st.st_size if self._new_size is None else min(self._new_size, self._st.st_size)
        if has_data and self._size and self._data is None:
            self._data = self._open_data()
        self._xattrs = _mark_xattrs(state, inode, self._source, self._metacopy)
        self._draft = _draft_like(state, inode, self._source, self._st)
        self._at_end.append(self._draft.close)

    def _open_source(self) -> tuple[int, Stat]:
        """The file with the metadata, which mostly has the data too."""
        state, inode = self._state, self._inode
        if self._data is not None and not inode.upper and _is_at(state, inode.lower, self._data[1]):
            return self._data
        fd = self._pin(_readable(state, inode))
        return fd, stat_of(fd)

    @property
    def _target(self) -> int:
        return self._draft.fd

    def fill(self) -> None:
        fd = self._draft.fd
        self._fill_data(fd)
        owner = drafts.written_owner(self._state, fd, self._owner)
        for name, value in self._xattrs:
            access.setxattr(fd, name, value)
        # what is published with a new size is the truncated file already: modified now, and without capabilities
        without = b"" if self._new_size is None else metadata.CAPABILITY
        if stat.S_ISREG(self._st.st_mode):
            fileflags.copy_flags(self._source, fd)
        spelling = attributes.layer_of(self._state, self._inode).spelling
        metadata.copy_metadata(self._source, fd, owner.uid, owner.gid, owner.mode, self._st, spelling, without)
        if self._new_size not in (None, self._st.st_size):
            syscalls.set_times(fd, None, time.time_ns())

    def _fill_data(self, fd: int) -> None:
        if self._inode.kind != stat.S_IFREG:
            return
        if self._data is not None and self._size:
            _copy_data(self._state, *self._data, fd, self._size)
        size = self._st.st_size if self._new_size is None else self._new_size
        if size != self._size or self._metacopy:
            os.ftruncate(fd, size)

    def publish(self) -> None:
        state, inode = self._state, self._inode
        if self._before != (inode.upper, inode.metacopy):
            return
        if inode.upper:
            replace_unseen(self._draft, *state.place(inode))
            state.unshare(inode)
        else:
            indexing.publish(state, inode, self._draft, self._st)
        # no step that can fail from here on: upper and inode must agree
        state.synced_names.discard(inode.number)
        inode.upper = True
        inode.metacopy = self._metacopy
        _note_copied(state, inode)
        if stat.S_ISREG(inode.kind) and not self._metacopy and self._draft.fd >= 0:  # what is to be changed next
            state.descriptors.add_file(inode.number, self._draft.keep_descriptor(), writable=True)


class _Completion(CopyUp):
    """The data of a file with several names whose metadata alone was copied up.

    In place, as all its names must stay one file; until the metacopy mark goes, nobody looks at the data.
    """

    def _prepare(self) -> None:
        state, inode = self._state, self._inode
        with state.upper_node(inode) as node:
            self._fd = self._pin(OpenFile.unpooled(state.descriptors.open(lambda: access.reopen(node, os.O_RDWR))))
        self._st = stat_of(self._fd)
        self._data = self._open_data()

    @property
    def _target(self) -> int:
        return self._fd

    def fill(self) -> None:
        path = descriptor_path(self._fd)
        capability = xattrs.read_xattr_of_descriptor(self._fd, metadata.CAPABILITY)
        if self._data is not None:
            _copy_data(self._state, *self._data, self._fd, self._st.st_size)
        # after the data: writing clears capabilities, and setuid where we have no CAP_FSETID
        if capability is not None:
            os.setxattr(path, metadata.CAPABILITY, capability)
        if self._st.st_mode & (stat.S_ISUID | stat.S_ISGID):
            os.fchmod(self._fd, stat.S_IMODE(self._st.st_mode))
        syscalls.set_times(self._fd, self._st.st_atime_ns, self._st.st_mtime_ns)

    def publish(self) -> None:
        if not self._inode.metacopy:
            return
        name = self._state.prefix + marks.METACOPY
        if xattrs.read_xattr_of_descriptor(self._fd, name) is not None:
            access.removexattr(self._fd, name)
        self._inode.metacopy = False
        _note_copied(self._state, self._inode)


def _readable(state: State, inode: Inode) -> OpenFile:
    """A descriptor of the file for its metadata: one that tells its flags, where we may read it."""

    def reopen() -> int:
        if inode.kind in (stat.S_IFREG, stat.S_IFDIR):
            with suppress(PermissionError):
                return fileflags.open_to_control(node)
        return os.dup(node)

    with state.node(inode) as node:
        return OpenFile.unpooled(state.descriptors.open(reopen))


def _is_at(state: State, location: Location | None, st: Stat) -> bool:
    """True where a stat is of the very file that a lower layer has in a place."""
    assert location is not None
    dir_fd, name = state.lower_place(location)
    return st.is_same_file(access.stat_at(dir_fd, name))


def _copy_data(state: State, source: int, st: Stat, target: int, size: int) -> None:
    """Copy the first `size` bytes to an empty file: by reflink where the filesystems can, else keeping holes."""
    if size == st.st_size and st.st_dev not in state.cannot_clone:
        try:
            filedata.clone(source, target)
            return
        except OSError as error:  # any refusal: copying tells what really is wrong
            if error.errno in _NEVER_CLONES:
                state.cannot_clone.add(st.st_dev)
    may_have_holes = size > _SMALL or st.st_blocks * 512 < st.st_size
    filedata.copy_data(source, target, size, has_holes=may_have_holes)


def _note_copied(state: State, inode: Inode) -> None:
    """What was known of the file is news now; the lower one is only kept where it is still needed."""
    inode.lower = inode.lower if inode.metacopy or inode.index_name is not None else None
    inode.attributes = inode.xattr_names = None
    state.descriptors.drop_file(inode.number)


def replace_unseen(draft: Draft, dir_fd: int, name: bytes) -> None:
    """Publish over a file in an upper directory that must not look changed by it."""
    with drafts.unseen(dir_fd):
        draft.replace(dir_fd, name)


def publish_name(state: State, draft: Draft, parent: Directory, name: bytes) -> None:
    """Publish into an upper directory that must not look changed by it."""
    dir_fd = state.upper_fd(parent)
    with drafts.unseen(dir_fd):
        impure.mark(state, parent)
        draft.publish(dir_fd, name)
    lookup.note(parent, name, Kind.DIRECTORY if draft.is_directory else Kind.FILE)
    drafts.note_changed(state, parent)


def _owner_on_disk(state: State, inode: Inode, st: Stat) -> Owner:
    """Owner and mode that the copy gets: the lower's, an override xattr applied, ids never translated."""
    layer = attributes.layer_of(state, inode)
    owner = Owner(st.st_uid, st.st_gid, st.st_mode, st.st_rdev)
    if layer.override is None or not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
        return owner
    with state.node(inode) as fd:
        return attributes.read_override(layer, fd, owner)


def _mark_xattrs(state: State, inode: Inode, source: int, metacopy: bool) -> list[tuple[bytes, bytes]]:
    """What the copy must remember: its number, where it came from, that its data is below, what protects it."""
    protecting = protection.flags_of(state, inode)
    takes_user_xattrs = inode.kind in (stat.S_IFREG, stat.S_IFDIR)
    if not state.xattrs_work or not (takes_user_xattrs or state.prefix == marks.TRUSTED):
        return []
    found = [(state.prefix + marks.NUMBER, marks.integer_value(inode.number))]
    if inode.upper:
        origin = xattrs.read_xattr_of_descriptor(source, state.prefix + marks.ORIGIN)
        found += [] if origin is None else [(state.prefix + marks.ORIGIN, origin)]
    elif not isinstance(inode, Directory):
        layer = attributes.layer_of(state, inode)
        origin = marks.origin_value(syscalls.file_handle(source), state.uuid(layer))
        found.append((state.prefix + marks.ORIGIN, origin))
    if metacopy:
        found.append((state.prefix + marks.METACOPY, b""))
    if protecting:
        found.append((state.prefix + marks.PROTECTION, marks.protection_value(protecting)))
    return found


def _draft_like(state: State, inode: Inode, source: int, st: Stat) -> Draft:
    place, kind = inheritance.place_of_copy(state, inode.parent), stat.S_IFMT(st.st_mode)
    if kind == stat.S_IFREG:
        return drafts.draft_file(state, place)
    target = os.readlink(b"", dir_fd=source) if kind == stat.S_IFLNK else b""
    return drafts.draft_node(state, drafts.maker(kind, st.st_rdev, target), place)


# -- directories


def ensure_upper_directory(state: State, directory: Directory) -> None:
    """Copy up a directory, without what is in it, and all its parents; one that was removed gets no name."""
    if state.work_fd is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    missing = []
    here: Directory | None = directory
    while here is not None and not here.upper:
        missing.append(here)
        here = here.parent
    for found in reversed(missing):
        _copy_up_directory(state, found)


def _copy_up_directory(state: State, directory: Directory) -> None:
    parent = directory.parent
    assert directory.number != ROOT
    place = inheritance.place_of_copy(state, parent)
    with _readable(state, directory) as source, drafts.draft_directory(state, place) as draft:
        st = stat_of(source)
        owner = _owner_on_disk(state, directory, st)
        owner = drafts.written_owner(state, draft.fd, owner)
        for name, value in _mark_xattrs(state, directory, source, metacopy=False):
            access.setxattr(draft.fd, name, value)
        flagged = fileflags.copy_flags(source, draft.fd)
        spelling = attributes.layer_of(state, directory).spelling
        metadata.copy_metadata(source, draft.fd, owner.uid, owner.gid, owner.mode, st, spelling)
        if parent is None:
            state.orphans[directory.number] = draft.keep_descriptor()
        else:
            publish_name(state, draft, parent, directory.name)
    directory.upper = True
    directory.above = {}
    directory.default_acl = False
    directory.inheritance = None if flagged or parent is None else inheritance.of(state, parent).of_copy()
    directory.attributes = directory.xattr_names = None
