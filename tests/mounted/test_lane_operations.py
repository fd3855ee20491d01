"""What the fast lane answers and pyfuse3 cannot: each call does on the mount what it does in a plain directory."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.calls import (
    FSGETXATTR,
    IMMUTABLE,
    KEEP_SIZE,
    NODUMP,
    PUNCH_HOLE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    ZERO_RANGE,
    extents,
    fallocate,
    file_flags,
    name_descriptor,
    outcome,
    renameat2,
    set_file_flags,
    statx,
    syncfs,
)
from tests.mounted.stack import Stack, run

KIB, MIB = 1 << 10, 1 << 20
PATTERN = bytes(range(256)) * 256  # 64 KiB


@dataclass
class Pair:
    """A mount, and a plain directory of the same filesystem that starts with the same files."""

    stack: Stack
    plain: Path

    @property
    def mount(self) -> Path:
        return self.stack.place

    def put(self, name: str, islands: dict[int, bytes], size: int | None = None) -> None:
        """A file in the lower layer and in the plain directory, before the mount."""
        for directory in (self.stack.lowers[0], self.plain):
            with open(directory / name, "wb") as file:
                for offset, data in islands.items():
                    file.seek(offset)
                    file.write(data)
                if size is not None:
                    file.truncate(size)
                os.fsync(file.fileno())

    def same(self, call: Callable[[Path], object]) -> object:
        """Do it in both, and see that it went the same way; what came of it."""
        expected = outcome(lambda: call(self.plain))
        assert outcome(lambda: call(self.mount)) == expected
        return expected


@pytest.fixture(params=["disk", "memory"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    base = Path(tempfile.mkdtemp(prefix="overlayfs-lane-", dir="/dev/shm" if request.param == "memory" else None))
    base.chmod(0o755)
    stack, plain = Stack.make(base), base / "plain"
    plain.mkdir()
    try:
        yield Pair(stack, plain)
    finally:
        stack.unmount()
        subprocess.run(["chattr", "-R", "-f", "-i", base], check=False)  # a test that failed may have left it
        shutil.rmtree(base, ignore_errors=True)


def using(path: Path, call: Callable[[int], object], flags: int = os.O_RDWR) -> object:
    """Do it with a descriptor of the file."""
    fd = os.open(path, flags, 0o644)
    try:
        return call(fd)
    finally:
        os.close(fd)


def content(path: Path) -> bytes:
    return path.read_bytes()


# Holes

ISLANDS = {0: b"a" * 4096, 256 * KIB: b"b" * 8192, MIB: b"c"}


def _map(path: Path) -> object:
    return using(path, extents, os.O_RDONLY)


def test_holes_of_a_lower_an_upper_and_a_copied_up_file(pair: Pair) -> None:
    pair.put("lower", ISLANDS, 2 * MIB)
    pair.put("all-hole", {}, MIB)
    pair.put("empty", {})
    pair.put("whole", {0: PATTERN})
    pair.stack.mount()
    for name in ("lower", "all-hole", "empty", "whole"):
        pair.same(lambda place, name=name: _map(place / name))  # type: ignore[misc]

    def write(place: Path) -> object:
        def islands(fd: int) -> object:
            for offset, data in ISLANDS.items():
                os.pwrite(fd, data, offset)
            os.ftruncate(fd, 3 * MIB)
            os.fsync(fd)
            return extents(fd)

        return using(place / "new", islands, os.O_RDWR | os.O_CREAT)

    def copy_up(place: Path) -> object:
        def change(fd: int) -> object:
            os.pwrite(fd, b"X", 3 * MIB)
            os.fsync(fd)
            return extents(fd)

        return using(place / "lower", change)

    assert pair.same(write) == [(0, 4096), (256 * KIB, 264 * KIB), (MIB, MIB + 4096)]
    pair.same(copy_up)


@pytest.mark.parametrize("where", [os.SEEK_DATA, os.SEEK_HOLE])
def test_seeking_anywhere(where: int, pair: Pair) -> None:
    pair.put("file", ISLANDS, 2 * MIB)
    pair.stack.mount()
    for offset in (0, 1, 4095, 4096, 100 * KIB, MIB, MIB + 1, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 1 << 40, -1):
        pair.same(lambda place, at=offset: using(place / "file", lambda fd: os.lseek(fd, at, where), os.O_RDONLY))  # type: ignore[misc]


def test_seeking_in_a_directory(pair: Pair) -> None:
    pair.stack.mount()
    assert outcome(lambda: using(pair.mount, lambda fd: os.lseek(fd, 0, os.SEEK_SET), os.O_RDONLY)) == 0


# fallocate

RANGES = [(0, 4 * KIB), (4 * KIB, 8 * KIB), (1000, 5000), (60 * KIB, 8 * KIB), (128 * KIB, 64 * KIB), (0, 64 * KIB)]
MODES = {
    "plain": 0,
    "keep-size": KEEP_SIZE,
    "punch-hole": PUNCH_HOLE | KEEP_SIZE,
    "zero-range": ZERO_RANGE,
    "zero-range-keep-size": ZERO_RANGE | KEEP_SIZE,
}


def forget_pages(pair: Pair, fd: int) -> None:
    """A filesystem calls what is allocated and not written a hole, unless pages of it happen to be in memory."""
    path = Path(os.readlink(f"/proc/self/fd/{fd}"))
    if path.is_relative_to(pair.mount):
        path = pair.stack.upper / path.relative_to(pair.mount)
    on_disk = os.open(path, os.O_RDONLY)
    os.posix_fadvise(on_disk, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(on_disk)


def test_fallocate(pair: Pair) -> None:
    cases = [(mode, offset, length) for mode in MODES for offset, length in RANGES]
    for number in range(len(cases)):
        pair.put(f"lower{number}", {0: PATTERN})
    pair.stack.mount()
    for number, (mode, offset, length) in enumerate(cases):
        for kind in ("lower", "upper"):
            name = f"{kind}{number}"
            if kind == "upper":
                pair.same(lambda place, name=name: (place / name).write_bytes(PATTERN))  # type: ignore[misc]

            def allocate(fd: int, mode: str = mode, at: int = offset, length: int = length) -> object:
                done = outcome(lambda: fallocate(fd, MODES[mode], at, length))
                os.fsync(fd)
                forget_pages(pair, fd)
                return done, os.fstat(fd).st_size, extents(fd), os.pread(fd, MIB, 0)

            pair.same(lambda place, name=name, call=allocate: using(place / name, call))  # type: ignore[misc]
            if kind == "upper":  # the marks of a copy take a block of their own
                pair.same(lambda place, name=name: (place / name).stat().st_blocks)  # type: ignore[misc]
    assert all(content(path) == PATTERN for path in pair.stack.lowers[0].iterdir())


def test_fallocate_with_nonsense(pair: Pair) -> None:
    pair.put("file", {0: PATTERN})
    pair.stack.mount()
    for mode, offset, length in ((0, -1, 10), (0, 0, 0), (PUNCH_HOLE, 0, 4096), (0, 0, -5), (0, 1 << 62, 1 << 62)):

        def allocate(place: Path, mode: int = mode, offset: int = offset, length: int = length) -> object:
            return using(place / "file", lambda fd: fallocate(fd, mode, offset, length))

        pair.same(allocate)
    pair.same(lambda place: using(place / "file", lambda fd: fallocate(fd, 0, 0, 10), os.O_RDONLY))
    pair.same(lambda place: content(place / "file"))


# copy_file_range


@pytest.mark.parametrize("source", ["lower", "upper"])
@pytest.mark.parametrize("target", ["other-lower", "other-upper"])
def test_copy_file_range_between_files(source: str, target: str, pair: Pair) -> None:
    pair.put("lower", {0: PATTERN})
    pair.put("other-lower", {0: b"-" * 10_000})
    pair.stack.mount()

    def prepare(place: Path) -> None:
        (place / "upper").write_bytes(PATTERN)
        (place / "other-upper").write_bytes(b"=" * 10_000)

    pair.same(prepare)
    for offset, target_offset, length in (
        (0, 0, 5000),
        (100, 9000, 3000),
        (4096, 65536, 4096),
        (60 * KIB, 0, MIB),
        (64 * KIB, 0, 100),
        (MIB, 0, 100),
        (0, MIB, 10),
        (0, 0, 0),
    ):

        def copy(place: Path, start: int = offset, at: int = target_offset, length: int = length) -> object:
            with open(place / source, "rb") as reader, open(place / target, "r+b") as writer:
                copied = os.copy_file_range(reader.fileno(), writer.fileno(), length, start, at)
            return copied, (place / target).stat().st_size, content(place / target)

        pair.same(copy)
    assert content(pair.stack.lowers[0] / "other-lower") == b"-" * 10_000


def test_copy_file_range_within_a_file(pair: Pair) -> None:
    pair.put("file", {0: PATTERN})
    pair.stack.mount()
    for offset, target_offset, length in ((0, 32 * KIB, 16 * KIB), (100, 64 * KIB, 50), (0, 100, 4096), (0, 0, 10)):

        def copy(place: Path, start: int = offset, at: int = target_offset, length: int = length) -> object:
            path = place / "file"
            copied = using(path, lambda fd: os.copy_file_range(fd, fd, length, start, at))
            return copied, content(path)

        pair.same(copy)
        pair.same(lambda place: content(place / "file"))


def test_copy_file_range_moves_the_offsets(pair: Pair) -> None:
    pair.put("source", {0: PATTERN})
    pair.stack.mount()

    def copy(place: Path) -> object:
        with open(place / "source", "rb", buffering=0) as reader, open(place / "target", "w+b", buffering=0) as writer:
            reader.seek(10)
            counts = [os.copy_file_range(reader.fileno(), writer.fileno(), 30_000) for _ in range(4)]
            return counts, reader.tell(), writer.tell()

    pair.same(copy)
    assert pair.same(lambda place: content(place / "target")) == PATTERN[10:]


def test_copy_file_range_with_wrong_descriptors(pair: Pair) -> None:
    pair.put("file", {0: PATTERN})
    pair.stack.mount()

    def copy(place: Path, flags: int) -> object:
        with open(place / "file", "rb") as reader:
            return using(place / "file", lambda fd: os.copy_file_range(reader.fileno(), fd, 10, 0, 20_000), flags)

    for flags in (os.O_RDONLY, os.O_RDWR | os.O_APPEND):
        pair.same(lambda place, flags=flags: copy(place, flags))  # type: ignore[misc]


def test_cp_copies_holes_and_data(pair: Pair) -> None:
    pair.put("file", ISLANDS, 2 * MIB)
    pair.stack.mount()
    pair.same(lambda place: run("cp", "--sparse=auto", place / "file", place / "copy"))
    pair.same(lambda place: (content(place / "copy"), (place / "copy").stat().st_size))


# O_TMPFILE


def test_tmpfile_with_and_without_a_name(pair: Pair) -> None:
    pair.put("taken", {0: b"lower"})
    (pair.stack.lowers[0] / "directory").mkdir()
    (pair.plain / "directory").mkdir()
    pair.stack.mount()

    def named(place: Path) -> object:
        def use(fd: int) -> object:
            os.write(fd, b"temporary")
            before = os.fstat(fd).st_nlink, oct(os.fstat(fd).st_mode)
            name_descriptor(fd, place / "directory/named")
            taken = outcome(lambda: name_descriptor(fd, place / "taken"))
            os.write(fd, b" and more")
            return before, taken, os.fstat(fd).st_nlink

        return using(place / "directory", use, os.O_TMPFILE | os.O_RDWR)

    def nameless(place: Path) -> object:
        def use(fd: int) -> object:
            os.write(fd, b"temporary")
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, 4)
            return os.pread(fd, 100, 0), outcome(lambda: name_descriptor(fd, place / "never"))

        return using(place, use, os.O_TMPFILE | os.O_RDWR | os.O_EXCL)

    assert pair.same(named) == ((0, oct(stat.S_IFREG | 0o644)), "EEXIST", 1)
    assert pair.same(nameless) == (b"temp", "ENOENT")
    for place in ("", "directory"):
        pair.same(lambda root, place=place: sorted(os.listdir(root / place)))  # type: ignore[misc]
    assert pair.same(lambda place: content(place / "directory/named")) == b"temporary and more"
    assert not os.listdir(pair.stack.work / "work"), "a file without a name has been left in the workdir"
    pair.stack.remount()
    pair.same(lambda place: content(place / "directory/named"))


def test_tmpfile_outlives_its_directory(pair: Pair) -> None:
    pair.stack.mount()

    def use(place: Path) -> object:
        (place / "gone").mkdir()
        fd = os.open(place / "gone", os.O_TMPFILE | os.O_RDWR)
        try:
            (place / "gone").rmdir()
            os.write(fd, b"still here")
            name_descriptor(fd, place / "named")
            return os.pread(fd, 100, 0)
        finally:
            os.close(fd)

    assert pair.same(use) == b"still here"
    pair.same(lambda place: content(place / "named"))


def test_tmpfile_is_refused_where_nothing_can_be_made(pair: Pair) -> None:
    pair.put("file", {})
    pair.stack.mount()
    pair.same(lambda place: using(place / "file", os.fstat, os.O_TMPFILE | os.O_RDWR))
    pair.same(lambda place: using(place / "missing", os.fstat, os.O_TMPFILE | os.O_RDWR))
    pair.stack.remount("ro")
    assert outcome(lambda: using(pair.mount, os.fstat, os.O_TMPFILE | os.O_RDWR)) == "EROFS"


# File flags


def test_flags_are_shown_and_set(pair: Pair) -> None:
    pair.put("lower", {0: b"lower"})
    pair.stack.mount()

    def make(place: Path) -> None:
        (place / "upper").write_bytes(b"upper")
        (place / "directory").mkdir()

    def change(path: Path) -> object:
        before = file_flags(path)
        set_file_flags(path, before | NODUMP)
        during = file_flags(path)
        set_file_flags(path, before)
        return before, during, file_flags(path)

    pair.same(make)
    for name in ("lower", "upper", "directory"):
        pair.same(lambda place, name=name: file_flags(place / name))  # type: ignore[misc]
        pair.same(lambda place, name=name: change(place / name))  # type: ignore[misc]
    assert content(pair.mount / "lower") == b"lower"
    assert (pair.stack.upper / "lower").exists()


def test_immutable_file_does_not_change(pair: Pair) -> None:
    pair.stack.mount()

    def attempts(place: Path) -> object:
        path = place / "file"
        path.write_bytes(b"kept")
        before = file_flags(path)
        set_file_flags(path, before | IMMUTABLE)
        try:
            return [
                outcome(lambda: using(path, lambda fd: os.write(fd, b"changed"))),
                outcome(lambda: os.truncate(path, 0)),
                outcome(path.unlink),
                outcome(lambda: path.rename(place / "moved")),
                outcome(lambda: path.chmod(0o600)),
                outcome(lambda: os.link(path, place / "hard")),
                content(path),
            ]
        finally:
            set_file_flags(path, before)

    pair.same(attempts)
    pair.same(lambda place: sorted(os.listdir(place)))


def test_programs_for_flags(pair: Pair) -> None:
    pair.put("file", {0: b"lower"})
    pair.stack.mount()
    pair.same(lambda place: run("chattr", "+d", place / "file"))
    pair.same(lambda place: run("lsattr", place / "file").split()[0])


def test_other_ioctls_are_not_for_files(pair: Pair) -> None:
    pair.put("file", {0: b"lower"})
    pair.stack.mount()
    read_one, no_data = 0x80046655, 0x6656
    for command in (read_one, no_data, 0x5401, 0x40046657):
        ask = lambda fd, command=command: fcntl.ioctl(fd, command, bytearray(64))  # noqa: E731
        assert pair.same(lambda place, ask=ask: using(place / "file", ask, os.O_RDONLY)) == "ENOTTY"  # type: ignore[misc]
        assert outcome(lambda ask=ask: using(pair.mount, ask, os.O_RDONLY)) == "ENOTTY"  # type: ignore[misc]
    pair.same(lambda place: using(place / "file", lambda fd: fcntl.ioctl(fd, FSGETXATTR, bytes(28))[:4], os.O_RDONLY))


# Birth times


def test_birth_time_is_that_of_the_file_below(pair: Pair) -> None:
    pair.put("lower", {0: b"lower"})
    pair.stack.mount()
    (pair.mount / "upper").write_bytes(b"upper")
    (pair.mount / "directory").mkdir()
    os.symlink("x", pair.mount / "link")
    for name, layer in (
        ("lower", pair.stack.lowers[0]),
        ("upper", pair.stack.upper),
        ("directory", pair.stack.upper),
        ("link", pair.stack.upper),
    ):
        found, below = statx(pair.mount / name), statx(layer / name)
        assert found.birth_ns == below.birth_ns
        assert (found.mode, found.uid, found.gid) == (below.mode, below.uid, below.gid)
        info = (pair.mount / name).lstat()
        assert (found.ino, found.nlink, found.size) == (info.st_ino, info.st_nlink, info.st_size)


def test_birth_time_of_an_unlinked_file(pair: Pair) -> None:
    pair.stack.mount()
    (pair.mount / "file").write_bytes(b"x")
    born = statx(pair.mount / "file").birth_ns
    fd = os.open(pair.mount / "file", os.O_RDWR)
    try:
        (pair.mount / "file").unlink()
        buffer = ctypes.create_string_buffer(256)
        assert ctypes.CDLL(None).statx(fd, b"", 0x1000, 0xFFF, buffer) == 0
        seconds = int.from_bytes(buffer.raw[80:88], "little")
        assert seconds == born // 1_000_000_000
    finally:
        os.close(fd)


# Durability


def test_sync_and_syncfs_succeed(pair: Pair) -> None:
    pair.put("lower", {0: b"lower"})
    pair.stack.mount()
    with open(pair.mount / "lower", "ab", buffering=0) as file:
        file.write(b" and more")
        syncfs(file.fileno())
        os.sync()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    assert using(pair.mount, os.fsync, os.O_RDONLY) is None
    assert content(pair.stack.upper / "lower") == b"lower and more"


# rename with flags


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_NOREPLACE | RENAME_EXCHANGE, 8])
@pytest.mark.parametrize("old", ["lower", "upper", "missing", "directory"])
@pytest.mark.parametrize("new", ["other-lower", "other-upper", "missing-too", "other-directory"])
def test_rename_with_flags(
    old: str, new: str, flags: int, memory_pair: Callable[[], Pair], request: pytest.FixtureRequest
) -> None:
    pair = memory_pair()
    case = f"{old}-{new}-{flags}"
    pair.same(lambda place: outcome(lambda: renameat2(place / case / old, place / case / new, flags)))

    def names(place: Path) -> object:
        root = place / case
        return [(str(path.relative_to(root)), path.is_dir() or content(path)) for path in sorted(root.rglob("*"))]

    pair.same(names)


@pytest.fixture(scope="module")
def memory_pair() -> Iterator[Callable[[], Pair]]:
    """One mount for all the renames; each has a directory of its own."""
    base = Path(tempfile.mkdtemp(prefix="overlayfs-lane-", dir="/dev/shm"))
    stack, plain = Stack.make(base), base / "plain"
    for old in ("lower", "upper", "missing", "directory"):
        for new in ("other-lower", "other-upper", "missing-too", "other-directory"):
            for flags in (0, 1, 2, 3, 8):
                for root in (stack.lowers[0], plain):
                    place = root / f"{old}-{new}-{flags}"
                    place.mkdir(parents=True)
                    for name in ("lower", "other-lower"):
                        (place / name).write_bytes(name.encode())
                    (place / "directory").mkdir()
                    (place / "directory/inside").write_bytes(b"inside")
                    (place / "other-directory").mkdir()
    stack.mount()
    for root in (stack.place, plain):
        for place in list(root.iterdir()):
            for name in ("upper", "other-upper"):
                (place / name).write_bytes(name.encode())
    try:
        yield lambda: Pair(stack, plain)
    finally:
        stack.unmount()
        shutil.rmtree(base, ignore_errors=True)


def test_rename_that_asks_for_a_whiteout_is_refused(pair: Pair) -> None:
    pair.put("file", {0: b"lower"})
    pair.stack.mount()
    with pytest.raises(OSError, match="Invalid argument"):
        renameat2(pair.mount / "file", pair.mount / "moved", RENAME_WHITEOUT)
    assert os.listdir(pair.mount) == ["file"]
    pair.stack.remount()
    assert os.listdir(pair.mount) == ["file"]
