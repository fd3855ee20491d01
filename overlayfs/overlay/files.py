# cython: language_level=3, annotation_typing=False
"""How is a file opened, and how is its written data made durable?

I/O is by inode, not by open file: who opened a file before it was copied up reads what is written later. Reading and
writing themselves: fileio. Compiled; C types are in files.pxd.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from ..tree import syscalls
from . import changing, copyup, protection
from .descriptors import OpenFile, unpooled
from .fileio import pooled, read, read_into, write
from .inodes import Directory, Inode
from .options import FsyncPolicy
from .state import State
from .values import AttributeChanges, Caller

__all__ = [
    "allocate",
    "descriptor_to_sync",
    "fetch",
    "fsync",
    "is_name_synced",
    "note_created",
    "note_sync",
    "note_written_unseen",
    "open_file",
    "open_to_sync",
    "pass_through",
    "pooled",
    "read",
    "read_into",
    "release",
    "seek",
    "write",
]

_NOBODY = Caller(0, 0)
_MUCH = 128 * 1024  # bytes of one read: somebody reads the whole file
_REQUESTS_AHEAD = 3


def open_file(state: State, inode: Inode, flags: int) -> None:
    """Count an open. Copies nothing up: that waits for the first change, and O_TRUNC needs no data at all."""
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    if inode.is_directory and writes:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if writes and state.work_fd is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    protection.refuse_open(state, inode, flags)
    if flags & os.O_TRUNC and inode.kind == stat.S_IFREG:
        changing.change(state, inode, AttributeChanges(size=0), _NOBODY)
    inode.opens += 1


def note_created(state: State, inode: Inode) -> None:
    """The file was just made and is open. Its descriptor stays until it is released: it may not be openable again."""
    inode.opens += 1
    opened = state.descriptors.file(inode.number)
    if opened is not None and state.ownership.own_uid != 0:
        opened.pins += 1
        state.created[inode.number] = opened


def release(state: State, inode: Inode) -> None:
    inode.opens = max(inode.opens - 1, 0)
    if not inode.opens:
        created = state.created.pop(inode.number, None)
        if created is not None:
            created.unpin()
        state.drop_if_unused(inode)


def fetch(state: State, inode: Inode, offset: int, size: int) -> None:
    """Start reading the data that `read_into` did not find in memory, without waiting for it; looking up its extents
    may wait.

    Who reads so much at once goes on, faster than the filesystem reads ahead of us: it begins a few requests more.
    """
    opened = pooled(state, inode, writable=False)
    ahead = _REQUESTS_AHEAD if size >= _MUCH else 0
    with suppress(OSError, OverflowError):  # what cannot be fetched is read all the same
        for start in range(offset, offset + (1 + ahead) * size, size or 1):  # each is cut to what a disk takes at once
            os.posix_fadvise(opened.fd, start, size, os.POSIX_FADV_WILLNEED)


def pass_through(state: State, inode: Inode) -> OpenFile | None:
    """The descriptor of a file that may be read and written without us from now on; None where it may not.

    It must be in the upper for good: a file that is still to be copied up would be another one then. And it may not be
    protected: each write must be seen.
    """
    if (
        not inode.upper
        or protection.flags_of(state, inode)
        or inode.metacopy
        or inode.kind != stat.S_IFREG
        or state.work_fd is None
    ):
        return None
    opened = pooled(state, inode, writable=True)
    state.passed_through.add(inode.number)
    inode.attributes = None
    return opened


def note_written_unseen(state: State, inode: Inode) -> None:
    """The file is passed through to who may write it. From now on nothing that is known of its attributes holds: a
    mapping may change them when the file is closed already."""
    state.written_unseen.add(inode.number)
    inode.attributes = inode.xattr_names = None


def allocate(state: State, inode: Inode, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Copies up."""
    protection.refuse_allocation(state, inode, mode)
    copyup.ensure_upper(state, inode)
    opened = pooled(state, inode, writable=True)
    inode.note_lost_privileges()
    syscalls.allocate(opened.fd, mode, offset, length)


def seek(state: State, inode: Inode, offset: int, whence: int) -> int:
    """Where the next data or hole is: lseek(2) with SEEK_DATA or SEEK_HOLE."""
    return os.lseek(pooled(state, inode, writable=False).fd, offset, whence)


def descriptor_to_sync(state: State, inode: Inode) -> OpenFile | None:
    """The descriptor that an fsync must go to, to be pinned; None where nothing can be dirty.

    Raises the error of an earlier fsync that failed: the kernel reports it once and then calls the pages clean, but
    what was lost stays lost.
    """
    _refuse_if_failed(state, inode)
    if not inode.upper or inode.kind != stat.S_IFREG or state.options.fsync is FsyncPolicy.VOLATILE:
        return None
    return _open_metacopy(state, inode) if inode.metacopy else pooled(state, inode, writable=False)


def _open_metacopy(state: State, inode: Inode) -> OpenFile:
    """The upper file itself, whose data nobody reads; closed when it is unpinned."""
    with state.upper_node(inode) as node:
        return unpooled(state.descriptors.reopen(node, os.O_RDONLY))


def is_name_synced(state: State, inode: Inode) -> bool:
    """True where fdatasync makes a file durable; False where its name may be news to the disk."""
    return inode.number in state.synced_names


def note_sync(state: State, inode: Inode, opened: OpenFile, failure: OSError | None) -> None:
    """How an fsync of the file ended. One of a file that was replaced meanwhile says nothing of the name it has now.

    Raises the error of another fsync that failed meanwhile: the kernel told of the loss there, and not here.
    """
    if failure is not None:
        state.sync_errors[inode.number] = failure.errno or errno.EIO
        return
    _refuse_if_failed(state, inode)
    if not opened.stale:
        state.synced_names.add(inode.number)


def _refuse_if_failed(state: State, inode: Inode) -> None:
    failed = state.sync_errors.get(inode.number)
    if failed is not None:
        raise OSError(failed, os.strerror(failed))


def fsync(state: State, inode: Inode, datasync: bool) -> None:
    opened = descriptor_to_sync(state, inode)
    if opened is None:
        return
    opened.pins += 1
    try:
        (os.fdatasync if datasync and is_name_synced(state, inode) else os.fsync)(opened.fd)
    except OSError as error:
        note_sync(state, inode, opened, error)
        raise
    finally:
        opened.unpin()
    note_sync(state, inode, opened, None)


def open_to_sync(state: State, directory: Directory) -> int | None:
    """A descriptor of a directory that fsync(2) takes, for the caller to close; None where nothing can be dirty."""
    if not directory.upper or state.options.fsync is FsyncPolicy.VOLATILE:
        return None
    fd = state.upper_fd(directory)
    return state.descriptors.reopen(fd, os.O_RDONLY | os.O_DIRECTORY)
