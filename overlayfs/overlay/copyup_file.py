# cython: language_level=3, annotation_typing=False
"""How does one file come into the upper: prepare, transfer, publish?

Compiled; C types are in copyup_file.pxd.
"""

from __future__ import annotations

import os
import stat
import time

from overlayfs._typing import Self

from ..tree import access, filedata, fileflags, marks, metadata, syscalls, xattrs
from ..tree.syscalls import Stat, stat_of
from . import attributes, content, copyup_plan, drafts, indexing, inheritance, publishing
from .copyup_plan import Source
from .descriptors import OpenFile, unpooled
from .drafts import Draft
from .inodes import Inode
from .options import FsyncPolicy
from .ownership import Owner
from .state import State

_SMALL = 64 << 10  # bytes; holes in so much are not worth asking for where the blocks say that there are none
_VOLATILE = FsyncPolicy.VOLATILE


class CopyUp:
    """One file on its way up, in a `with` block that undoes what is not published.

    All on the thread that owns the state, but for `transfer`, which runs anywhere. `fill` and an fsync of `fd_to_sync`
    do the same in two steps. `truncates` says that what is published has the new size already.
    """

    def __init__(self, state: State, inode: Inode, truncates: bool) -> None:
        self._set_up(state, inode, truncates)

    def _set_up(self, state: State, inode: Inode, truncates: bool) -> None:
        """`__init__`, callable from C."""
        self._state = state
        self._inode = inode
        self.truncates = truncates
        self._data_fd = -1  # the descriptor of the data to copy, if any; `_data` is its stat
        self._data: Stat | None = None
        self._target = -1  # the descriptor that is filled
        self._pinned: list[OpenFile] = []
        self._draft: Draft | None = None

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def begin(self) -> None:
        """`__enter__`, callable from C."""
        try:
            self._prepare()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """`__exit__`, callable from C."""
        draft, pinned = self._draft, self._pinned
        if draft is not None:
            try:
                draft.close()
            except OSError as error:
                drafts.note_left_over(error)
        while pinned:
            opened: OpenFile = pinned.pop()
            opened.unpin()

    def _pin(self, opened: OpenFile) -> int:
        """The descriptor, good until the block ends."""
        opened.pins += 1
        self._pinned.append(opened)
        return opened.fd

    def _prepare(self) -> None:
        """Open what `transfer` needs."""
        raise NotImplementedError

    def _open_data(self) -> None:
        self._data_fd = self._pin(content.open_pooled(self._state, self._inode, writable=False))
        self._data = stat_of(self._data_fd)

    def transfer(self) -> None:
        """Fill what is not seen yet. May block for long; touches nothing but its descriptors."""
        self.fill()
        if self._must_sync():
            os.fsync(self._target)

    def fill(self) -> None:
        """As `transfer`, but for the fsync."""
        raise NotImplementedError

    @property
    def fd_to_sync(self) -> int | None:
        """What must be on the disk before it is published, or a crash could leave an empty file in place of the lower
        one; None where nothing must."""
        return self._target if self._must_sync() else None

    def _must_sync(self) -> bool:
        return self._data_fd >= 0 and self._state.options.fsync is not _VOLATILE

    def has_at_hand(self, size: int) -> bool:
        """True where the first `size` bytes, which are few, need not be read from a disk."""
        return self._data_fd < 0 or content.is_at_hand(self._data_fd, size)

    def publish(self) -> None:
        """Let the file appear in the upper, and the inode point at it; no step where another copy-up came first."""
        raise NotImplementedError


class Copy(CopyUp):
    """A new file, of which nothing is seen until it takes the place of the old one.

    The source of the metadata is the lower file, or the upper one where that is a metacopy that gets its data now. With
    `size` the copy is made as if truncated to that.
    """

    def __init__(self, state: State, inode: Inode, metacopy: bool, size: int | None) -> None:
        self._set_up(state, inode, True)
        self._new_size = -1 if size is None else size
        self._was_upper = inode.upper
        self._was_metacopy = inode.metacopy
        self._metacopy = metacopy and inode.kind == stat.S_IFREG

    def _prepare(self) -> None:
        state, inode = self._state, self._inode
        source = self._source = copyup_plan.source_of(state, inode)
        self._pinned.append(source.opened)
        st = source.st
        self._owner = copyup_plan.owner_on_disk(state, inode, st)
        self._spelling = attributes.layer_of(state, inode).spelling
        self._metacopy = self._metacopy and st.st_size > 0
        self._size = st.st_size if self._new_size < 0 else min(self._new_size, st.st_size)
        if inode.kind == stat.S_IFREG and self._size and not self._metacopy:
            if source.has_data:
                self._data_fd, self._data = source.fd, st
            else:
                self._open_data()
        self._xattrs = copyup_plan.mark_xattrs(state, inode, source.fd, self._metacopy)
        self._draft = _draft_like(state, inode, source)
        self._target = self._draft.fd

    def fill(self) -> None:
        fd, source, st = self._target, self._source, self._source.st
        is_file = stat.S_ISREG(st.st_mode)
        if is_file:
            self._fill_data(fd)
        owner: Owner = drafts.written_owner(self._state, fd, self._owner)
        for name, value in self._xattrs:
            access.setxattr(fd, name, value)
        if is_file:
            fileflags.copy_flags(source.fd, fd)
        # what is published with a new size is the truncated file already: modified now, and without capabilities
        without = b"" if self._new_size < 0 else metadata.CAPABILITY
        metadata.copy_metadata(
            source.fd, fd, owner.uid, owner.gid, owner.mode, st, self._spelling, without, source.xattrs
        )
        if self._new_size == 0 or (self._new_size > 0 and self._new_size != st.st_size):  # as by `changing.change`
            syscalls.set_times(fd, None, time.time_ns())

    def _fill_data(self, fd: int) -> None:
        if self._data is not None and self._size:
            _copy_data(self._state, self._data_fd, self._data, fd, self._size)
        size = self._source.st.st_size if self._new_size < 0 else self._new_size
        if size != self._size or self._metacopy:
            os.ftruncate(fd, size)

    def publish(self) -> None:
        state, inode, draft = self._state, self._inode, self._draft
        assert draft is not None
        if self._was_upper != inode.upper or self._was_metacopy != inode.metacopy:
            return
        if inode.upper:
            dir_fd, name = state.place(inode)
            publishing.replace_unseen(draft, dir_fd, name)
            state.unshare(inode)
        else:
            indexing.publish(state, inode, draft, self._source.st)
        # no step that can fail from here on: upper and inode must agree
        number = inode.number
        state.synced_names.discard(number)
        inode.upper = True
        inode.metacopy = self._metacopy
        _note_copied(state, inode)
        if inode.kind == stat.S_IFREG and not self._metacopy and draft.fd >= 0:  # what is to be changed next
            opened = state.descriptors.add_file(number, draft.keep_descriptor(), True)
            state.pin_created(number, opened)


class Completion(CopyUp):
    """The data of a file with several names whose metadata alone was copied up.

    In place, as all its names must stay one file; until the metacopy mark goes, nobody looks at the data.
    """

    def __init__(self, state: State, inode: Inode) -> None:
        super().__init__(state, inode, False)

    def _prepare(self) -> None:
        state, inode = self._state, self._inode
        with state.upper_node(inode) as node:
            self._target = self._pin(unpooled(state.descriptors.reopen(node, os.O_RDWR)))
        self._st = stat_of(self._target)
        self._open_data()

    def fill(self) -> None:
        fd, st = self._target, self._st
        capability = xattrs.read_xattr_of_descriptor(fd, metadata.CAPABILITY)
        assert self._data is not None
        _copy_data(self._state, self._data_fd, self._data, fd, st.st_size)
        # after the data: writing clears capabilities, and setuid where we have no CAP_FSETID
        if capability is not None:
            access.setxattr(fd, metadata.CAPABILITY, capability)
        if st.st_mode & (stat.S_ISUID | stat.S_ISGID):
            os.fchmod(fd, stat.S_IMODE(st.st_mode))
        syscalls.copy_times(fd, st)

    def publish(self) -> None:
        if not self._inode.metacopy:
            return
        name = self._state.prefix + marks.METACOPY
        if xattrs.read_xattr_of_descriptor(self._target, name) is not None:
            access.removexattr(self._target, name)
        self._inode.metacopy = False
        _note_copied(self._state, self._inode)


def _copy_data(state: State, source: int, st: Stat, target: int, size: int) -> None:
    """Copy the first `size` bytes to an empty file: by reflink where the filesystems can, else keeping holes."""
    if size == st.st_size and st.st_dev not in state.cannot_clone:
        refused = filedata.clone(source, target)
        if not refused:
            return
        if filedata.never_clones(refused):  # after any other refusal, copying tells what really is wrong
            state.cannot_clone.add(st.st_dev)
    may_have_holes = size > _SMALL or st.st_blocks * 512 < st.st_size
    filedata.copy_data(source, target, size, has_holes=may_have_holes)


def _note_copied(state: State, inode: Inode) -> None:
    """Drop the cached state of the copied file; its lower file is only kept if it is still needed."""
    inode.lower = inode.lower if inode.metacopy or inode.index_name is not None else None
    inode.attributes = inode.xattr_names = None
    state.descriptors.drop_file(inode.number)


def _draft_like(state: State, inode: Inode, source: Source) -> Draft:
    place, kind = inheritance.place_of_copy(state, inode.parent), stat.S_IFMT(source.st.st_mode)
    if kind == stat.S_IFREG:
        return drafts.draft_file(state, place)
    target = os.readlink(b"", dir_fd=source.fd) if kind == stat.S_IFLNK else b""
    return drafts.draft_node(state, drafts.maker(kind, source.st.st_rdev, target), place)
