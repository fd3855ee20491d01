"""How do the layers of the writable side of a mount lie on disk, once there are snapshots?

A snapshot leaves the directory that takes changes as it is, as a layer, and goes on in an empty one. The workdir holds:

    overlayfs-snapshots/stack               the layers, lowest first, as JSON; replaced by rename(2)
    overlayfs-snapshots/N/upper             a layer, in the same format as an upper
    overlayfs-snapshots/N/index             hard links of that layer, as `index` in the workdir (see indexing);
    overlayfs-snapshots/N/overlayfs-links     counts of deleted names, as `overlayfs-links` there
    work/incompat/overlayfs-snapshots       has the kernel's overlayfs refuse the workdir (as for any such name)

Each entry of `stack` is {"directory": D, "snapshot": NAME, "taken_at": SECONDS}: D is N, or empty for the upperdir,
which is the lowest; the last one has no name and takes changes. Others have none once their snapshot was dropped (see
dropping); then "version" is 3. All N that `stack` does not name are leftovers, removed at the next mount. So a snapshot
or rollback has happened once `stack` was renamed, and not before. N are never used again within one mount.

The lowest layers of a fork (see forks) are those of the mount that it was made from, and its upperdir comes above them.
Their entries have one member more, "upper", the absolute path of the layer; D is then that of the directory with the
layer's index, and "version" is at least 2 instead of 1.

A reset drops all layers, the upperdir too: where `stack` does not name that, and the mount is no fork, "version" is 4.
What is in the upperdir, and in `index` and `overlayfs-links` of the workdir, is a leftover then.

For a mount without snapshots none of this exists, and the upperdir holds all changes.
"""

from __future__ import annotations

import errno
import os
import time
from _thread import allocate_lock
from collections.abc import Callable, Sequence
from contextlib import suppress

from overlayfs._typing import Final

from ..tree import access, syscalls
from . import drafts, forks, stack
from .room import Room
from .stack import Entry
from .state import Held, State

DIRECTORY: Final = forks.DIRECTORY
GUARD: Final = b"overlayfs-snapshots"  # in work/incompat
UPPER: Final = stack.UPPER
LINKS: Final = b"overlayfs-links"
_INDEX: Final = b"index"
_NEW_STACK: Final = b"stack.new"
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class History(Held):
    """The layers of one workdir. `fd` is its subdirectory, -1 where there is none yet; `work_fd` the workdir itself;
    `upperdir_fd` that of a mount, which is none of its layers after a reset."""

    def __init__(self, work_fd: int, fd: int, entries: Sequence[Entry]) -> None:
        self.work_fd = work_fd
        self.upperdir_fd = -1
        self.fd = fd
        self._removing = allocate_lock()
        self.has_stopped = False
        self.gives_way = False  # to another command: what is being prepared is for a later one
        self.waste: list[str] = []  # layers that were dropped and that nobody needs any more
        self._in_use: list[str] = []  # the same, but a fork uses them
        self.locks: list[int] = []  # on layers of the mount that this one is a fork of
        self.room = Room(work_fd)
        self.entries = tuple(entries)
        self._last = max((int(entry.directory) for entry in entries if entry.directory.isdecimal()), default=0)

    def descriptors(self) -> list[int]:
        self.stop()
        self.room.give_up()
        return [fd for fd in (self.work_fd, self.upperdir_fd, self.fd, *self.locks) if fd >= 0]

    @property
    def newest(self) -> str | None:
        return next((entry.snapshot for entry in reversed(self.entries) if entry.snapshot), None)

    def position(self, name: str) -> int:
        """Where the snapshot of this name is, the newest for an empty one; ENOENT where there is none."""
        found = [at for at, entry in enumerate(self.entries) if entry.snapshot and name in ("", entry.snapshot)]
        if not found:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return found[-1]

    def free_name(self, wanted: str) -> str:
        """The name of a new snapshot: the least number that is none yet, for an empty one; EEXIST where it is one."""
        taken = {entry.snapshot for entry in self.entries}
        if not wanted:
            return next(name for name in map(str, range(1, len(taken) + 2)) if name not in taken)
        stack.check_name(wanted)
        if wanted in taken:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), wanted)
        return wanted

    # -- on disk

    def open(self) -> None:
        """Have the subdirectory, which is made where there is none."""
        if self.fd < 0:
            with suppress(FileExistsError):
                os.mkdir(DIRECTORY, 0o700, dir_fd=self.work_fd)
            self.fd = os.open(DIRECTORY, _OPEN, dir_fd=self.work_fd)

    def make_layer(self) -> tuple[Entry, int]:
        """An empty layer that `stack` does not name yet: its entry, and a descriptor of the directory N."""
        self.open()
        self._last += 1
        name = str(self._last)
        fd = -1
        try:
            drafts.remove(self.fd, name.encode())
            os.mkdir(name, 0o700, dir_fd=self.fd)
            fd = os.open(name, _OPEN, dir_fd=self.fd)
            os.mkdir(UPPER, 0o700, dir_fd=fd)
        except OSError:
            if fd >= 0:
                os.close(fd)
            self.give_up_layer()
            raise
        return Entry(name), fd

    def give_up_layer(self) -> None:
        """Remove the layer that was made last, which nothing refers to."""
        self.remove([str(self._last)])
        self._last -= 1

    def open_directory(self, entry: Entry) -> int:
        """A descriptor of the directory that holds the index of a layer: N, or the workdir itself."""
        return os.open(entry.directory, _OPEN, dir_fd=self.fd) if entry.directory else self.work_fd

    def place_of(self, entry: Entry) -> bytes:
        """The directory that holds the index of a layer of this mount, by a path that cannot lead elsewhere."""
        below = os.path.join(DIRECTORY, entry.directory.encode()) if entry.directory else b"."
        return os.path.join(syscalls.descriptor_path(self.work_fd), below)

    def open_layer(self, entry: Entry) -> int:
        """A descriptor of the root of a layer that is not the upperdir."""
        if entry.upper:
            return access.open_directory(os.fsencode(entry.upper))
        directory_fd = self.open_directory(entry)
        try:
            return open_upper(directory_fd)
        finally:
            os.close(directory_fd)

    def open_links(self, entry: Entry) -> int | None:
        """A descriptor of the counts of deleted names of a layer, None where there are none."""
        path = os.path.join(DIRECTORY, os.fsencode(entry.directory), LINKS) if entry.directory else LINKS
        try:
            return os.open(path, _OPEN, dir_fd=self.work_fd)
        except FileNotFoundError:
            return None

    def guard(self, work_fd: int) -> None:
        """Leave the mark that keeps others from taking the upperdir for all there is; `work_fd` is `work`."""
        with suppress(FileExistsError):
            os.mkdir(b"incompat", 0o700, dir_fd=work_fd)
        with suppress(FileExistsError):
            os.mkdir(b"incompat/" + GUARD, 0o700, dir_fd=work_fd)

    def publish(self, entries: Sequence[Entry], *, durable: bool) -> None:
        """Have `stack` name these layers, from one moment to the next. What fails before the rename changes nothing."""
        text = stack.to_text(entries)
        if len(text) >= stack.LONGEST:  # it could not be read back
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        drafts.remove(self.fd, _NEW_STACK)
        fd = os.open(_NEW_STACK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            try:
                _write_whole(fd, text)
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(_NEW_STACK, stack.FILE, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError:
            with drafts.afterwards():
                os.unlink(_NEW_STACK, dir_fd=self.fd)
            raise
        self.entries = tuple(entries)
        if durable:
            with drafts.afterwards():
                os.fsync(self.fd)

    def remove(self, directories: Sequence[str]) -> None:
        """Remove layers that `stack` does not name; those that a fork uses stay waste. May be called from any thread,
        one after the other; nothing is done once the workdir is another mount's."""
        with self._removing:
            for name in directories if not self.has_stopped else ():
                with drafts.afterwards():
                    if not (forks.remove(self.fd, os.fsencode(name)) if name else self._empty_upperdir()):
                        self._in_use.append(name)
            if not self.has_stopped:
                self.room.keep()

    def give_room(self) -> bool:
        """Have room on a full disk; False where none was kept. Waits for a removal that is under way."""
        with self._removing:
            return self.room.give_up()

    def _empty_upperdir(self) -> bool:
        """Remove what the upperdir holds and its index, unless forks use it; whether they are gone. A fork that is
        mounted from now on sees in `stack` that it cannot use it."""
        if forks.is_used(self.work_fd, b"."):
            return False
        root_fd = access.open_at(self.upperdir_fd, b".", _OPEN)
        try:
            drafts.remove_content(root_fd)
        finally:
            os.close(root_fd)
        drafts.remove(self.work_fd, _INDEX)
        drafts.remove(self.work_fd, LINKS)
        return True

    def stop(self) -> None:
        """Change nothing on disk from now on; waits for what cannot be cut off."""
        self.has_stopped = True
        with self._removing:
            pass

    def unless_stopped(self, work: Callable[[], None]) -> None:
        """Do something to the layers, in any thread, as `remove` does."""
        with self._removing:
            if not self.has_stopped:
                work()

    def check_goes_on(self) -> None:
        """EINTR where long work is to be cut off: the mount ends, or another command waits."""
        if self.has_stopped or self.gives_way:
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    def look_again(self) -> None:
        """Try to remove what forks used when it was last tried."""
        used, self._in_use = self._in_use, []
        self.waste += used

    def take_waste(self) -> Callable[[], None] | None:
        waste, self.waste = self.waste, []
        return (lambda: self.remove(waste)) if waste else None

    def facts(self, state: State) -> list[dict[str, object]]:
        assert state.upper is not None
        layers = [state.layers[number] for number in reversed(state.frozen)] + [state.upper]
        return [
            {"snapshot": entry.snapshot, "taken_at": entry.taken_at, "layer": os.fsdecode(layer.path)}
            for entry, layer in zip(self.entries, layers, strict=True)
        ]

    def remove_leftovers(self) -> None:
        """Remove whatever an unfinished snapshot or rollback left, and forks that were killed."""
        self.remove([os.fsdecode(name) for name in leftovers(self.fd)])
        if stack.lacks_upperdir(self.entries):
            self.remove([""])
        used = [int(name) for name in os.listdir(self.fd) if stack.is_number(name)]
        self._last = max([self._last, *used])


def _write_whole(fd: int, text: bytes) -> None:
    while text:
        text = text[os.write(fd, text) :]


def has_lost_upperdir(work: bytes) -> bool:
    """Whether what is in the upperdir counts no more. MountError where `stack` is damaged."""
    try:
        return stack.lacks_upperdir(entries_of(work))
    except (FileNotFoundError, NotADirectoryError):
        return False


def new(work_fd: int) -> History:
    """The history of an upperdir without snapshots."""
    return History(work_fd, -1, [Entry("")])


def load(work_fd: int) -> History | None:
    """What a workdir says, None where there was no snapshot. MountError where it is damaged."""
    try:
        fd = os.open(DIRECTORY, _OPEN, dir_fd=work_fd)
    except FileNotFoundError:
        return None
    history = None
    try:
        entries = stack.read(fd)
        history = History(work_fd, fd, entries) if entries else None
    finally:
        if history is None:
            os.close(fd)
    return history


def uppers(upper: bytes, work: bytes) -> list[tuple[str | None, bytes]]:
    """The layers of the writable side as paths, the lowest first, each with the name of the snapshot that it is the top
    of: `upper` alone where there are no snapshots. MountError where the history is damaged."""
    try:
        entries = entries_of(work)
    except (FileNotFoundError, NotADirectoryError):
        return [(None, upper)]
    shared = [entry.as_shared(upper, work) for entry in entries]
    return [(entry.snapshot, os.fsencode(entry.upper)) for entry in shared] or [(None, upper)]


def entries_of(work: bytes) -> list[Entry]:
    """What the workdir of a mount with snapshots says; OSError, MountError."""
    fd = os.open(os.path.join(work, DIRECTORY), _OPEN)
    try:
        return stack.read(fd)
    finally:
        os.close(fd)


def indexes(upper: bytes, work: bytes) -> dict[bytes, bytes]:
    """Where the hard links of each layer of the writable side are kept, by the path of the layer; as `uppers`."""
    try:
        entries = entries_of(work)
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    shared = [entry.as_shared(upper, work) for entry in entries or [Entry("")]]
    return {os.fsencode(entry.upper): os.path.join(os.fsencode(entry.directory), b"index") for entry in shared}


def leftovers(fd: int) -> list[bytes]:
    """What an unfinished snapshot or rollback, or a fork that was killed, left in the subdirectory; MountError where
    `stack` is damaged."""
    kept = {stack.FILE, *(os.fsencode(entry.directory) for entry in stack.read(fd))}
    found = [name for name in map(os.fsencode, sorted(os.listdir(fd))) if name not in kept]
    return [name for name in found if not forks.is_used(fd, name)]


def open_upper(directory_fd: int) -> int:
    """A descriptor of the root of the layer in a directory N."""
    return access.open_at(directory_fd, UPPER, _OPEN)


def now() -> float:
    return time.time()
