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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum, auto

from ..tree import marks, metadata, syscalls
from ..tree.syscalls import descriptor_path
from . import attributes, drafts, indexing, lookup, redirects, whiteouts
from .drafts import Draft
from .inodes import ROOT, Directory, Inode
from .layer import UPPER_INDEX, Location
from .merge import Kind
from .options import FsyncPolicy
from .ownership import Owner, format_override
from .state import OpenFile, State


class Need(Enum):
    """What an operation is going to change."""

    METADATA = auto()
    DATA = auto()


def ensure_upper(state: State, inode: Inode, need: Need = Need.DATA, size: int | None = None) -> bool:
    """Copy up unless done; with `size`, the copy is published as if truncated to that. True where this copied it."""
    if state.work_fd is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if isinstance(inode, Directory):
        ensure_upper_directory(state, inode)
        return False
    with ExitStack() as stack:
        work = begin(state, inode, need, size, stack)
        if work is None:
            return False
        work.transfer()
        work.publish()
        return not isinstance(work, _LinkedCompletion)


def bytes_to_copy(state: State, inode: Inode, need: Need, size: int | None = None) -> int:
    """How much data `ensure_upper` would copy: whether it is worth a thread."""
    if inode.is_directory or (inode.upper and not inode.metacopy) or inode.kind != stat.S_IFREG:
        return 0
    if need is Need.METADATA and (inode.upper or _metadata_only(state, need)):
        return 0
    total = attributes.attributes_of(state, inode).size
    return total if size is None else min(size, total)


def _metadata_only(state: State, need: Need) -> bool:
    return need is Need.METADATA and state.options.metacopy and state.xattrs_work


def begin(state: State, inode: Inode, need: Need, size: int | None, stack: ExitStack) -> CopyUp | None:
    """Prepare a copy-up; None where there is nothing to do. `stack` closes its descriptors and undoes it."""
    if inode.upper:
        if not inode.metacopy or need is not Need.DATA:
            return None
        if attributes.attributes_of(state, inode).nlink > 1:
            return _LinkedCompletion(state, inode, stack)
        return CopyUp(state, inode, need, size, stack)
    for parent, _ in inode.names():
        ensure_upper_directory(state, parent)
    return CopyUp(state, inode, need, size, stack)


class CopyUp:
    """One file on its way up. Created and published on the thread that owns the state; `transfer` runs anywhere.

    The source of the metadata is the lower file, or the upper one where that is a metacopy that gets its data now.
    """

    def __init__(self, state: State, inode: Inode, need: Need, size: int | None, stack: ExitStack) -> None:
        self._state, self._inode, self._new_size = state, inode, size
        with state.node(inode) as source:
            self._source = state.descriptors.open(lambda: os.dup(source))
        stack.callback(os.close, self._source)
        self._st = os.fstat(self._source)
        self._owner = _owner_on_disk(state, inode, self._st)
        self._metacopy = _metadata_only(state, need) and inode.kind == stat.S_IFREG and self._st.st_size > 0
        self._size = self._st.st_size if size is None else min(size, self._st.st_size)
        self._data: OpenFile | None = None
        if inode.kind == stat.S_IFREG and not self._metacopy and self._size:
            self._data = open_data(state, inode, writable=False)
            self._data.pins += 1
            stack.callback(self._data.unpin)
        self._xattrs = _mark_xattrs(state, inode, self._source, self._metacopy)
        self._draft = stack.enter_context(_draft_like(state, self._source, self._st))

    def transfer(self) -> None:
        """Fill the draft. May block for long; touches nothing but its descriptors."""
        fd = self._draft.fd
        self._fill_data(fd)
        upper = self._state.upper
        assert upper is not None
        path, owner = descriptor_path(fd), self._owner
        if upper.override is not None and self._inode.kind == stat.S_IFREG:
            os.setxattr(path, upper.override, format_override(owner))
            owner = Owner(os.geteuid(), os.getegid(), 0o600 | owner.mode & 0o111, 0)
        for name, value in self._xattrs:
            os.setxattr(path, name, value)
        # what is published with a new size is the truncated file already: modified now, and without capabilities
        without = b"" if self._new_size is None else metadata.CAPABILITY
        metadata.copy_metadata(self._source, fd, owner.uid, owner.gid, owner.mode, self._st, without)
        if self._new_size not in (None, self._st.st_size):
            syscalls.set_times(fd, None, time.time_ns())
        if self._data is not None and self._state.options.fsync is not FsyncPolicy.VOLATILE:
            os.fsync(fd)  # before it is published: a crash must not leave an empty file in place of the lower one

    def _fill_data(self, fd: int) -> None:
        if self._inode.kind != stat.S_IFREG:
            return
        if self._data is not None:
            syscalls.copy_data(self._data.fd, fd, self._size)
        size = self._st.st_size if self._new_size is None else self._new_size
        if size != self._size or self._metacopy:
            os.ftruncate(fd, size)

    def publish(self) -> None:
        """Let the file appear in the upper under all its known names, and the inode point at it."""
        state, inode = self._state, self._inode
        names = list(inode.names())
        self._draft_st = os.fstat(self._draft.fd)
        if not names:
            self._replace_orphan()
        elif inode.upper:
            replace_unseen(self._draft, *state.place(inode))
        elif self._st.st_nlink > 1 and inode.lower is not None:
            indexing.publish(state, inode, self._draft, inode.lower, self._st, names)
        else:
            publish_name(state, self._draft, *names[0])
        # no step that can fail from here on: upper and inode must agree
        state.synced_names.discard(inode.number)
        inode.upper = True
        inode.metacopy = self._metacopy
        if not self._metacopy and inode.index_name is None:
            inode.lower = None
        inode.attributes = inode.xattr_names = None
        state.descriptors.drop_file(inode.number)
        if self._st.st_nlink > 1 and names:
            state.share(inode, UPPER_INDEX, self._draft_st)

    def _replace_orphan(self) -> None:
        known = self._state.orphans.pop(self._inode.number, None)
        if known is not None:
            os.close(known)
        self._state.orphans[self._inode.number] = self._draft.keep_descriptor()


class _LinkedCompletion(CopyUp):
    """The data of a hard-linked file whose metadata alone was copied up.

    In place, as all its names must stay one file; until the metacopy mark goes, nobody looks at the data.
    """

    def __init__(self, state: State, inode: Inode, stack: ExitStack) -> None:
        self._state, self._inode = state, inode
        dir_fd, name = state.place(inode)
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = state.descriptors.open(lambda: os.open(name, flags, dir_fd=dir_fd))
        stack.callback(os.close, self._fd)
        self._st = os.fstat(self._fd)
        self._data = open_data(state, inode, writable=False)
        self._data.pins += 1
        stack.callback(self._data.unpin)

    def transfer(self) -> None:
        assert self._data is not None
        syscalls.copy_data(self._data.fd, self._fd, self._st.st_size)
        syscalls.set_times(self._fd, self._st.st_atime_ns, self._st.st_mtime_ns)
        if self._state.options.fsync is not FsyncPolicy.VOLATILE:
            os.fsync(self._fd)

    def publish(self) -> None:
        state, inode = self._state, self._inode
        path = descriptor_path(self._fd)
        for prefix in marks.PREFIXES:
            if marks.read_xattr_of_target(path, prefix + marks.METACOPY) is not None:
                os.removexattr(path, prefix + marks.METACOPY)
        inode.metacopy, inode.attributes = False, None
        inode.lower = inode.lower if inode.index_name is not None else None
        state.descriptors.drop_file(inode.number)


def replace_unseen(draft: Draft, dir_fd: int, name: bytes) -> None:
    """Publish over a file in an upper directory that must not look changed by it."""
    before = os.fstat(dir_fd)
    draft.replace(dir_fd, name)
    with drafts.afterwards():
        syscalls.set_times(dir_fd, before.st_atime_ns, before.st_mtime_ns)


def publish_name(state: State, draft: Draft, parent: Directory, name: bytes) -> None:
    """Publish into an upper directory that must not look changed by it."""
    dir_fd = state.upper_fd(parent)
    before, made = os.fstat(dir_fd), os.fstat(draft.fd)
    draft.publish(dir_fd, name)
    lookup.note(parent, name, Kind.DIRECTORY if stat.S_ISDIR(made.st_mode) else Kind.FILE)
    with drafts.afterwards():
        syscalls.set_times(dir_fd, before.st_atime_ns, before.st_mtime_ns)
    if state.options.fsync is FsyncPolicy.STRICT:
        sync_directory(state, dir_fd)


def sync_directory(state: State, fd: int) -> None:
    """fsync(2) of a directory that is only held by O_PATH."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    readable = state.descriptors.open(lambda: os.open(descriptor_path(fd), flags))
    try:
        os.fsync(readable)
    finally:
        os.close(readable)


def _owner_on_disk(state: State, inode: Inode, st: os.stat_result) -> Owner:
    """Owner and mode that the copy gets: the lower's, an override xattr applied, ids never translated."""
    layer = attributes.layer_of(state, inode)
    owner = Owner(st.st_uid, st.st_gid, st.st_mode, st.st_rdev)
    if layer.override is None or not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
        return owner
    with state.node(inode) as fd:
        return attributes.read_override(layer, descriptor_path(fd), owner)


def _mark_xattrs(state: State, inode: Inode, source: int, metacopy: bool) -> list[tuple[bytes, bytes]]:
    """What the copy must remember: its number, where it came from, and that its data is below."""
    takes_user_xattrs = inode.kind in (stat.S_IFREG, stat.S_IFDIR)
    if not state.xattrs_work or not (takes_user_xattrs or state.prefix == marks.TRUSTED):
        return []
    found = [(state.prefix + marks.NUMBER, marks.integer_value(inode.number))]
    if inode.upper:
        origin = marks.read_xattr_of_target(descriptor_path(source), state.prefix + marks.ORIGIN)
        found += [] if origin is None else [(state.prefix + marks.ORIGIN, origin)]
    elif not isinstance(inode, Directory):
        layer = attributes.layer_of(state, inode)
        origin = marks.origin_value(syscalls.file_handle(source), state.uuid(layer))
        found.append((state.prefix + marks.ORIGIN, origin))
    if metacopy:
        found.append((state.prefix + marks.METACOPY, b""))
    return found


def _draft_like(state: State, source: int, st: os.stat_result) -> Draft:
    if stat.S_ISREG(st.st_mode):
        return drafts.draft_file(state)
    if stat.S_ISLNK(st.st_mode):
        return drafts.draft_symlink(state, os.readlink(b"", dir_fd=source))
    return drafts.draft_node(state, stat.S_IFMT(st.st_mode), st.st_rdev)


# -- directories


def ensure_upper_directory(state: State, directory: Directory) -> None:
    """Copy up a directory, without what is in it, and all its parents."""
    if state.work_fd is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    missing = []
    here = directory
    while not here.upper:
        missing.append(here)
        if here.parent is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        here = here.parent
    for found in reversed(missing):
        _copy_up_directory(state, found)


def _copy_up_directory(state: State, directory: Directory) -> None:
    parent = directory.parent
    assert parent is not None and directory.number != ROOT and state.upper is not None
    with state.node(directory) as source, drafts.draft_directory(state) as draft:
        st = os.fstat(source)
        owner = _owner_on_disk(state, directory, st)
        path = descriptor_path(draft.fd)
        if state.upper.override is not None:
            os.setxattr(path, state.upper.override, format_override(owner))
            owner = Owner(os.geteuid(), os.getegid(), 0o755, 0)
        for name, value in _mark_xattrs(state, directory, source, metacopy=False):
            os.setxattr(path, name, value)
        metadata.copy_metadata(source, draft.fd, owner.uid, owner.gid, owner.mode, st)
        publish_name(state, draft, parent, directory.name)
    directory.upper = True
    directory.above = {}
    directory.default_acl = False
    directory.attributes = directory.xattr_names = None


def make_opaque(state: State, directory: Directory) -> None:
    """Make an upper directory hide its lower part, which must be empty or copied up; nothing changes in the view."""
    whiteouts.make_opaque(state, state.upper_fd(directory))
    directory.lowers, directory.below = (), None
    directory.attributes = None


def copy_up_everything(state: State, directory: Directory) -> None:
    """Copy up a directory with all below it and make all of it opaque: then it can be moved as it is.

    Every step leaves the merged tree as it is, so it may stop anywhere.
    """
    with held(state) as directories:
        for inode in lower_files_below(state, directory, directories):
            ensure_upper(state, inode)
        for here in reversed(directories):
            if here.lowers:
                _forget_whiteouts(state, here)
                make_opaque(state, here)


@contextmanager
def held(state: State) -> Iterator[list[Directory]]:
    """A list to which directories are added with one lookup each, given back at the end: they stay live meanwhile."""
    directories: list[Directory] = []
    try:
        yield directories
    finally:
        for directory in directories:
            directory.nlookup -= 1
        for directory in reversed(directories):
            if directory.parent is not None and directory.nlookup == 0:
                state.drop_if_unused(directory)


def lower_files_below(state: State, directory: Directory, directories: list[Directory]) -> Iterator[Inode]:
    """Everything below a directory that is not in the upper yet, but for directories: those are copied up on the way.

    The caller copies up what it is given, in its own time; files that nobody uses are dropped again. `directories`
    (see `held`) takes every directory met, parents first.
    """
    todo = [directory]
    while todo:
        here = todo.pop()
        here.nlookup += 1
        directories.append(here)
        ensure_upper_directory(state, here)
        for name in lookup.names(state, here):
            inode = lookup.child(state, here, name)
            if isinstance(inode, Directory):
                todo.append(inode)
            elif inode is not None:
                if not inode.upper or inode.metacopy:
                    yield inode
                state.drop_if_unused(inode)


def _forget_whiteouts(state: State, directory: Directory) -> None:
    """Whiteouts mean nothing in a directory that is about to hide all below it."""
    upper = lookup.above(state, directory)
    if Kind.WHITEOUT not in upper.values():
        return
    whiteouts.make_opaque(state, state.upper_fd(directory))
    for name in [name for name, kind in upper.items() if kind is Kind.WHITEOUT]:
        whiteouts.remove_whiteout(state.upper_fd(directory), name)
        del upper[name]


# -- data


def data_location(state: State, inode: Inode) -> Location:
    """Where in the lower layers the data of a lower file or a metacopy is; EIO where it is nowhere."""
    if inode.lower is None:
        raise marks.MalformedMarkError("metacopy without data", inode.name)
    return redirects.data_below_lower(state, inode.lower)


def open_data(state: State, inode: Inode, writable: bool) -> OpenFile:
    """The pooled descriptor of a file's data. Writing needs `ensure_upper` first."""
    opened = state.descriptors.file(inode.number)
    if opened is None or (writable and not opened.writable):
        fd = state.descriptors.open(lambda: _open_data(state, inode, writable))
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):  # somebody changed the layer
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        except OSError:
            os.close(fd)
            raise
        opened = state.descriptors.add_file(inode.number, fd, writable)
    return opened


# O_NONBLOCK: a FIFO that somebody put in the file's place must not hang the mount.
_OPEN_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def _open_data(state: State, inode: Inode, writable: bool) -> int:
    flags = os.O_RDWR if writable else os.O_RDONLY
    orphan = state.orphans.get(inode.number)
    if orphan is not None and not inode.metacopy:
        return os.open(descriptor_path(orphan), flags | os.O_CLOEXEC | os.O_NONBLOCK)
    if inode.upper and not inode.metacopy:
        dir_fd, name = state.place(inode)
        return os.open(name, flags | _OPEN_FLAGS, dir_fd=dir_fd)
    dir_fd, name = state.lower_place(data_location(state, inode))
    try:  # reading must not change a lower layer, its access times included
        return os.open(name, os.O_RDONLY | os.O_NOATIME | _OPEN_FLAGS, dir_fd=dir_fd)
    except PermissionError:
        return os.open(name, os.O_RDONLY | _OPEN_FLAGS, dir_fd=dir_fd)
