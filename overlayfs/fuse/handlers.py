"""pyfuse3's operations over the engine: decode, one engine call, encode.

All handlers run on the trio thread that owns the engine; a handler is atomic between its awaits. Large copy-ups, fsync
and reads that would wait for a disk run in worker threads, while other requests are served; changes of a file wait for
its copy-up.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from ..overlay.copyup import Need
from ..overlay.engine import Overlay
from ..overlay.listing import Sink
from ..overlay.values import AttributeChanges, Attributes, Caller
from ..tree.metadata import ACCESS_ACL
from .callers import caller, caller_with_groups
from .control import Control
from .copying import CopyUps
from .status import Status
from .syncing import Syncs, sync_of_directory, sync_of_file

log = logging.getLogger(__name__)

_FOR_EVER_S: Final = 10 * 365 * 86400.0

_Method = TypeVar("_Method", bound=Callable[..., Awaitable[Any]])


def _answered(method: _Method) -> _Method:
    """Let every failure reach the caller as an errno: an unknown exception is logged, answered EIO, survived."""

    @functools.wraps(method)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return await method(*args, **kwargs)
        except OSError as error:
            log.debug("%s: %s", method.__name__, error)
            raise FUSEError(error.errno or errno.EIO) from None
        except FUSEError:
            raise
        except Exception:
            log.exception("%s failed", method.__name__)
            raise FUSEError(errno.EIO) from None

    return cast(_Method, wrapper)


class _ListingReply(Sink):
    """A reply to READDIRPLUS."""

    def __init__(self, token: ReaddirToken, describe: Callable[[Attributes], EntryAttributes]) -> None:
        super().__init__(takes=True)
        self._token = token
        self._describe = describe

    def put(self, name: bytes, offset: int, found: Attributes, can_be_taken: bool) -> bool:
        entry = self._describe(found)
        if not can_be_taken:  # let the kernel ask where it needs it
            entry.entry_timeout = entry.attr_timeout = 0
        return bool(pyfuse3.readdir_reply(self._token, name, entry, offset))


class Handlers(pyfuse3.Operations):
    """One mounted overlay. A file handle is the inode's number: I/O is by inode."""

    supports_dot_lookup = True
    enable_acl = True

    def __init__(self, overlay: Overlay, status: Status, control: Control, copy_ups: CopyUps, syncs: Syncs) -> None:
        super().__init__()
        self._overlay = overlay
        self._status, self._control = status, control
        self._copy_ups, self._syncs = copy_ups, syncs
        timeout_s = overlay.options.timeout_s
        self._timeout_s = _FOR_EVER_S if timeout_s is None else timeout_s
        self.enable_writeback_cache = overlay.options.writeback
        self.enable_acl = overlay.options.acl

    # -- inodes

    def _entry(self, found: Attributes) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = found.ino
        entry.entry_timeout = entry.attr_timeout = self._timeout_s
        entry.st_mode = found.mode
        entry.st_nlink = found.nlink
        entry.st_uid = found.uid
        entry.st_gid = found.gid
        entry.st_rdev = found.rdev
        entry.st_size = found.size
        entry.st_blocks = found.blocks
        entry.st_blksize = found.blksize
        entry.st_atime_ns = found.atime_ns
        entry.st_mtime_ns = found.mtime_ns
        entry.st_ctime_ns = found.ctime_ns
        return entry

    def _absent(self) -> EntryAttributes:
        """A negative entry, which the kernel may keep."""
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self._timeout_s
        return entry

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        found = self._overlay.find(parent_inode, name)
        return self._absent() if found is None else self._entry(found)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            try:
                self._overlay.forget(inode, count)
            except Exception:  # there is nobody to answer
                log.exception("forget failed")
        self._overlay.give_memory_back()

    @_answered
    async def getattr(self, inode: int, ctx: RequestContext | None = None) -> EntryAttributes:
        return self._entry(self._overlay.getattr(inode))

    @_answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        changes = AttributeChanges(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            # pyfuse3 does not tell the present from a time that was asked for, but the present is one for both
            by_writing=fields.update_atime and fields.update_mtime and attr.st_atime_ns == attr.st_mtime_ns,
        )
        await self._copy_ups.finish(inode, Need.METADATA if changes.size is None else Need.DATA, changes.size)
        groups_count = changes.mode is None and bool(self._overlay.getattr(inode).mode & stat.S_ISGID)
        return self._entry(self._overlay.setattr(inode, changes, _caller(ctx, with_groups=groups_count)))

    @_answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._overlay.readlink(inode)

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        found, answer = self._overlay.statfs(), StatvfsData()
        answer.f_bsize, answer.f_frsize = found.f_bsize, found.f_frsize
        answer.f_blocks, answer.f_bfree, answer.f_bavail = found.f_blocks, found.f_bfree, found.f_bavail
        answer.f_files, answer.f_ffree, answer.f_favail = found.f_files, found.f_ffree, found.f_favail
        answer.f_namemax = found.f_namemax
        return answer

    @_answered
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return True  # default_permissions: the kernel has checked

    # -- names

    @_answered
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._overlay.symlink(parent_inode, name, target, _caller(ctx)))

    @_answered
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        await self._copy_ups.finish(inode, Need.DATA)
        return self._entry(self._overlay.link(inode, new_parent_inode, new_name))

    @_answered
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._overlay.mknod(parent_inode, name, mode, rdev, _caller(ctx)))

    @_answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._overlay.mkdir(parent_inode, name, mode, _caller(ctx)))

    @_answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._overlay.unlink(parent_inode, name)

    @_answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._overlay.rmdir(parent_inode, name)

    @_answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self._control.under_way += 1
        try:
            for moved in self._overlay.moved_by_rename(parent_inode_old, name_old, parent_inode_new, name_new, flags):
                for inode, need in self._overlay.to_copy_before_rename(moved):
                    await self._copy_ups.finish(inode, need)
                    await trio.lowlevel.checkpoint()
            self._overlay.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)
        finally:
            self._control.under_way -= 1

    # -- files

    @_answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        self._overlay.open_file(inode, flags)
        return self._file_info(inode)

    def _file_info(self, inode: int) -> FileInfo:
        # Nobody but the mount changes files, so what the kernel has cached stays good over opens.
        return FileInfo(fh=inode, keep_cache=self._timeout_s > 0)

    @_answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        found = self._overlay.create(parent_inode, name, mode, flags, _caller(ctx))
        return self._file_info(found.ino), self._entry(found)

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        data = bytearray(size)
        count = self._overlay.read_into(fh, off, memoryview(data))
        if count is not None:
            return bytes(memoryview(data)[:count])
        opened = self._overlay.pin_data(fh)
        try:
            return await trio.to_thread.run_sync(os.pread, opened.fd, size, off)
        finally:
            opened.unpin()

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        await self._copy_ups.finish(fh, Need.DATA)
        return self._overlay.write(fh, off, buf)

    @_answered
    async def flush(self, fh: int) -> None:
        pass  # nothing is held back

    @_answered
    async def release(self, fh: int) -> None:
        self._overlay.release(fh)

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._syncs.wait(sync_of_file(self._overlay, fh, datasync))

    # -- directories

    @_answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self._overlay.opendir(inode)

    @_answered
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        self._overlay.fill(fh, start_id, _ListingReply(token, self._entry))

    @_answered
    async def releasedir(self, fh: int) -> None:
        self._overlay.releasedir(fh)

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._syncs.wait(sync_of_directory(self._overlay, fh))

    # -- extended attributes

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if self._status.has(inode, name):
            return self._status.page(name)
        if self._control.is_question(inode, name):
            return self._control.answer(name)
        return self._overlay.getxattr(inode, name)

    @_answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self._overlay.listxattr(inode, with_trusted=ctx.uid == 0)

    @_answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if self._status.has(inode, name):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))  # nobody could read it back
        if self._control.is_command(inode, name):
            self._control.run(name, value, ctx.uid, ctx.pid)
            return
        await self._copy_ups.finish(inode, Need.METADATA)
        self._overlay.setxattr(inode, name, value, 0, _caller(ctx, with_groups=name == ACCESS_ACL))

    @_answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._copy_ups.finish(inode, Need.METADATA)
        self._overlay.removexattr(inode, name)


def _caller(ctx: RequestContext, with_groups: bool = False) -> Caller:
    return (caller_with_groups if with_groups else caller)(ctx.uid, ctx.gid, ctx.pid, ctx.umask)
