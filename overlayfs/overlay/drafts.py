"""How does something new come into the upper, whole or not at all?

A `Draft` is built in the workdir, where nobody sees it, and published by one rename or link. A draft that is not
published leaves nothing behind; after a crash, what is left in the workdir goes at the next mount.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from overlayfs._log import Log
from overlayfs._typing import Final, Self

from ..tree import access, metadata, syscalls
from ..tree.syscalls import stat_of
from .inodes import Directory
from .options import FsyncPolicy
from .ownership import Owner, format_override
from .state import State

log = Log(__name__)


def is_draft_name(name: bytes) -> bool:
    """True for what a crash may leave in a workdir: names of State.draft_name, and the kernel's (fs/overlayfs/dir.c,
    ovl_tempname)."""
    return name[:1] == b"#" and len(name) > 1 and not name[1:].strip(b"0123456789abcdef")


class _Afterwards:
    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> bool:
        if not isinstance(error, OSError):
            return False
        log.warning("left over after a change: %s", error)
        return True


_AFTERWARDS: Final = _Afterwards()


def afterwards() -> _Afterwards:
    """A block for a step after the one that published: what is done is done, so a failure is logged and not raised.

    Leftovers in the workdir are cleaned at the next mount.
    """
    return _AFTERWARDS


@contextmanager
def unseen(dir_fd: int) -> Iterator[None]:
    """A change in an upper directory that the merged tree does not show: the directory's times stay."""
    before = stat_of(dir_fd)
    yield
    with afterwards():
        syscalls.set_times(dir_fd, before.st_atime_ns, before.st_mtime_ns)


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

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._name is not None:
            with afterwards():
                remove(self._place, self._name)
        if self.fd >= 0:
            os.close(self.fd)

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


def draft_file(state: State, place: int | None = None) -> Draft:
    """An empty regular file, open for reading and writing, mode 0600. Every draft is made in the workdir itself where
    no other place is given."""
    where = work_fd_of(state) if place is None else place
    if state.tmpfiles_work:
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        return Draft(state, state.descriptors.open(lambda: os.open(b".", flags, 0o600, dir_fd=where)), None, where)
    name = state.draft_name()
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    return Draft(state, state.descriptors.open(lambda: os.open(name, flags, 0o600, dir_fd=where)), name, where)


# Makes something under a name in a directory, with permission bits.
Maker = Callable[[int, bytes, int], None]


def maker(kind: int, rdev: int = 0, target: bytes = b"") -> Maker:
    """Of anything but a regular file."""
    if kind == stat.S_IFDIR:
        return lambda dir_fd, name, bits: os.mkdir(name, bits, dir_fd=dir_fd)
    if kind == stat.S_IFLNK:
        return lambda dir_fd, name, _bits: os.symlink(target, name, dir_fd=dir_fd)
    return lambda dir_fd, name, bits: os.mknod(name, kind | bits, rdev, dir_fd=dir_fd)


def draft_directory(state: State, place: int | None = None) -> Draft:
    where = work_fd_of(state) if place is None else place
    return draft_node(state, maker(stat.S_IFDIR), where, is_directory=True)


def draft_node(state: State, make: Maker, place: int, is_directory: bool = False) -> Draft:
    """Anything but a regular file."""
    name = state.draft_name()
    make(place, name, 0o700 if is_directory else 0o600)
    try:
        fd = state.descriptors.open(lambda: os.open(name, syscalls.OPEN_NODE, dir_fd=place))
    except BaseException:
        remove(place, name)
        raise
    return Draft(state, fd, name, place, is_directory)


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
        _empty(fd)
    finally:
        os.close(fd)
    access.rmdir(dir_fd, name)


def _empty(fd: int) -> None:
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
                serial += 1
                access.rename(below, entry, fd, b"#moved-%x-%x" % (below, serial))
    finally:
        os.close(below)
    access.rmdir(fd, name)
    return serial


# -- fsync=strict


def note_changed(state: State, directory: Directory) -> None:
    """The operation changed an upper directory and is to sync it before it ends."""
    if state.options.fsync is FsyncPolicy.STRICT and directory not in state.unsynced:
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
    readable = state.descriptors.open(lambda: access.reopen(fd, os.O_RDONLY | os.O_DIRECTORY))
    try:
        os.fsync(readable)
    finally:
        os.close(readable)


# -- owner and mode


def written_owner(state: State, fd: int, owner: Owner) -> Owner:
    """Owner and mode that a new file gets on disk: with an override xattr, which this writes, we own it ourselves."""
    assert state.upper is not None
    kind = stat.S_IFMT(owner.mode)
    if state.upper.override is None:
        return owner
    if kind not in (stat.S_IFREG, stat.S_IFDIR):  # it can hold none: see ownership.bare_owner
        return owner if os.geteuid() == 0 else Owner(os.geteuid(), os.getegid(), owner.mode, owner.rdev)
    access.setxattr(fd, state.upper.override, format_override(owner))
    mode = 0o755 if kind == stat.S_IFDIR else 0o600 | owner.mode & 0o111
    return Owner(os.geteuid(), os.getegid(), kind | mode, 0)


def fill(state: State, draft: Draft, owner: Owner, acls: tuple[tuple[bytes, bytes], ...]) -> None:
    """Owner, permission bits and ACLs of something new; the ids are those on disk."""
    owner = written_owner(state, draft.fd, owner)
    metadata.set_owner(draft.fd, owner.uid, owner.gid)
    metadata.set_mode(draft.fd, owner.mode)
    for name, value in acls:
        access.setxattr(draft.fd, name, value)
