"""Which layers does `stack` name, and which text makes no sense? The format is said in history."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from overlayfs._typing import Any, Final, NamedTuple

from ..tree import syscalls
from . import forks
from .options import MountError

FILE: Final = b"stack"
UPPER: Final = b"upper"
LONGEST: Final = 1 << 20
LONGEST_NAME: Final = 64
_LONGEST_NUMBER: Final = 18  # digits
_LATEST: Final = float(1 << 40)  # in seconds; people are told the time of a snapshot
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
        directory = os.path.join(work, forks.DIRECTORY, self.directory.encode()) if self.directory else work
        root = os.path.join(directory, UPPER) if self.directory else upper
        return self._replace(directory=os.fsdecode(directory), upper=os.fsdecode(root))

    def to_json(self) -> str:
        snapshot = "null" if self.snapshot is None else _quoted(self.snapshot)
        text = f'"directory": {_quoted(self.directory)}, "snapshot": {snapshot}, "taken_at": {self.taken_at!r}'
        return f'{{{text}, "upper": {_quoted(self.upper)}}}' if self.upper else f"{{{text}}}"


def _quoted(text: str) -> str:
    """As a string of JSON."""
    if _IN_NAMES.issuperset(text):
        return f'"{text}"'
    from _json import encode_basestring_ascii  # for paths alone: its import takes a tenth of a snapshot

    return encode_basestring_ascii(text)


def check_name(name: str) -> None:
    """EINVAL for what cannot be the name of a snapshot."""
    if not name or len(name) > LONGEST_NAME or name[0] in ".-" or not _IN_NAMES.issuperset(name):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)


def to_text(entries: Sequence[Entry]) -> bytes:
    members = ", ".join(entry.to_json() for entry in entries)
    return f'{{"version": {_version(entries)}, "layers": [{members}]}}'.encode()


def _version(entries: Sequence[Entry]) -> int:
    """The least of the format that knows of such layers."""
    if lacks_upperdir(entries):
        return 4
    if len(entries) < 2 or not all(entry.snapshot for entry in entries[:-1]):
        return 3
    return 2 if entries[0].upper else 1


def lacks_upperdir(entries: Sequence[Entry]) -> bool:
    """Whether a reset has dropped the upperdir. That of a fork is removed with the fork."""
    return bool(entries and entries[0].directory and not entries[0].upper)


def read(fd: int) -> list[Entry]:
    """The layers that `stack` names; none where the first snapshot was not finished."""
    try:
        if not _is_file(fd, FILE):
            _refuse_used_layers(fd)
            return []
        return _entries(_text(fd))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise MountError("workdir: overlayfs-snapshots/stack is damaged: it does not name the layers") from None


def _is_file(fd: int, name: bytes) -> bool:
    """False where there is none; ValueError where it is something else."""
    try:
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(st.st_mode):
        raise ValueError("not a file")
    return True


def _refuse_used_layers(fd: int) -> None:
    """ValueError where a layer holds something although there is no `stack`: it would be removed as a leftover."""
    for name in filter(is_number, os.listdir(fd)):
        with suppress(FileNotFoundError, NotADirectoryError):
            upper_fd = syscalls.open_beneath(fd, os.path.join(os.fsencode(name), UPPER), _OPEN)
            try:
                if os.listdir(upper_fd):
                    raise ValueError("no stack")
            finally:
                os.close(upper_fd)


def _text(fd: int) -> bytes:
    stack_fd = os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    with open(stack_fd, "rb") as file:
        return file.read(LONGEST)


def _entries(text: bytes) -> list[Entry]:
    import json

    members: Any = json.loads(text)
    if members["version"] not in (1, 2, 3, 4):
        raise ValueError("a later version")
    found = [_entry(**member) for member in members["layers"]]
    _refuse_nonsense(found)
    if lacks_upperdir(found) != (members["version"] == 4):  # what is in the upperdir would be removed
        raise ValueError("no upperdir")
    return found


def _entry(directory: str, snapshot: str | None, taken_at: float, upper: str = "") -> Entry:
    if not 0 <= float(taken_at) <= _LATEST:
        raise ValueError("not a time")
    return Entry(str(directory), snapshot, float(taken_at), str(upper))


def _refuse_nonsense(entries: Sequence[Entry]) -> None:
    """ValueError where a layer is no subdirectory of ours, or is named twice, or a snapshot is."""
    directories = [entry.directory for entry in entries]
    if not entries or len(set(directories)) < len(directories) or entries[-1].snapshot is not None:
        raise ValueError("not a stack of layers")
    lowest_own = sum(bool(entry.upper) for entry in entries)
    for at, entry in enumerate(entries):
        if at < lowest_own:
            is_layer = _is_path(entry.directory) and _is_path(entry.upper)
        else:
            is_layer = is_number(entry.directory) or (at == lowest_own and not entry.directory)
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


def is_number(name: str) -> bool:
    return name.isdecimal() and name.isascii() and not name.startswith("0") and len(name) <= _LONGEST_NUMBER


def _is_path(text: str) -> bool:
    return text.startswith("/") and b"\0" not in os.fsencode(text)
