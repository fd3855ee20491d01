"""Random changes of one file by every way there is, compared with a model in memory after each."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.calls import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate, outcome
from tests.mounted.stack import Stack

LARGEST = 192 << 10
AT_ONCE = 24 << 10
PAGE = mmap.PAGESIZE
MODES = {
    "default": (),
    "lane=off": ("lane=off",),
    "writeback=1": ("writeback=1",),
    "passthrough=on": ("passthrough=on",),
}
# Where the layers lie, and how often a default run changes the file there.
PLACES = {"memory": ("/dev/shm", 500), "disk": (None, 250)}


class Mismatch(AssertionError):
    """The file is not what the model says."""


class Exerciser:
    """The file `name` in `place`, what it must hold, and the descriptors that are open on it.

    `model` is the content; `log` the operations so far. `twice` is a second descriptor, with O_APPEND.
    """

    def __init__(self, place: Path, seed: int, content: bytes) -> None:
        self.place = place
        self.path = place / "file"
        self.random = random.Random(seed)
        self.seed = seed
        self.model = bytearray(content)
        self.log: list[str] = []
        self.fd = self.appending = self.direct = -1
        self.open()

    def open(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR)
        self.appending = os.open(self.path, os.O_RDWR | os.O_APPEND)
        found = outcome(lambda: os.open(self.path, os.O_RDWR | os.O_DIRECT))
        self.direct = found if isinstance(found, int) else -1

    def close(self) -> None:
        for fd in (self.fd, self.appending, self.direct):
            if fd >= 0:
                os.close(fd)
        self.fd = self.appending = self.direct = -1

    # Choosing

    def _range(self) -> tuple[int, int]:
        """An offset, often on a page's edge, and a length that is not 0."""
        offset = self.random.randrange(LARGEST)
        if self.random.random() < 0.3:
            offset -= offset % PAGE
        return offset, min(self.random.randrange(1, AT_ONCE), LARGEST - offset)

    def _inside(self) -> tuple[int, int] | None:
        """A range that is in the file."""
        if not self.model:
            return None
        offset = self.random.randrange(len(self.model))
        return offset, min(self.random.randrange(1, AT_ONCE), len(self.model) - offset)

    def _data(self, length: int) -> bytes:
        return self.random.randbytes(length)

    # The model

    def _put(self, offset: int, data: bytes) -> None:
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def _resize(self, size: int) -> None:
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    # Operations

    def read(self) -> None:
        offset, length = self._range()
        self._equal(os.pread(self.random.choice((self.fd, self.appending)), length, offset), offset, length)

    def _equal(self, found: bytes, offset: int, length: int) -> None:
        expected = bytes(self.model[offset : offset + length])
        if found == expected:
            return
        if len(found) != len(expected):
            raise Mismatch(f"{len(found)} bytes at {offset}, not {len(expected)}")
        first = next(at for at, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        count = sum(a != b for a, b in zip(found, expected, strict=True))
        raise Mismatch(f"{count} of {length} bytes differ, first at {offset + first}: {found[first : first + 8]!r}")

    def write(self) -> None:
        offset, length = self._range()
        data = self._data(length)
        assert os.pwrite(self.fd, data, offset) == length
        self._put(offset, data)

    def append(self) -> None:
        data = self._data(min(self.random.randrange(1, AT_ONCE), LARGEST - len(self.model)))
        if data:
            assert os.write(self.appending, data) == len(data)
            self._put(len(self.model), data)

    def truncate(self) -> None:
        size = self.random.randrange(LARGEST)
        self._resize(size)
        if self.random.random() < 0.5:
            os.truncate(self.path, size)
        else:
            os.ftruncate(self.random.choice((self.fd, self.appending)), size)

    def open_with_truncation(self) -> None:
        os.close(os.open(self.path, os.O_WRONLY | os.O_TRUNC))
        self._resize(0)

    def map_and_read(self) -> None:
        if self.model:
            access = self.random.choice((mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE))
            with mmap.mmap(self.fd, len(self.model), mmap.MAP_SHARED, access) as mapping:
                offset, length = self._inside() or (0, 0)
                self._equal(mapping[offset : offset + length], offset, length)

    def map_and_write(self) -> None:
        inside = self._inside()
        if inside is None:
            return
        offset, length = inside
        data = self._data(length)
        with mmap.mmap(self.fd, len(self.model)) as mapping:
            mapping[offset : offset + length] = data
            if self.random.random() < 0.5:
                mapping.flush()
            self._put(offset, data)
            if self.random.random() < 0.5:  # while it is dirty
                self._equal(os.pread(self.appending, length, offset), offset, length)

    def map_privately(self) -> None:
        inside = self._inside()
        if inside is None:
            return
        offset, length = inside
        with mmap.mmap(self.fd, len(self.model), mmap.MAP_PRIVATE) as mapping:
            self._equal(mapping[offset : offset + length], offset, length)
            mapping[offset : offset + length] = self._data(length)  # nobody else sees that

    def allocate(self) -> None:
        offset, length = self._range()
        mode = self.random.choice((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE))
        refused = outcome(lambda: fallocate(self.fd, mode, offset, length))
        self.log[-1] += f" mode {mode:#x} at {offset}, {length} bytes: {refused}"
        if refused == "ENOTSUP":
            return
        assert refused is None
        if not mode & KEEP_SIZE and offset + length > len(self.model):
            self._resize(offset + length)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            end = min(offset + length, len(self.model))
            self.model[offset:end] = bytes(max(end - offset, 0))

    def copy_range(self) -> None:
        inside = self._inside()
        if inside is None:
            return
        start, length = inside
        at = self.random.randrange(LARGEST - length)
        if start < at + length and at < start + length:
            return  # the kernel refuses to copy a range onto itself
        copied = os.copy_file_range(self.fd, self.fd, length, start, at)
        self.log[-1] += f" {start} to {at}, {copied} of {length} bytes"
        assert 0 < copied <= length
        self._put(at, bytes(self.model[start : start + copied]))

    def directly(self) -> None:
        """Read or write pages past the page cache, with buffers that are pages themselves."""
        if self.direct < 0:
            return
        offset = self.random.randrange(LARGEST // PAGE) * PAGE
        length = min(self.random.randrange(1, 6) * PAGE, LARGEST - offset)
        with mmap.mmap(-1, length) as buffer:
            if self.random.random() < 0.5:
                count = os.preadv(self.direct, [buffer], offset)
                self._equal(buffer[:count], offset, length)
                return
            data = self._data(length)
            buffer[:] = data
            assert os.pwritev(self.direct, [buffer], offset) == length
            self._put(offset, data)

    def reopen(self) -> None:
        self.close()
        self.open()

    def sync(self) -> None:
        self.random.choice((os.fsync, os.fdatasync))(self.fd)

    def replace(self) -> None:
        """Put another file in its place by rename; what is open stays what it was."""
        data = self._data(self.random.randrange(AT_ONCE))
        (self.place / "next").write_bytes(data)
        os.rename(self.place / "next", self.path)
        offset, length = self._range()
        self._equal(os.pread(self.fd, length, offset), offset, length)
        self.model = bytearray(data)
        self.reopen()

    def move(self) -> None:
        os.rename(self.path, self.place / "moved")
        os.rename(self.place / "moved", self.path)

    # The run

    def check(self, *, whole: bool) -> None:
        for size in (os.fstat(self.fd).st_size, self.path.stat().st_size):
            if size != len(self.model):
                raise Mismatch(f"the size is {size}, not {len(self.model)}")
        if whole:
            self._equal(os.pread(self.fd, LARGEST + 1, 0), 0, LARGEST + 1)

    def run(self, count: int) -> None:
        """Random operations, the size looked at after each and the content, too: what was changed is read."""
        operations: list[tuple[Callable[[], None], int]] = [
            (self.read, 6),
            (self.write, 8),
            (self.append, 3),
            (self.truncate, 3),
            (self.open_with_truncation, 1),
            (self.map_and_read, 4),
            (self.map_and_write, 6),
            (self.map_privately, 2),
            (self.allocate, 4),
            (self.copy_range, 3),
            (self.directly, 5),
            (self.reopen, 1),
            (self.sync, 1),
            (self.replace, 1),
            (self.move, 1),
        ]
        calls, weights = zip(*operations, strict=True)
        for number, call in enumerate(self.random.choices(calls, weights, k=count)):
            self.log.append(f"{number} {call.__name__} of {len(self.model)} bytes")
            try:
                call()
                self.check(whole=True)
            except (Mismatch, OSError, AssertionError) as error:
                tail = "\n  ".join(self.log[-12:])
                raise AssertionError(f"seed {self.seed}: {error!r} after\n  {tail}") from error


@contextlib.contextmanager
def started(where: str | None, content: bytes, *options: str) -> Iterator[Stack]:
    base = Path(tempfile.mkdtemp(prefix="overlayfs-fsx-", dir=where))
    stack = Stack.make(base)
    try:
        (stack.lowers[0] / "file").write_bytes(content)
        yield stack.mount("volatile", *options)
    finally:
        stack.unmount()
        shutil.rmtree(base, ignore_errors=True)


def _exercise(where: str | None, mode: str, seed: int, count: int) -> None:
    print(f"seed {seed}")
    lower = random.Random(-seed).randbytes(100_000)
    with started(where, lower, *MODES[mode]) as stack:
        exerciser = Exerciser(stack.place, seed, lower)
        try:
            exerciser.run(count)
        finally:
            exerciser.close()
        stack.unmount()
        shutil.rmtree(stack.work / "work/incompat", ignore_errors=True)  # it was volatile, and nothing crashed
        stack.mount()
        assert (stack.place / "file").read_bytes() == exerciser.model
        assert (stack.lowers[0] / "file").read_bytes() == lower


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("where", "count"), PLACES.values(), ids=PLACES)
def test_random_changes_of_a_file(mode: str, where: str | None, count: int) -> None:
    _exercise(where, mode, 1, count)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("where", "count"), PLACES.values(), ids=PLACES)
def test_100_000_random_changes_of_a_file(mode: str, where: str | None, count: int) -> None:
    for _ in range(17):
        _exercise(where, mode, random.SystemRandom().randrange(1 << 32), 8 * count)
