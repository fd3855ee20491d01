"""What can be done to a tree: a step is an operation's name and arguments, to be printed and repeated."""

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
UMASK = 0o022

Outcome = object
"""What a step returned, or the name of its errno. Comparable and printable."""


@dataclass(frozen=True, slots=True)
class Step:
    operation: str
    arguments: tuple[object, ...]

    def __str__(self) -> str:
        return f"{self.operation}({', '.join(map(repr, self.arguments))})"


def step(operation: str, *arguments: object) -> Step:
    return Step(operation, arguments)


@dataclass(frozen=True, slots=True)
class Entry:
    """All of one file that must be the same everywhere.

    `nlink` and `first_name` (the least path with the same inode) are None for directories, `mtime_ns` is None
    for a file that was modified during the run, since clocks differ.
    """

    mode: int
    uid: int
    gid: int
    size: int | None
    rdev: int
    nlink: int | None
    first_name: bytes | None
    mtime_ns: int | None
    data: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


Snapshot = dict[bytes, Entry]


def now_of_files_ns() -> int:
    """What is surely older than any time that a filesystem sets from now on: its clock is a coarse one."""
    return time.time_ns() - 10**9


class Target(Protocol):
    """One implementation under comparison. Errors are `OSError`; methods do what their system calls do.

    Paths are relative to the target's root, which is b"". Files held open are numbered by the caller.
    """

    name: str
    started_ns: int

    def create(self, path: bytes, flags: int, mode: int, data: bytes) -> None: ...
    def write(self, path: bytes, offset: int, data: bytes) -> int: ...
    def append(self, path: bytes, data: bytes) -> int: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def read(self, path: bytes) -> bytes: ...
    def stat(self, path: bytes) -> tuple[object, ...]: ...
    def mkdir(self, path: bytes, mode: int) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def rename(self, old: bytes, new: bytes, flags: int) -> None: ...
    def link(self, old: bytes, new: bytes) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def readlink(self, path: bytes) -> bytes: ...
    def mkfifo(self, path: bytes, mode: int) -> None: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def chown(self, path: bytes, uid: int, gid: int) -> None: ...
    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None: ...
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None: ...
    def getxattr(self, path: bytes, name: bytes) -> bytes: ...
    def removexattr(self, path: bytes, name: bytes) -> None: ...
    def listdir(self, path: bytes) -> list[bytes]: ...
    def hold(self, number: int, path: bytes, flags: int) -> None: ...
    def held_read(self, number: int) -> bytes: ...
    def held_write(self, number: int, offset: int, data: bytes) -> int: ...
    def held_truncate(self, number: int, size: int) -> None: ...
    def held_stat(self, number: int) -> tuple[object, ...]: ...
    def held_number(self, number: int) -> int: ...
    def drop(self, number: int) -> None: ...

    def snapshot(self) -> Snapshot: ...
    def numbers(self) -> dict[bytes, int]: ...
    def remount(self) -> None: ...
    def close(self) -> None: ...


def outcome_of(target: Target, step: Step) -> Outcome:
    """Do `step` on `target`; an `OSError` becomes the name of its errno."""
    try:
        return getattr(target, step.operation)(*step.arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def differences(expected: Snapshot, found: Snapshot) -> Iterator[str]:
    """One line for each thing that is not the same."""
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            yield f"{os.fsdecode(path)}: missing"
        elif path not in expected:
            yield f"{os.fsdecode(path)}: should not be there"
        else:
            yield from _entry_differences(path, expected[path], found[path])


def _entry_differences(path: bytes, expected: Entry, found: Entry) -> Iterator[str]:
    for field in Entry.__slots__:
        want, have = getattr(expected, field), getattr(found, field)
        if want != have:
            yield f"{os.fsdecode(path)}: {field} is {_short(have)}, not {_short(want)}"


def _short(value: object) -> str:
    if isinstance(value, int):
        return f"{value} ({value:#o})"
    text = repr(value)
    return text if len(text) < 80 else f"{text[:60]}… ({len(text)} characters)"
