# cython: language_level=3, annotation_typing=False
"""How is a new file put into the upper atomically?

A `Draft` is built in the workdir, where nobody sees it, and published by one rename or link. A draft that is not
published leaves nothing behind; after a crash, what is left in the workdir goes at the next mount. Compiled; C types
are in drafts.pxd.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayfs._log import Log
from overlayfs._typing import Final, Self

from ..tree import access, syscalls
from ..tree.syscalls import Stat, set_mode, set_owner, stat_of
from .inodes import Directory
from .options import FsyncPolicy
from .ownership import Owner, format_override
from .state import State

log = Log(__name__)


def is_draft_name(name: bytes) -> bool:
    """True for what a crash may leave in a workdir: names of State.draft_name, and the kernel's (fs/overlayfs/dir.c,
    ovl_tempname)."""
    return name[:1] == b"#" and len(name) > 1 and not name[1:].strip(b"0123456789abcdef")


_EXCLUSIVE: Final = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_UNNAMED: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
_FORMAT, _DIRECTORY, _LINK, _REGULAR = 0o170000, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFREG
_PERMISSIONS = 0o7777
_STRICT = FsyncPolicy.STRICT


def note_left_over(error: OSError) -> None:
    """A step after the one that published failed: what is done is done, so the failure is logged and not raised.

    Leftovers in the workdir are cleaned at the next mount.
    """
    log.warning("left over after a change: %s", error)


class Afterwards:
    """A block for such a step."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> bool:
        if not isinstance(error, OSError):
            return False
        note_left_over(error)
        return True


_AFTERWARDS: Final = Afterwards()


def afterwards() -> Afterwards:
    return _AFTERWARDS


class Unseen:
    """A block for a change in an upper directory that the merged tree does not show: the directory's times stay."""

    def __init__(self, dir_fd: int) -> None:
        self._dir_fd = dir_fd

    def __enter__(self) -> None:
        self._before = stat_of(self._dir_fd)

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            restore_times(self._dir_fd, self._before)


def restore_times(dir_fd: int, before: Stat) -> None:
    """The end of such a block: the change has been made."""
    try:
        syscalls.copy_times(dir_fd, before)
    except OSError as failure:
        note_left_over(failure)


def unseen(dir_fd: int) -> Unseen:
    return Unseen(dir_fd)


class Draft:
    """A file or directory in the making. Owns `fd` (a data descriptor, or O_PATH) until it is closed.

    `place` is the directory that it is made in: the workdir, or one in there that hands on the right flags.
    """

    def __init__(self, state: State, fd: int, name: bytes | None, place: int, is_directory: bool = False) -> None:
        self._place = place
        self._state = state
        self.fd = fd
        self.is_directory = is_directory
        self._name = name  # in its place; None for an O_TMPFILE and once published

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, _error: object, _traceback: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the descriptor, and of the file where it was not published."""
        if self._name is not None:
            try:
                remove(self._place, self._name)
            except OSError as error:
                note_left_over(error)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def keep_descriptor(self) -> int:
        """Hand the descriptor over to the caller."""
        fd, self.fd = self.fd, -1
        return fd

    def _give_name(self) -> bytes:
        """Give it a name in the workdir, not in its place: other drafts may have had that take the flags of another
        directory while this one was filled, and what hands on another project takes no link to it."""
        work_fd, name = work_fd_of(self._state), self._state.draft_name()
        access.link_descriptor(self.fd, work_fd, name)
        self._place, self._name = work_fd, name
        return name

    def publish(self, dir_fd: int, name: bytes) -> None:
        """Give it its name; EEXIST where that is taken, by a whiteout too."""
        if self._name is None:
            access.link_descriptor(self.fd, dir_fd, name)
        else:
            access.rename(self._place, self._name, dir_fd, name, syscalls.RENAME_NOREPLACE)
            self._name = None

    def replace(self, dir_fd: int, name: bytes) -> None:
        """Give it the name of an existing file in one step; what had it is removed.

        A directory changes places with the file, which is then removed from the workdir.
        """
        own_name = self._name or self._give_name()
        if self.is_directory:
            access.rename(self._place, own_name, dir_fd, name, syscalls.RENAME_EXCHANGE)
        else:
            access.rename(self._place, own_name, dir_fd, name)
            self._name = None


def draft_file(state: State, place: int = -1, bits: int = 0o600, named: bool = False) -> Draft:
    """An empty regular file, open for reading and writing. Every draft is made in the workdir itself where no other
    place is given. One that is going to replace something is made `named`, as it needs a name before."""
    where = work_fd_of(state) if place < 0 else place
    if state.tmpfiles_work and not named:
        return Draft(state, state.descriptors.open_at(where, b".", _UNNAMED, bits), None, where)
    name = state.draft_name()
    return Draft(state, state.descriptors.open_at(where, name, _EXCLUSIVE, bits), name, where)


class Maker:
    """Makes anything but a regular file, as often as asked, under a name in a directory."""

    def __init__(self, kind: int, rdev: int, target: bytes) -> None:
        self.kind = kind
        self._rdev = rdev
        self._target = target

    def make(self, dir_fd: int, name: bytes, bits: int) -> None:
        """With permission bits, which a symlink has none of."""
        if self.kind == _DIRECTORY:
            os.mkdir(name, bits, dir_fd=dir_fd)
        elif self.kind == _LINK:
            os.symlink(self._target, name, dir_fd=dir_fd)
        else:
            os.mknod(name, self.kind | bits, self._rdev, dir_fd=dir_fd)


def maker(kind: int, rdev: int = 0, target: bytes = b"") -> Maker:
    return Maker(kind, rdev, target)


def draft_directory(state: State, place: int = -1) -> Draft:
    where = work_fd_of(state) if place < 0 else place
    return draft_node(state, Maker(_DIRECTORY, 0, b""), where, 0o700)


def draft_node(state: State, make: Maker, place: int, bits: int = 0o600) -> Draft:
    """Anything but a regular file."""
    name = state.draft_name()
    make.make(place, name, bits)
    try:
        fd = state.descriptors.open_at(place, name, syscalls.OPEN_NODE)
    except BaseException:
        remove(place, name)
        raise
    return Draft(state, fd, name, place, make.kind == _DIRECTORY)


def work_fd_of(state: State) -> int:
    if state.work_fd is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    return state.work_fd


def removed_from_work(work_fd: int, name: bytes) -> bool:
    """Remove what has been replaced; False, logged, where that must wait for the next mount.

    Tried twice, as a hard link that stays is counted.
    """
    for _ in range(2):
        try:
            remove(work_fd, name)
        except OSError as error:
            log.warning("left over after a change: %s", error)
        else:
            return True
    return False


def remove(dir_fd: int, name: bytes) -> None:
    """Remove whatever `name` is, with all below it, without following a symlink; absent is well."""
    try:
        access.unlink(dir_fd, name)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    remove_directory(dir_fd, name)


def remove_directory(dir_fd: int, name: bytes) -> None:
    """Remove a directory with all below it; deep trees do not use up the stack, nor more than a few descriptors."""
    try:
        access.rmdir(dir_fd, name)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    fd = access.open_at(dir_fd, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        remove_content(fd)
    finally:
        os.close(fd)
    access.rmdir(dir_fd, name)


def remove_content(fd: int) -> None:
    """Remove everything in the directory: what is nested is first moved up, so that nothing grows with the depth."""
    serial = 0
    while True:
        entries = [os.fsencode(name) for name in os.listdir(fd)]
        if not entries:
            return
        for name in entries:
            try:
                access.unlink(fd, name)
            except OSError as error:
                if error.errno not in (errno.EISDIR, errno.EPERM):
                    raise
                serial = _flatten(fd, name, serial)


def _flatten(fd: int, name: bytes, serial: int) -> int:
    """Move the directories in `name` up beside it, remove its files and itself."""
    below = access.open_at(fd, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for entry in map(os.fsencode, os.listdir(below)):
            try:
                access.unlink(below, entry)
            except OSError as error:
                if error.errno not in (errno.EISDIR, errno.EPERM):
                    raise
                serial = _move_up(below, entry, fd, serial)
    finally:
        os.close(below)
    access.rmdir(fd, name)
    return serial


def _move_up(below: int, entry: bytes, fd: int, serial: int) -> int:
    """Names that are taken are passed over: a removal that was cut off has left some."""
    while True:
        serial += 1
        try:
            access.rename(below, entry, fd, b"#moved-%x" % serial, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            continue
        return serial


# -- fsync=strict


def note_changed(state: State, directory: Directory) -> None:
    """The operation changed an upper directory and is to sync it before it ends."""
    if state.options.fsync is _STRICT and directory not in state.unsynced:
        directory.nlookup += 1
        state.unsynced.append(directory)


def sync_changed(state: State) -> None:
    """The last step of an operation: whatever this gives, the upper and what is known of it agree."""
    failure: OSError | None = None
    while state.unsynced:
        directory = state.unsynced.pop()
        try:
            if directory is state.root or directory.parent is not None:
                sync_directory(state, state.upper_fd(directory))
        except OSError as error:
            failure = error
        directory.nlookup -= 1
        state.drop_if_unused(directory)
    if failure is not None:
        raise failure


def sync_directory(state: State, fd: int) -> None:
    """fsync(2) of a directory that is only held by O_PATH."""
    readable = state.descriptors.reopen(fd, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(readable)
    finally:
        os.close(readable)


# -- owner and mode


def written_owner(state: State, fd: int, owner: Owner) -> Owner:
    """Owner and mode that a new file gets on disk: with an override xattr, which this writes, we own it ourselves."""
    assert state.upper is not None
    ids, kind = state.ownership, owner.mode & _FORMAT
    if state.upper.override is None:
        return owner
    if kind not in (_REGULAR, _DIRECTORY):  # it can hold none: see ownership.bare_owner
        return owner if ids.own_uid == 0 else Owner(ids.own_uid, ids.own_gid, owner.mode, owner.rdev)
    access.setxattr(fd, state.upper.override, format_override(owner))
    mode = 0o755 if kind == _DIRECTORY else 0o600 | owner.mode & 0o111
    return Owner(ids.own_uid, ids.own_gid, kind | mode, 0)


def fill(state: State, draft: Draft, uid: int, gid: int, mode: int, acls: tuple[tuple[bytes, bytes], ...]) -> Stat:
    """Owner, permission bits and ACLs of something new, whose ids are those on disk; what stat says of it then."""
    assert state.upper is not None
    fd = draft.fd
    if state.upper.override is not None:
        uid, gid, mode, _ = written_owner(state, fd, Owner(uid, gid, mode, 0))
    if uid != state.ownership.own_uid or gid != state.ownership.own_gid:
        set_owner(fd, uid, gid)
    st = stat_of(fd)
    is_done = mode & _FORMAT == _LINK or (st.st_mode ^ mode) & _PERMISSIONS == 0
    if is_done and not acls:
        return st
    if not is_done:  # after the owner, as chown clears some bits
        set_mode(fd, mode & _PERMISSIONS)
    for name, value in acls:
        access.setxattr(fd, name, value)
    return stat_of(fd)
