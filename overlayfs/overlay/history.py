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
from _json import encode_basestring_ascii as _quoted  # importing json itself takes longer than a snapshot
from _thread import allocate_lock
from collections.abc import Callable, Sequence
from contextlib import suppress

from overlayfs._typing import Any, Final, NamedTuple

from ..tree import access, syscalls
from . import drafts, forks
from .options import MountError
from .state import Held, State

DIRECTORY: Final = forks.DIRECTORY
GUARD: Final = b"overlayfs-snapshots"  # in work/incompat
UPPER: Final = b"upper"
LINKS: Final = b"overlayfs-links"
LONGEST_NAME: Final = 64
_INDEX: Final = b"index"
_STACK: Final = b"stack"
_NEW_STACK: Final = b"stack.new"
_LONGEST_STACK: Final = 1 << 20
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_NAMES: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Entry(NamedTuple):
    """A layer of the writable side; `snapshot` is the name of the state that it is the topmost layer of. `upper` is the
    path of a layer that belongs to another mount."""

    directory: str
    snapshot: str | None = None
    taken_at: float = 0.0
    upper: str = ""

    def as_shared(self, upper: bytes, work: bytes) -> Entry:
        """As a fork of the mount with this upper and workdir names it."""
        if self.upper:
            return self
        directory = os.path.join(work, DIRECTORY, self.directory.encode()) if self.directory else work
        root = os.path.join(directory, UPPER) if self.directory else upper
        return self._replace(directory=os.fsdecode(directory), upper=os.fsdecode(root))

    def to_json(self) -> str:
        snapshot = "null" if self.snapshot is None else _quoted(self.snapshot)
        text = f'"directory": {_quoted(self.directory)}, "snapshot": {snapshot}, "taken_at": {self.taken_at!r}'
        return f'{{{text}, "upper": {_quoted(self.upper)}}}' if self.upper else f"{{{text}}}"


def check_name(name: str) -> None:
    """EINVAL for what cannot be the name of a snapshot."""
    if not name or len(name) > LONGEST_NAME or name[0] in ".-" or not _IN_NAMES.issuperset(name):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)


class History(Held):
    """The layers of one workdir. `fd` is its subdirectory, -1 where there is none yet; `work_fd` the workdir itself;
    `upperdir_fd` is that of a mount, which closes it."""

    def __init__(self, work_fd: int, fd: int, entries: Sequence[Entry]) -> None:
        self.work_fd = work_fd
        self.upperdir_fd = -1
        self.fd = fd
        self._removing = allocate_lock()
        self.has_stopped = False
        self.waste: list[str] = []  # layers that were dropped and that nobody needs any more
        self.locks: list[int] = []  # on layers of the mount that this one is a fork of
        self.entries = tuple(entries)
        self._last = max((int(entry.directory) for entry in entries if entry.directory.isdecimal()), default=0)

    def descriptors(self) -> list[int]:
        self.stop()
        return [fd for fd in (self.work_fd, self.fd, *self.locks) if fd >= 0]

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
        check_name(wanted)
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
        members = ", ".join(entry.to_json() for entry in entries)
        text = f'{{"version": {_version(entries)}, "layers": [{members}]}}'.encode()
        if len(text) >= _LONGEST_STACK:  # it could not be read back
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_NEW_STACK, flags, 0o600, dir_fd=self.fd)
        try:
            try:
                _write_whole(fd, text)
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(_NEW_STACK, _STACK, src_dir_fd=self.fd, dst_dir_fd=self.fd)
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
                        self.waste.append(name)

    def _empty_upperdir(self) -> bool:
        """Remove what the upperdir holds and its index, unless forks use it; whether they are gone."""
        root_fd = access.open_at(self.upperdir_fd, b".", _OPEN)
        try:
            if not (os.listdir(root_fd) or {_INDEX, LINKS}.intersection(map(os.fsencode, os.listdir(self.work_fd)))):
                return True
            place = self.place_of(Entry(""))
            with forks.alone(place) as is_alone:
                if is_alone:
                    forks.forbid(place)  # to one that was made of the layer, and is not mounted yet
                    drafts.remove_content(root_fd)
                    drafts.remove(self.work_fd, _INDEX)
                    drafts.remove(self.work_fd, LINKS)
            return is_alone
        finally:
            os.close(root_fd)

    def stop(self) -> None:
        with self._removing:
            self.has_stopped = True

    def unless_stopped(self, work: Callable[[], None]) -> None:
        """Do something to the layers, in any thread, as `remove` does."""
        with self._removing:
            if not self.has_stopped:
                work()

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
        if _lacks_upperdir(self.entries):
            self.remove([""])
        used = [int(name) for name in os.listdir(self.fd) if name.isdecimal()]
        self._last = max([self._last, *used])


def _version(entries: Sequence[Entry]) -> int:
    """The least of the format that knows of such layers."""
    if _lacks_upperdir(entries):
        return 4
    if len(entries) < 2 or not all(entry.snapshot for entry in entries[:-1]):
        return 3
    return 2 if entries[0].upper else 1


def _lacks_upperdir(entries: Sequence[Entry]) -> bool:
    """Whether a reset has dropped the upperdir. That of a fork is removed with the fork."""
    return bool(entries and entries[0].directory and not entries[0].upper)


def _write_whole(fd: int, text: bytes) -> None:
    while text:
        text = text[os.write(fd, text) :]


def has_lost_upperdir(work_fd: int) -> bool:
    """Whether what is in the upperdir counts no more. MountError where `stack` is damaged."""
    try:
        fd = os.open(DIRECTORY, _OPEN, dir_fd=work_fd)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return _lacks_upperdir(_parse(fd))
    finally:
        os.close(fd)


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
        entries = _parse(fd)
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
        return _parse(fd)
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
    kept = {_STACK, *(os.fsencode(entry.directory) for entry in _parse(fd))}
    found = [name for name in map(os.fsencode, sorted(os.listdir(fd))) if name not in kept]
    return [name for name in found if not forks.is_used(fd, name)]


def _parse(fd: int) -> list[Entry]:
    try:
        return _entries(_read(fd))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MountError("workdir: overlayfs-snapshots/stack is damaged: it does not name the layers") from None


def _read(fd: int) -> bytes:
    try:
        stack_fd = os.open(_STACK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError:
        return b""
    with open(stack_fd, "rb") as file:
        return file.read(_LONGEST_STACK)


def _entries(text: bytes) -> list[Entry]:
    import json

    if not text:
        return []
    members: Any = json.loads(text)
    if members["version"] not in (1, 2, 3, 4):
        raise ValueError("a later version")
    found = [_entry(**member) for member in members["layers"]]
    _refuse_nonsense(found)
    if _lacks_upperdir(found) != (members["version"] == 4):  # what is in the upperdir would be removed
        raise ValueError("no upperdir")
    return found


def _entry(directory: str, snapshot: str | None, taken_at: float, upper: str = "") -> Entry:
    return Entry(str(directory), snapshot, float(taken_at), str(upper))


def _refuse_nonsense(entries: Sequence[Entry]) -> None:
    """ValueError where a layer is no subdirectory of ours, or is named twice, or a snapshot is."""
    directories = [entry.directory for entry in entries]
    if not entries or len(set(directories)) < len(directories) or entries[-1].snapshot is not None:
        raise ValueError("not a stack of layers")
    lowest_own = sum(bool(entry.upper) for entry in entries)
    for at, entry in enumerate(entries):
        is_number = entry.directory.isdecimal() and entry.directory.isascii() and not entry.directory.startswith("0")
        if at < lowest_own:
            is_layer = entry.directory.startswith("/") and entry.upper.startswith("/")
        else:
            is_layer = is_number or (at == lowest_own and not entry.directory)
        if not is_layer:
            raise ValueError("not a layer")
    names = [entry.snapshot for entry in entries if entry.snapshot is not None]
    if len(set(names)) < len(names):
        raise ValueError("two snapshots of one name")
    for name in names:
        try:
            check_name(name if isinstance(name, str) else "")
        except OSError as error:
            raise ValueError("not a name") from error


def open_upper(directory_fd: int) -> int:
    """A descriptor of the root of the layer in a directory N."""
    return access.open_at(directory_fd, UPPER, _OPEN)


def now() -> float:
    return time.time()
