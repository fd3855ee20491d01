"""How does the lane answer requests that are less frequent, or may block?

The engine answers at once; a request that waits for a disk becomes a task. Each method `_<opcode>` takes the node, the
message after its header and who sent it, and returns the body of the reply; None where that comes later, or never.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from overlayfs._typing import Final

from ..overlay.copyup import Need
from ..overlay.engine import Overlay
from ..overlay.values import AttributeChanges, Attributes, decode_device
from ..tree.fileflags import FLAG_COMMANDS
from ..tree.metadata import ACCESS_ACL
from . import abi
from .callers import caller, caller_with_groups
from .channel import Channel
from .control import Control
from .copying import INLINE_BYTES, CopyUps
from .lane import Forwarded, Lane
from .passthrough import Passthrough
from .patience import FIRST_NS, Patience
from .setattr import SET_IDS, Asker, takes_privileges, unprivileged
from .status import Status
from .syncing import Sync, Syncs, sync_of_directory, sync_of_file
from .tasks import Tasks, in_thread

_DONE: Final = b""
_FOR_EVER_S: Final = 10 * 365 * 86400
_FLEETING: Final = abi.ATTR_TIMES.pack(0, 0, 0)
_LONGEST_COPY: Final = 64 << 20  # bytes; a copy_file_range(2) may do less than it was asked


class FastLane(Lane):
    """One mount's lane."""

    def __init__(
        self,
        overlay: Overlay,
        copy_ups: CopyUps,
        syncs: Syncs,
        tasks: Tasks,
        channel: Channel,
        *,
        poll_us: int,
        status: Status,
        control: Control,
        passes_through: bool,
    ) -> None:
        timeout_s = overlay.options.timeout_s
        super().__init__(overlay, copy_ups, tasks, channel, poll_us, timeout_s)
        self._syncs = syncs
        self._status, self._control = status, control
        control.tasks = lambda: self.tasks_pending
        self._set_timeouts(_FOR_EVER_S if timeout_s is None else timeout_s)
        # Where every open would succeed the kernel need not ask: I/O is by inode. An ordinary user's daemon may not
        # open everything, and must keep what it created open. What the kernel writes back does not say how the file
        # was opened, so there immutable and append-only files are refused at their open, and else at the write.
        self.counts_opens = timeout_s == 0 or os.geteuid() != 0 or passes_through or overlay.options.writeback
        self._passthrough = Passthrough(
            overlay, channel.device_fd if passes_through else None, channel.forget_attributes
        )
        self._counts_opendirs = timeout_s == 0
        self._patience = Patience(first_ns=FIRST_NS) if poll_us else Patience(0)

    def _set_timeouts(self, seconds: float) -> None:
        whole, rest = int(seconds), int(seconds % 1 * 1e9)
        self._entry_times = abi.ENTRY_TIMES.pack(0, whole, whole, rest, rest)
        self._attr_times = abi.ATTR_TIMES.pack(whole, rest, 0)
        # of a file that is written unseen the name stays true, but not the attributes
        self._unseen_entry_times = abi.ENTRY_TIMES.pack(0, whole, 0, rest, 0)
        self._open_flags = abi.FOPEN_KEEP_CACHE | abi.FOPEN_NOFLUSH if seconds else abi.FOPEN_NOFLUSH

    def rest(self) -> None:
        super().rest()
        self._control.remove_waste()

    # -- inodes

    def _entry(self, found: Attributes) -> bytes:
        times = self._unseen_entry_times if found.ino in self._unseen else self._entry_times
        return abi.NODE.pack(found.ino) + times + found.packed

    def _attr(self, node: int, found: Attributes) -> bytes:
        return (_FLEETING if node in self._unseen else self._attr_times) + found.packed

    def _interrupt(self, _node: int, _body: memoryview, _: Asker) -> None:
        """INTERRUPT is ignored: the lane replies at once, and pyfuse3 has no way to interrupt."""

    def _setattr_after_copy_up(
        self, node: int, changes: AttributeChanges, need: Need, valid: int, asker: Asker
    ) -> None:
        def change() -> bytes:
            return self._attr(node, self._change_attributes(node, changes, valid, asker))

        self._change_later(node, change, need, changes.size)

    def _without_privileges(
        self, changes: AttributeChanges, before: Attributes, valid: int, asker: Asker
    ) -> AttributeChanges:
        """The changes, plus clearing setuid and setgid if the file has one of them."""
        if takes_privileges(valid, asker, before):
            return changes.with_mode(unprivileged(before, asker), changes.is_nothing)
        return changes

    def _drop_privileges(self, node: int, asker: Asker) -> None:
        """Before the content of a file changes."""
        before = self._overlay.getattr(node)
        if before.mode & SET_IDS:
            lost = AttributeChanges(mode=unprivileged(before, asker), by_writing=True)
            self._overlay.setattr(node, lost, caller(*asker))

    def _statx(self, node: int, _body: memoryview, _: Asker) -> bytes:
        found, birth = self._overlay.getattr(node), self._overlay.birth_time(node)
        valid, rest, _dummy = abi.ATTR_TIMES.unpack_from(self._attr(node, found))
        times = [
            part
            for when in (found.atime_ns, birth or 0, found.ctime_ns, found.mtime_ns)
            for part in divmod(when, 1_000_000_000)
        ]
        mask = abi.STATX_BASIC_STATS | (abi.STATX_BTIME if birth is not None else 0)
        return abi.STATX_OUT.pack(
            valid, rest, 0, mask, found.blksize, 0, found.nlink, found.uid, found.gid, found.mode, found.ino,
            found.size, found.blocks, 0, *times, os.major(found.rdev), os.minor(found.rdev), 0, 0,
        )  # fmt: skip

    def _readlink(self, node: int, _body: memoryview, _: Asker) -> bytes:
        return self._overlay.readlink(node)

    def _statfs(self, _node: int, _body: memoryview, _: Asker) -> bytes:
        f = self._overlay.statfs()
        return abi.STATFS_OUT.pack(
            f.f_blocks, f.f_bfree, f.f_bavail, f.f_files, f.f_ffree, f.f_bsize, f.f_namemax, f.f_frsize, 0
        )

    # -- names

    def _mknod(self, node: int, body: memoryview, asker: Asker) -> bytes:
        mode, rdev, umask, _ = abi.MKNOD_IN.unpack_from(body)
        (name,) = abi.names(body[abi.MKNOD_IN.size :], 1)
        return self._entry(self._overlay.mknod(node, name, mode, decode_device(rdev), caller(*asker, umask)))

    def _link(self, node: int, body: memoryview, _: Asker) -> bytes:
        (old,) = abi.LINK_IN.unpack_from(body)
        (name,) = abi.names(body[abi.LINK_IN.size :], 1)
        if self._copy_ups.must_wait(old, Need.DATA):
            raise Forwarded
        return self._entry(self._overlay.link(old, node, name))

    def _rename(self, node: int, body: memoryview, _: Asker) -> bytes:
        (new,) = abi.RENAME_IN.unpack_from(body)
        return self._move(node, new, body[abi.RENAME_IN.size :], 0)

    def _rename2(self, node: int, body: memoryview, _: Asker) -> bytes:
        new, flags, _padding = abi.RENAME2_IN.unpack_from(body)
        return self._move(node, new, body[abi.RENAME2_IN.size :], flags)

    def _move(self, node: int, new: int, rest: memoryview, flags: int) -> bytes:
        old_name, new_name = abi.names(rest, 2)
        for inode in self._overlay.moved_by_rename(node, old_name, new, new_name, flags):
            # A directory may have to be copied up with all that is in it.
            if self._overlay.is_directory(inode) or self._copy_ups.must_wait(inode, Need.METADATA):
                raise Forwarded
        self._overlay.rename(node, old_name, new, new_name, flags)
        return _DONE

    # -- files

    def _open(self, node: int, body: memoryview, _: Asker) -> bytes:
        if not self.counts_opens:
            raise OSError(errno.ENOSYS, "not asked again")
        flags, _open_flags = abi.OPEN_IN.unpack_from(body)
        self._overlay.open_file(node, flags)
        return self._open_reply(node, flags)

    def _open_reply(self, node: int, flags: int) -> bytes:
        backing = self._passthrough.opened(node, writable=flags & os.O_ACCMODE != os.O_RDONLY)
        flags = abi.FOPEN_PASSTHROUGH | abi.FOPEN_NOFLUSH if backing else self._open_flags
        return abi.OPEN_OUT.pack(node, flags, backing)

    def _tmpfile(self, node: int, body: memoryview, asker: Asker) -> bytes:
        flags, mode, umask, _open_flags = abi.CREATE_IN.unpack_from(body)
        found = self._overlay.tmpfile(node, mode, flags, caller(*asker, umask))
        opened = self._open_created(found.ino, flags)
        return self._entry(found) + opened

    def _open_created(self, node: int, flags: int) -> bytes:
        if self.counts_opens:
            return self._open_reply(node, flags)
        self._overlay.release(node)  # no RELEASE will come
        return abi.OPEN_OUT.pack(node, self._open_flags, 0)

    def _flush(self, _node: int, _body: memoryview, _: Asker) -> bytes:
        raise OSError(errno.ENOSYS, "nothing is held back")

    def _release(self, node: int, _body: memoryview, _: Asker) -> bytes:
        self._passthrough.closed(node)
        self._overlay.release(node)
        return _DONE

    def _read_late(self, node: int, offset: int, room: memoryview) -> int | None:
        """Read data that is not in the page cache: wait briefly for a fast disk, else a task answers."""
        if self._patience.is_left():
            self._overlay.fetch(node, offset, len(room))
            count = self._patience.wait(lambda: self._overlay.read_into(node, offset, room))
            if count is not None:
                return count
        size = len(room)
        self._later(lambda: self._read_from_disk(node, offset, size))
        return None

    async def _read_from_disk(self, node: int, offset: int, size: int) -> bytes:
        opened = self._overlay.pin_data(node)
        try:
            return await in_thread(os.pread, opened.fd, size, offset)
        finally:
            opened.unpin()

    def _write_after(self, node: int, offset: int, data: memoryview, write_flags: int, asker: Asker) -> bytes | None:
        """A write that needs a copy-up or a privilege change first."""
        if not self._copy_ups.must_wait(node, Need.DATA):
            return self._write_now(node, offset, data, write_flags, asker)
        kept = bytes(data)  # the buffer is another request's by then
        self._change_later(node, lambda: self._write_now(node, offset, kept, write_flags, asker), Need.DATA)
        return None

    def _drop_pages(self, node: int) -> None:
        """Drop the pages that a mapping changed in an immutable or append-only file, so nobody reads them.

        In a thread, as the kernel may ask for the pages meanwhile.
        """

        async def drop() -> None:
            with suppress(OSError):  # the kernel has forgotten the file
                await in_thread(os.write, self._channel.device_fd, abi.invalidation(node))

        self._tasks.begin(drop, lambda: None)

    def _write_now(self, node: int, offset: int, data: memoryview | bytes, write_flags: int, asker: Asker) -> bytes:
        if write_flags & abi.FUSE_WRITE_KILL_SUIDGID:
            self._drop_privileges(node, asker)
        return abi.WRITE_OUT.pack(self._overlay.write(node, offset, data), 0)

    def _after_copy_up(self, node: int, change: Callable[[], bytes], need: Need = Need.DATA) -> bytes | None:
        """Change a file at once, or later if the file must first be copied up."""
        if not self._copy_ups.must_wait(node, need):
            return change()
        self._change_later(node, change, need)
        return None

    def _change_later(self, node: int, change: Callable[[], bytes], need: Need, size: int | None = None) -> None:
        """Change a file that must first be copied up, in a task if the copy-up needs one."""
        if not self._tasks.has_loop and self._is_begun(node, change, need, size):
            return

        async def work() -> bytes:
            await self._copy_ups.finish(node, need, size)
            return change()

        self._later(work)

    def _is_begun(self, node: int, change: Callable[[], bytes], need: Need, size: int | None) -> bool:
        """Copy a file up without a task, and then change it; False where that cannot be."""
        unique = self.unique

        def done(failure: Exception | None) -> None:
            self.pending -= 1
            try:
                if failure is not None:
                    raise failure
                reply = change()
            except Exception as found:  # noqa: BLE001 - whoever waits is answered
                self._refuse(unique, found)
            else:
                self._channel.answer(unique, reply)

        self.pending += 1
        begun = self._copy_ups.begin(node, need, size, done)
        if not begun:
            self.pending -= 1
        return begun

    def _fallocate(self, node: int, body: memoryview, _: Asker) -> bytes | None:
        _fh, offset, length, mode, _padding = abi.FALLOCATE_IN.unpack_from(body)

        def allocate() -> bytes:
            self._overlay.allocate(node, mode, offset, length)
            return _DONE

        return self._after_copy_up(node, allocate)

    def _lseek(self, node: int, body: memoryview, _: Asker) -> bytes:
        _fh, offset, whence, _padding = abi.LSEEK_IN.unpack_from(body)
        return abi.LSEEK_OUT.pack(self._overlay.seek(node, offset, whence))

    def _copy_file_range(self, node: int, body: memoryview, _: Asker) -> bytes | None:
        return self._copy_range(node, body, lambda copied: abi.WRITE_OUT.pack(copied, 0))

    def _copy_file_range_64(self, node: int, body: memoryview, _: Asker) -> bytes | None:
        return self._copy_range(node, body, abi.COPY_FILE_RANGE_OUT.pack)

    def _copy_range(self, node: int, body: memoryview, reply: Callable[[int], bytes]) -> bytes | None:
        _fh, offset, target, _target_fh, target_offset, length, _flags = abi.COPY_FILE_RANGE_IN.unpack_from(body)

        self._overlay.refuse_write(target, None, opened_unasked=True)
        copied = min(length, _LONGEST_COPY)
        if copied <= INLINE_BYTES and self._overlay.writes_at_once and not self._copy_ups.must_wait(target, Need.DATA):
            with self._copying(node, target) as (source_fd, target_fd):
                return reply(os.copy_file_range(source_fd, target_fd, copied, offset, target_offset))

        async def work() -> bytes:
            await self._copy_ups.finish(target, Need.DATA)
            with self._copying(node, target) as (source_fd, target_fd):
                count = await in_thread(os.copy_file_range, source_fd, target_fd, copied, offset, target_offset)
            return reply(count)

        self._later(work)
        return None

    @contextmanager
    def _copying(self, source: int, target: int) -> Iterator[tuple[int, int]]:
        """Descriptors to copy from one file to another, which is in the upper by then."""
        with ExitStack() as stack:
            written = self._overlay.pin_to_change(target)
            stack.callback(written.unpin)
            stack.callback(self._overlay.note_changed, target)
            read = self._overlay.pin_data(source)
            stack.callback(read.unpin)
            yield read.fd, written.fd

    def _ioctl(self, node: int, body: memoryview, _: Asker) -> bytes | None:
        _fh, _flags, command, _argument, in_size, out_size = abi.IOCTL_IN.unpack_from(body)
        if command not in FLAG_COMMANDS:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        if len(body) < abi.IOCTL_IN.size + in_size:
            raise OSError(errno.EIO, "a message ends early")
        argument = bytes(body[abi.IOCTL_IN.size : abi.IOCTL_IN.size + in_size]) or bytes(FLAG_COMMANDS[command])

        def run() -> bytes:
            found = self._overlay.file_flags(node, command, argument)
            if in_size:  # the change moved the ctime
                self._channel.forget_attributes(node)
            return abi.IOCTL_OUT.pack(0, 0, 0, 0) + found[:out_size]

        return self._after_copy_up(node, run) if in_size else run()

    def _syncfs(self, _node: int, _body: memoryview, _: Asker) -> None:
        async def work() -> bytes:
            await in_thread(self._overlay.sync_filesystem)
            return _DONE

        self._later(work)

    def _fsync(self, node: int, body: memoryview, _: Asker) -> bytes | None:
        _fh, flags, _padding = abi.FSYNC_IN.unpack_from(body)
        datasync = bool(flags & abi.FUSE_FSYNC_FDATASYNC)
        if not self._overlay.writes_at_once:
            return self._sync(sync_of_file(self._overlay, node, datasync))
        self._overlay.fsync(node, datasync)
        return _DONE

    def _fsyncdir(self, node: int, _body: memoryview, _: Asker) -> bytes | None:
        if not self._overlay.writes_at_once:
            return self._sync(sync_of_directory(self._overlay, node))
        self._overlay.fsyncdir(node)
        return _DONE

    def _sync(self, sync: Sync | None) -> bytes | None:
        if sync is None:
            return _DONE
        unique = self.unique

        def done(failure: OSError | None) -> None:
            self.pending -= 1
            try:
                sync.note(failure)
            except Exception as found:  # noqa: BLE001 - whoever waits is answered
                self._refuse(unique, failure or found)
            else:
                if failure is None:
                    self._channel.answer(unique, _DONE)
                else:
                    self._refuse(unique, failure)

        self.pending += 1
        self._syncs.begin(sync.fd, sync.data_only, done)
        return None

    # -- directories

    def _opendir(self, node: int, _body: memoryview, _: Asker) -> bytes:
        if not self._counts_opendirs:
            raise OSError(errno.ENOSYS, "not asked again")
        return abi.OPEN_OUT.pack(self._overlay.opendir(node), 0, 0)

    def _releasedir(self, node: int, _body: memoryview, _: Asker) -> bytes:
        self._overlay.releasedir(node)
        return _DONE

    # -- extended attributes

    def _xattr(self, node: int, name: bytes, size: int) -> bytes | None:
        if self._status.has(node, name):
            return self._status.page(name, size)
        if self._control.is_question(node, name):
            return self._control.answer(name)
        return self._overlay.find_xattr(node, name)

    def _setxattr(self, node: int, body: memoryview, asker: Asker) -> bytes | None:
        size, flags = abi.SETXATTR_IN.unpack_from(body)
        name, _, value = bytes(body[abi.SETXATTR_IN.size :]).partition(b"\0")
        if len(value) < size:
            raise OSError(errno.EIO, "a message ends early")
        if self._status.has(node, name):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))  # nobody could read it back
        if self._control.is_command(node, name):
            uid, _gid, pid = asker
            self._control.run(name, value[:size], uid, pid)
            return _DONE

        def change() -> bytes:
            groups_count = name == ACCESS_ACL and bool(self._overlay.getattr(node).mode & stat.S_ISGID)
            asks = caller_with_groups(*asker) if groups_count else caller(*asker)
            self._overlay.setxattr(node, name, value[:size], flags, asks)
            return _DONE

        return self._after_copy_up(node, change, Need.METADATA)

    def _removexattr(self, node: int, body: memoryview, _: Asker) -> bytes | None:
        (name,) = abi.texts(body, 1)

        def change() -> bytes:
            self._overlay.removexattr(node, name)
            return _DONE

        return self._after_copy_up(node, change, Need.METADATA)
