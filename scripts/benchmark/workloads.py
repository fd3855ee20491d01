"""What does a client do that no standard program does: run as a process of its own, imported by nobody.

Protocol: the name is the argument; a line of JSON (keyword arguments) comes on stdin; the workload
prepares; a line "go" starts the clock; `[seconds, answer]` goes to stdout as JSON, below 64 KiB. Only the
closure that a workload returns is timed, so preparing, starting and checking cost nothing.
"""

import hashlib
import json
import os
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterator

Timed = Callable[[], object]
PAGE = 4096
STAMP = 8
"""Each 4 KiB page of the big file begins with its own number, 8 bytes little-endian (layers.py writes it)."""


def open_read_close(paths: list[str], times: int) -> Timed:
    """Bytes read by `times` openings, going round the (small) files."""

    def timed() -> int:
        total = 0
        for number in range(times):
            descriptor = os.open(paths[number % len(paths)], os.O_RDONLY)
            total += len(os.read(descriptor, 65536))
            os.close(descriptor)
        return total

    return timed


def read_sequentially(path: str) -> Timed:
    """Bytes of a file, read in 1 MiB pieces into one buffer."""
    buffer = bytearray(1 << 20)

    def timed() -> int:
        total = 0
        descriptor = os.open(path, os.O_RDONLY)
        while got := os.readv(descriptor, [buffer]):
            total += got
        os.close(descriptor)
        return total

    return timed


def read_randomly(path: str, pages: list[int]) -> Timed:
    """How many of the pages carried their own number."""
    buffer = bytearray(PAGE)
    descriptor = os.open(path, os.O_RDONLY)

    def timed() -> int:
        right = 0
        for page in pages:
            os.preadv(descriptor, [buffer], page * PAGE)
            right += int.from_bytes(buffer[:STAMP], "little") == page
        return right

    return timed


def write_sequentially(path: str, size: int, block: int) -> Timed:
    """A new file of `size` bytes in `block`-sized writes, and its close."""
    piece = bytes(range(256)) * (block // 256)

    def timed() -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        for _ in range(size // block):
            os.write(descriptor, piece)
        os.close(descriptor)

    return timed


def append(paths: list[str], line: str) -> Timed:
    """One line at the end of each file."""
    data = line.encode()

    def timed() -> None:
        for path in paths:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, data)
            os.close(descriptor)

    return timed


def change_first_byte(path: str) -> Timed:
    """One byte written to a big file, which therefore has to be copied up."""

    def timed() -> None:
        descriptor = os.open(path, os.O_WRONLY)
        os.pwrite(descriptor, b"\xff", 0)
        os.close(descriptor)

    return timed


def commit(path: str, times: int, journal: str) -> Timed:
    """Rows in the table after `times` transactions of one row each, SQLite's other settings as they come."""
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute("CREATE TABLE entries (number INTEGER PRIMARY KEY, text TEXT)")

    def timed() -> int:
        for number in range(times):
            connection.execute("BEGIN")
            connection.execute("INSERT INTO entries VALUES (?, ?)", (number, "x" * 100))
            connection.execute("COMMIT")
        return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])

    return timed


def entries(root: str) -> Iterator[os.DirEntry[str]]:
    """Everything below `root` but marks that an upper may hold; an unreadable directory is an error."""
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                if entry.name.startswith(".wh."):
                    continue
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def count(root: str) -> Timed:
    """How many entries there are below `root`."""
    return lambda: sum(1 for _ in entries(root))


def modes_without(root: str, bits: int) -> Timed:
    """[how many entries below `root` are no symlinks, how many of these lack a bit of `bits`].

    Files with several names may lack it: fuse-overlayfs changes one name and leaves the others.
    """

    def timed() -> list[int]:
        found = [entry.stat(follow_symlinks=False) for entry in entries(root) if not entry.is_symlink()]
        single = [status for status in found if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1]
        return [len(found), sum(1 for status in single if status.st_mode & bits != bits)]

    return timed


def checksum(path: str) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            value = zlib.crc32(piece, value)
    return value


def file_checksum(path: str) -> Timed:
    return lambda: checksum(path)


def digest(root: str) -> Timed:
    """[regular files below `root`, one digest of all their names and contents]."""

    def timed() -> list[object]:
        files = sorted(entry.path for entry in entries(root) if entry.is_file(follow_symlinks=False))
        total = hashlib.sha256()
        for path in files:
            total.update(f"{checksum(path)} {os.path.relpath(path, root)}\n".encode(errors="surrogateescape"))
        return [len(files), total.hexdigest()]

    return timed


WORKLOADS: dict[str, Callable[..., Timed]] = {
    workload.__name__: workload
    for workload in (
        open_read_close,
        read_sequentially,
        read_randomly,
        write_sequentially,
        append,
        change_first_byte,
        commit,
        count,
        modes_without,
        file_checksum,
        digest,
    )
}


def main() -> None:
    timed = WORKLOADS[sys.argv[1]](**json.loads(sys.stdin.readline()))
    sys.stdin.readline()
    begin = time.perf_counter()
    answer = timed()
    seconds = time.perf_counter() - begin
    json.dump([seconds, answer], sys.stdout)


if __name__ == "__main__":
    main()
