# cython: language_level=3, annotation_typing=False
"""The overlay: one method for each filesystem operation.

Callers are adapters (the FUSE handlers) and tests. Files are named by inode number; every method that returns the
attributes of a name raises that inode's nlookup by one, which `forget` gives back. Errors are OSErrors with the errno
that the caller of the system call would see on ext4. Permissions are not checked here: the kernel does
(default_permissions). Not thread-safe: one thread owns an overlay; `CopyUp.transfer` and descriptors pinned for I/O
may be used from others. Compiled; C types are in engine.pxd.
"""

from __future__ import annotations

import errno
import gc
import os
import stat
from collections.abc import Callable, Iterator, Sequence, Set

from overlayfs._typing import Final, NamedTuple

from ..tree import syscalls
from . import (
    attributes,
    changing,
    copyup,
    copyup_tree,
    files,
    inheritance,
    listing,
    lookup,
    making,
    names,
    protection,
    xattrs,
)
from . import rename as renaming
from .claim import Claim
from .copyup import Need
from .copyup_file import CopyUp
from .descriptors import OpenFile
from .flags import file_flags
from .inodes import ROOT, Directory, Inode
from .listing import Sink
from .opening import open_state, refuse_mountpoint
from .options import FsyncPolicy, OverlayOptions, to_facts
from .readahead import ReadAhead
from .state import Changed, State
from .values import AttributeChanges, Attributes, Caller

_LEAST_ROOM: Final = 4 << 20
_MANY_INODES: Final = 2_000


class DirectoryEntry(NamedTuple):
    """One entry; `offset` resumes after it. `can_be_taken` is False for `.`, `..` and a name that is listed although
    looking it up is an error."""

    name: bytes
    offset: int
    attributes: Attributes
    can_be_taken: bool = True


class _Entries(Sink):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[DirectoryEntry] = []

    def put(self, name: bytes, offset: int, found: Attributes, can_be_taken: bool) -> bool:
        self.found.append(DirectoryEntry(name, offset, found, can_be_taken))
        return True


class Overlay:
    """One merged tree."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.options = state.options
        self.written_unseen: Set[int] = state.written_unseen  # inodes whose attributes are out of date once told
        self._forgotten = 0
        self._ahead = ReadAhead(state)
        self._changing = 0
        upper = state.upper
        # True where no change waits for a disk, and nothing need be synced.
        self.writes_at_once = (
            upper is None or self.options.fsync is FsyncPolicy.VOLATILE or syscalls.is_in_memory(upper.root_fd)
        )

    @classmethod
    def open(cls, options: OverlayOptions) -> Overlay:
        """Open, check and lock the layers; raises MountError with the one line for the user."""
        return cls(open_state(options))

    def refuse_mountpoint(self, mountpoint: bytes) -> None:
        """MountError where the tree cannot be mounted there; to be asked before it is."""
        refuse_mountpoint(self.state, mountpoint)

    @property
    def claim(self) -> Claim | None:
        """Who else may have upper and workdir; None for a tree that writes to nothing."""
        return self.state.claim

    def files_known_to_kernel(self) -> list[int]:
        """The files of which the kernel may hold data that is not written yet: of a lower one too, which is copied up
        when that data comes."""
        return [inode.number for inode in self.state.inodes.values() if inode.kind == stat.S_IFREG and inode.nlookup]

    @property
    def passes_through(self) -> bool:
        """True while the kernel may change the data of some file without us."""
        return bool(self.state.written_unseen)

    def give_up_upper(self) -> None:
        """Let others have upper and workdir; nothing may be changed after this."""
        inheritance.forget_place(self.state)  # while the workdir is ours
        if self.state.history is not None:
            self.state.history.stop()
        if self.state.claim is not None:
            self.state.claim.release()

    def close(self) -> None:
        """Give back all descriptors and locks."""
        self.give_up_upper()
        self.state.close()

    # -- snapshots

    def snapshot(self, name: str = "") -> str:
        """Take a snapshot; its name. Errors as of `snapshots.take`, and EINPROGRESS while a thread writes a file. Not
        to be called while a copy-up is under way."""
        from . import snapshots  # few mounts have any

        self._refuse_while_changing()
        return snapshots.take(self.state, name)

    def roll_back(self, name: str = "", *, drop: bool = False) -> tuple[str, Changed]:
        """Go back to a snapshot, which is dropped if told so, as `going_back.roll_back` and `undo`; otherwise as
        `snapshot`."""
        from . import going_back

        self._refuse_while_changing()
        return going_back.undo(self.state, name) if drop else going_back.roll_back(self.state, name)

    def reset(self, places: Sequence[bytes] = ()) -> Changed:
        """Go back to the tree without changes but for `places`, as `going_back.reset`; otherwise as `snapshot`."""
        from . import going_back

        self._refuse_while_changing()
        return going_back.reset(self.state, places)

    def drop_snapshot(self, name: str = "") -> str:
        """Drop a snapshot and merge its layer."""
        found = self.drop_name(name)
        for prepare in self.merges():
            prepare()
        return found

    def drop_name(self, name: str) -> str:
        """Drop a snapshot, as `dropping.drop`; otherwise as `snapshot`."""
        from . import dropping

        self._refuse_while_changing()
        return dropping.drop(self.state, name)

    def give_way(self) -> None:
        """Cut off what `merges` prepares, for another command; a later drop goes on with it."""
        from . import dropping

        dropping.give_way(self.state)

    def merges(self) -> Iterator[Callable[[], None]]:
        """Merge layers without a name, as `dropping.merges`. Not to be gone on with while `is_changing`."""
        from . import dropping

        for prepare in dropping.merges(self.state):
            yield prepare
            self._ahead.drop_all()
            self.state.descriptors.begin()

    @property
    def is_changing(self) -> bool:
        return self._changing > 0

    def _refuse_while_changing(self) -> None:
        if self._changing:
            raise OSError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        self._ahead.drop_all()
        self.state.descriptors.begin()

    @property
    def is_nearly_full(self) -> bool:
        """Whether little room is left on the disk of the upper, so that what was dropped should go soon; where the disk
        does not tell, too."""
        if self.state.work_fd is None:
            return False
        try:
            found = os.fstatvfs(self.state.work_fd)
        except OSError:
            return True
        least = max(found.f_blocks // 32, _LEAST_ROOM // (found.f_frsize or 1))
        has_room = found.f_bavail >= least or not found.f_blocks  # which a tmpfs without a limit has none of
        return not has_room or found.f_favail < found.f_files // 32

    def take_waste(self) -> Callable[[], None] | None:
        """What removes the layers that rollbacks dropped, as far as nothing needs them now; for any thread. None where
        there are none."""
        return None if self.state.history is None else self.state.history.take_waste()

    def _inode(self, ino: int) -> Inode:
        self.state.descriptors.begin()
        return self.state.inode(ino)

    def _directory(self, ino: int) -> Directory:
        self.state.descriptors.begin()
        return self.state.directory(ino)

    def _taken(self, inode: Inode) -> Attributes:
        """The attributes of an inode that the caller now knows of."""
        found = attributes.attributes_of(self.state, inode)
        inode.nlookup += 1
        return found

    def facts(self) -> dict[str, object]:
        """What people ask about a live mount; paths as text."""
        state, options = self.state, self.options
        directories = [inode for inode in state.inodes.values() if isinstance(inode, Directory)]
        return {
            "lowers": [os.fsdecode(path) for path in options.lowers],
            "data_lowers": [os.fsdecode(path) for path in options.data_lowers],
            "upper": None if options.upper is None else os.fsdecode(options.upper),
            "work": None if options.work is None else os.fsdecode(options.work),
            "whiteout": state.whiteout.value,
            "xattr_prefix": state.prefix.decode(),
            "read_only": state.work_fd is None,
            "fsync": options.fsync.value,
            "options": to_facts(options),
            "inodes": len(state.inodes),
            "caches": {
                "inodes": len(state.inodes),
                "directories": len(directories),
                "listings": sum(1 for directory in directories if directory.listing is not None),
            },
            "descriptors": len(state.descriptors) + len(state.orphans),
            "snapshots": [] if state.history is None else state.history.facts(state),
        }

    # -- inodes

    def lookup(self, parent: int, name: bytes) -> Attributes:
        found = self.find(parent, name)
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return found

    def find(self, parent: int, name: bytes) -> Attributes | None:
        """As `lookup`, None where there is nothing: absent names are asked for often."""
        directory = self._directory(parent)
        lookup.check_name(name)
        if name == b".":
            return self._taken(directory)
        if name == b"..":
            return self._taken(directory.parent or directory)
        inode = lookup.child(self.state, directory, name)
        return None if inode is None else self._taken(inode)

    def forget(self, ino: int, count: int) -> None:
        """Give back `count` lookups; numbers that are not known are ignored."""
        inodes = self.state.inodes
        inode = inodes.get(ino)
        if inode is None or ino == ROOT:
            if inode is None and self.state.former is not None:
                self.state.former.forget(ino, count)
            return
        inode.nlookup = inode.nlookup - count if count < inode.nlookup else 0
        if not inode.nlookup:
            self._forgotten += 1
            self.state.drop_if_unused(inode)

    def give_memory_back(self) -> None:
        """Let the system have what many inodes took that are forgotten now; for a moment with nothing else to do."""
        if self._forgotten < max(_MANY_INODES, len(self.state.inodes)):
            return
        self._forgotten = 0
        self._ahead.drop_all()
        self.state.inodes.shrink()
        gc.collect()
        syscalls.trim_memory()

    def getattr(self, ino: int) -> Attributes:
        inode = self._inode(ino)
        if self.state.revalidates:
            inode.attributes = None
        return attributes.attributes_of(self.state, inode)

    def setattr(self, ino: int, changes: AttributeChanges, caller: Caller) -> Attributes:
        inode = self._inode(ino)
        before = inode.attributes
        changing.change(self.state, inode, changes, caller)
        return changing.after_change(self.state, inode, before, changes)

    def readlink(self, ino: int) -> bytes:
        inode = self._inode(ino)
        if inode.kind != stat.S_IFLNK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self.state.node(inode) as fd:
            target = os.readlink(b"", dir_fd=fd)
        attributes.note_read(self.state, inode)
        return target

    def statfs(self) -> os.statvfs_result:
        return attributes.statfs(self.state)

    # -- names

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        return self._taken(making.symlink(self.state, self._directory(parent), name, target, caller))

    def link(self, ino: int, parent: int, name: bytes) -> Attributes:
        inode, directory = self._inode(ino), self._directory(parent)
        names.link(self.state, inode, directory, name)
        return self._taken(inode)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attributes:
        return self._taken(making.mknod(self.state, self._directory(parent), name, mode, rdev, caller))

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        return self._taken(making.mkdir(self.state, self._directory(parent), name, mode, caller))

    def unlink(self, parent: int, name: bytes) -> None:
        names.unlink(self.state, self._directory(parent), name)

    def rmdir(self, parent: int, name: bytes) -> None:
        names.rmdir(self.state, self._directory(parent), name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        source, target = self._directory(parent), self._directory(new_parent)
        renaming.rename(self.state, source, name, target, new_name, flags)

    def moved_by_rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> list[int]:
        """The inodes that get another name: what is renamed, and with RENAME_EXCHANGE what it changes places with."""
        ends = [(parent, name)]
        if flags & syscalls.RENAME_EXCHANGE:
            ends.append((new_parent, new_name))
        found = [lookup.child(self.state, self._directory(parent), name) for parent, name in ends]
        return [inode.number for inode in found if inode is not None]

    def to_copy_before_rename(self, ino: int) -> Iterator[tuple[int, Need]]:
        """What has to be copied up before an inode is renamed, for a caller that has threads for large files.

        What the caller does not copy is copied here when it asks for the next; others may be served between.
        """
        inode = self._inode(ino)
        if not renaming.needs_whole_copy(self.state, inode):
            yield ino, Need.METADATA
            return
        assert isinstance(inode, Directory)
        for step in copyup_tree.steps_to_copy_everything(self.state, inode):
            yield step.number, Need.DATA
            if not step.is_directory and step.parent is not None:
                copyup.copy_up(self.state, step)

    def is_directory(self, ino: int) -> bool:
        return self.state.inode(ino).is_directory

    # -- files

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> Attributes:
        """Make a file and open it."""
        inode = making.create(self.state, self._directory(parent), name, mode, caller)
        files.note_created(self.state, inode)
        return self._taken(inode)

    def tmpfile(self, parent: int, mode: int, flags: int, caller: Caller) -> Attributes:
        """Make a file without a name and open it."""
        inode = making.tmpfile(self.state, self._directory(parent), mode, caller)
        files.note_created(self.state, inode)
        return self._taken(inode)

    def open_file(self, ino: int, flags: int) -> None:
        files.open_file(self.state, self._inode(ino), flags)

    def release(self, ino: int) -> None:
        inode = self.state.inodes.get(ino)
        if inode is not None:
            files.release(self.state, inode)
        elif self.state.former is not None:
            self.state.former.release(ino)

    def read(self, ino: int, offset: int, size: int) -> bytes:
        return files.read(self.state, self._inode(ino), offset, size)

    def read_into(self, ino: int, offset: int, buffer: memoryview) -> int | None:
        """Read what is in memory: how much there was, None where it is on a disk. Use `fetch` and try again, or
        `pin_data` in a thread then."""
        return files.read_into(self.state, self._inode(ino), offset, buffer)

    def fetch(self, ino: int, offset: int, size: int) -> None:
        """Have a disk read what `read_into` could not, without waiting for the data."""
        files.fetch(self.state, self._inode(ino), offset, size)

    def pin_data(self, ino: int) -> OpenFile:
        """The descriptor of a file's data, good until it is unpinned."""
        opened = files.pooled(self.state, self._inode(ino), writable=False)
        opened.pins += 1
        return opened

    def pin_to_change(self, ino: int) -> OpenFile:
        """As `pin_data`, for writing; call `note_changed` before it is unpinned. Copies up."""
        inode = self._inode(ino)
        copyup.ensure_upper(self.state, inode)
        opened = files.pooled(self.state, inode, writable=True)
        opened.pins += 1
        self._changing += 1
        return opened

    def note_changed(self, ino: int) -> None:
        """The data was changed through a pinned descriptor."""
        self._changing -= 1
        inode = self.state.inodes.get(ino)
        if inode is not None:
            inode.note_lost_privileges()

    def pass_through(self, ino: int) -> OpenFile | None:
        """Let the kernel serve a file's data without us: its pinned descriptor, None where that may not be."""
        opened = files.pass_through(self.state, self._inode(ino))
        if opened is not None:
            opened.pins += 1
        return opened

    def end_passing_through(self, ino: int) -> None:
        """The data comes through us again."""
        self.state.passed_through.discard(ino)

    def note_written_unseen(self, ino: int) -> None:
        """Somebody may write a file that is passed through, now and as long as its inode is known."""
        files.note_written_unseen(self.state, self._inode(ino))

    def allocate(self, ino: int, mode: int, offset: int, length: int) -> None:
        files.allocate(self.state, self._inode(ino), mode, offset, length)

    def seek(self, ino: int, offset: int, whence: int) -> int:
        return files.seek(self.state, self._inode(ino), offset, whence)

    def file_flags(self, ino: int, command: int, argument: bytes) -> bytes:
        return file_flags(self.state, self._inode(ino), command, argument)

    def birth_time(self, ino: int) -> int | None:
        """In ns since the epoch; None where it is not known."""
        with self.state.node(self._inode(ino)) as fd:
            return syscalls.birth_time(fd)

    def sync_filesystem(self) -> None:
        """syncfs(2) of the upper. May block, and may be called from any thread."""
        if self.state.upper is not None and self.options.fsync is not FsyncPolicy.VOLATILE:
            syscalls.sync_filesystem(self.state.upper.root_fd)

    def refuse_write(self, ino: int, appended_at: int | None, opened_unasked: bool) -> None:
        """EPERM for a write that immutable or append-only forbids, to be asked before it.

        `appended_at` is the offset of a write to a file with O_APPEND; `opened_unasked` says that `open_file` was not
        called for the file.
        """
        inode = self._inode(ino)
        if inode.protection != 0:
            end = attributes.attributes_of(self.state, inode).size
            appends = appended_at is not None and appended_at >= end
            protection.refuse_write(self.state, inode, appends, opened_unasked)

    def write(self, ino: int, offset: int, data: bytes | memoryview) -> int:
        return files.write(self.state, self._inode(ino), offset, data)

    def fsync(self, ino: int, datasync: bool) -> None:
        files.fsync(self.state, self._inode(ino), datasync)

    def pin_to_sync(self, ino: int, datasync: bool) -> tuple[OpenFile, bool] | None:
        """For an fsync elsewhere: the pinned descriptor and whether fdatasync will do; None where nothing is dirty."""
        inode = self._inode(ino)
        opened = files.descriptor_to_sync(self.state, inode)
        if opened is None:
            return None
        opened.pins += 1
        return opened, datasync and files.is_name_synced(self.state, inode)

    def note_sync(self, ino: int, opened: OpenFile, failure: OSError | None) -> None:
        """How that fsync ended; once one failed, none of this file succeeds, and this raises the error for those that
        seem to have."""
        files.note_sync(self.state, self._inode(ino), opened, failure)

    def bytes_to_copy(self, ino: int, need: Need, size: int | None = None) -> int:
        """How much data the next change would have to copy up first."""
        return copyup.bytes_to_copy(self.state, self._inode(ino), need, size)

    def begin_copy_up(self, ino: int, need: Need, size: int | None) -> CopyUp | None:
        """A copy-up in steps, so that nobody waits for a disk: in a `with` block of it, `transfer` in a thread, or
        `fill` here and a sync; then `publish` here."""
        return copyup.begin(self.state, self._inode(ino), need, size)

    # -- directories

    def opendir(self, ino: int) -> int:
        """Count an open; the handle is the inode number."""
        directory = self._directory(ino)
        directory.opens += 1
        return ino

    def fill(self, ino: int, offset: int, sink: Sink) -> None:
        """Put the entries after `offset`, `.` and `..` included, into the sink as long as it has room. With
        `sink.takes` nlookup is raised of each that it took and that can be taken."""
        directory = self._directory(ino)
        if listing.fill(self.state, directory, offset, sink) and sink.takes:
            self._ahead.note_listed(directory)

    def read_ahead(self) -> bool:
        """Prepare for a walk of the tree, in a moment with nothing else to do: a small step, False where there is
        none to do."""
        return self._ahead.step()

    def readdir(self, ino: int, offset: int) -> list[DirectoryEntry]:
        """All entries after `offset`; raises no nlookup."""
        entries, count = _Entries(), -1
        while len(entries.found) > count:  # an error comes with the second call, after what could be read
            count = len(entries.found)
            self.fill(ino, entries.found[-1].offset if count else offset, entries)
        return entries.found

    def releasedir(self, ino: int) -> None:
        directory = self.state.inodes.get(ino)
        if directory is not None:
            directory.opens = max(directory.opens - 1, 0)
            self.state.drop_if_unused(directory)
        elif self.state.former is not None:
            self.state.former.release(ino)

    def open_to_sync(self, ino: int) -> int | None:
        """A descriptor of a directory for an fsync in a thread, and for the caller to close; None where nothing can be
        dirty."""
        return files.open_to_sync(self.state, self._directory(ino))

    def fsyncdir(self, ino: int) -> None:
        fd = self.open_to_sync(ino)
        if fd is not None:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    # -- extended attributes

    def getxattr(self, ino: int, name: bytes) -> bytes:
        value = self.find_xattr(ino, name)
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return value

    def find_xattr(self, ino: int, name: bytes) -> bytes | None:
        """As `getxattr`, None where it is known that there is none."""
        return xattrs.find_xattr(self.state, self._inode(ino), name)

    def listxattr(self, ino: int, *, with_trusted: bool = True) -> list[bytes]:
        """The names; those of `trusted.` only for administrators, as everywhere."""
        names = xattrs.listxattr(self.state, self._inode(ino))
        return names if with_trusted else [name for name in names if not name.startswith(b"trusted.")]

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
        changing.setxattr(self.state, self._inode(ino), name, value, flags, caller)

    def removexattr(self, ino: int, name: bytes) -> None:
        changing.removexattr(self.state, self._inode(ino), name)
