"""Large, many and scarce: layers, names, inodes, descriptors, clients; and a daemon that is stopped or fails."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.mounted.actors import Who, as_actor, fork
from tests.mounted.program import has_ended, mounts_beneath, wait_for_mounts
from tests.mounted.stack import REPOSITORY, Stack, make_tree
from tests.property.paths import unmount

Breakable = tuple[Stack, Path]
ROOT = Who(0, 0)
PATIENCE_S = 60.0


def until(is_so: Callable[[], bool]) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {PATIENCE_S} s"


# Many layers, many names


def test_500_layers_list_right(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(500)
    for number, lower in enumerate(stack.lowers):
        make_tree(lower, [f"only{number}", f"shared/in{number}", "everywhere"], str(number).encode())
    (stack.lowers[250] / "only499").mkdir()
    stack.mount()
    assert sorted(os.listdir(stack.place)) == sorted(["everywhere", "shared", *(f"only{n}" for n in range(500))])
    assert sorted(os.listdir(stack.place / "shared")) == sorted(f"in{number}" for number in range(500))
    assert (stack.place / "everywhere").read_bytes() == b"0"
    assert (stack.place / "only498").read_bytes() == b"498"
    assert (stack.place / "only499").is_dir()
    (stack.place / "shared/in499").write_bytes(b"changed")
    (stack.place / "shared/in0").unlink()
    stack.remount()
    assert (stack.place / "shared/in499").read_bytes() == b"changed"
    assert len(os.listdir(stack.place / "shared")) == 499


def test_huge_directory_lists_in_one_pass(stack: Stack, long: bool) -> None:
    count = 100_000 if long else 10_000
    directory = stack.lowers[0] / "huge"
    directory.mkdir()
    wanted = {f"a rather long name for the file with the number {number:09d}" for number in range(count)}
    for name in wanted:
        os.close(os.open(directory / name, os.O_CREAT | os.O_WRONLY))
    stack.mount()
    found = os.listdir(stack.place / "huge")
    assert len(found) == count
    assert set(found) == wanted


def test_directory_that_changes_while_it_is_read_lists_the_rest_once(stack: Stack) -> None:
    names = [f"name{number:05d}" for number in range(5000)]
    make_tree(stack.lowers[0] / "d", names[::2])
    make_tree(stack.upper / "d", names[1::2])
    stack.mount()
    place = stack.place / "d"
    found: list[str] = []
    with os.scandir(place) as entries:
        for entry in entries:
            found.append(entry.name)
            if len(found) % 100 == 1:
                (place / f"new{len(found)}").write_bytes(b"")
                (place / found[-1]).unlink()
    kept = [name for name in found if name.startswith("name")]
    assert sorted(kept) == names
    assert len(set(found)) == len(found)


def test_long_names_and_paths(stack: Stack) -> None:
    stack.mount()
    name = "n" * 255
    (stack.place / name).write_bytes(b"255")
    with pytest.raises(OSError, match="too long") as caught:
        (stack.place / f"{name}n").write_bytes(b"256")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert os.statvfs(stack.place).f_namemax == 255
    deepest = _nested_directories(stack.place, name, 20)
    try:
        descriptor = os.open("file", os.O_CREAT | os.O_RDWR, dir_fd=deepest)
        assert os.write(descriptor, b"deep") == os.fstat(descriptor).st_size
        os.close(descriptor)
        assert os.listdir(deepest) == ["file"]
    finally:
        os.close(deepest)


def _nested_directories(place: Path, name: str, depth: int) -> int:
    """A descriptor of the last of `depth` directories inside each other: longer than any path."""
    current = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(f"d{name[1:]}", dir_fd=current)
        inner = os.open(f"d{name[1:]}", os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
        os.close(current)
        current = inner
    return current


# Memory


def test_live_inode_costs_less_than_a_kibibyte_and_is_given_back(stack: Stack, long: bool) -> None:
    count = 100_000 if long else 8_000
    rounds = ("one", "two", "three") if long else ("one", "two")
    for name in rounds:
        make_tree(stack.lowers[0], [f"{name}/directory{number % 20}/file{number}" for number in range(count)])
    make_tree(stack.lowers[0], [f"warm/file{number}" for number in range(2000)])
    stack.mount()
    _look_at_all(stack.place / "warm")
    at_first = stack.rss
    for name in rounds:
        _look_at_all(stack.place / name)
        assert stack.status["inodes"] >= count
        # what the first round took serves the others
        assert (stack.rss - at_first) / count < 1024
        stack.forget()
        until(lambda: stack.status["inodes"] < count // 20)


def _look_at_all(place: Path) -> None:
    for directory, _, files in os.walk(place):
        for name in files:
            os.lstat(os.path.join(directory, name))


# Descriptors


def test_live_daemon_goes_on_with_24_descriptors(stack: Stack) -> None:
    names = [f"d{number % 40}/sub/file{number}" for number in range(400)]
    make_tree(stack.lowers[0], names, b"lower")
    stack.mount()
    resource.prlimit(stack.pid, resource.RLIMIT_NOFILE, (24, 24))
    with ExitStack() as closing:
        files = [closing.enter_context(open(stack.place / name, "r+b", buffering=0)) for name in names]
        for number, file in enumerate(files):
            assert file.read() == b"lower"
            if number % 2:
                file.write(b" and more")
    for number, name in enumerate(names):
        assert (stack.place / name).read_bytes() == (b"lower and more" if number % 2 else b"lower")
        os.rename(stack.place / name, stack.place / f"{name}-renamed")
    assert len(os.listdir(stack.place / "d7/sub")) == 10
    assert stack.status["pid"] == stack.pid


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """This process may open as many files as it is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_thousands_of_files_are_open_though_the_daemon_may_have_1024(stack: Stack, long: bool) -> None:
    names = [f"file{number}" for number in range(3000 if long else 2000)]
    make_tree(stack.lowers[0], names, b"lower")
    stack.mount()
    resource.prlimit(stack.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    descriptors = [
        os.open(stack.place / name, os.O_RDWR if number % 3 else os.O_RDONLY) for number, name in enumerate(names)
    ]
    try:
        for number, descriptor in enumerate(descriptors):
            assert os.pread(descriptor, 100, 0) == b"lower"
            if number % 3:
                assert os.pwrite(descriptor, b"UPPER", 0) == 5
        for number, descriptor in enumerate(descriptors):
            assert os.pread(descriptor, 100, 0) == (b"UPPER" if number % 3 else b"lower")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


# Clients


def _busy_client(place: Path, number: int, turns: int) -> None:
    """Work in a directory of its own and, with names of its own, in a shared one; leaves what `_expected` says."""
    own = place / f"own{number}"
    own.mkdir()
    for turn in range(turns):
        (own / f"file{turn}").write_bytes(b"x" * turn * 100)
        shared = place / "shared" / f"{number}-{turn}"
        shared.write_bytes(str(turn).encode())
        with open(place / "log", "ab", buffering=0) as log:
            log.write(f"{number} {turn}\n".encode())
        assert (place / f"shared/lower{turn}").read_bytes() == b"lower"
        if turn % 2:
            shared.rename(own / f"moved{turn}")
            (own / f"file{turn}").unlink()
        os.listdir(place / "shared")


def test_16_clients_at_once(stack: Stack, long: bool) -> None:
    turns = 30 if long else 10
    make_tree(stack.lowers[0], [f"shared/lower{turn}" for turn in range(turns)], b"lower")
    (stack.lowers[0] / "log").write_bytes(b"")
    stack.mount("volatile")
    pids = [fork(lambda number=number: _busy_client(stack.place, number, turns)) for number in range(16)]  # type: ignore[misc]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 16
    for number in range(16):
        kept = {f"file{turn}" for turn in range(0, turns, 2)} | {f"moved{turn}" for turn in range(1, turns, 2)}
        assert set(os.listdir(stack.place / f"own{number}")) == kept
    assert len(os.listdir(stack.place / "shared")) == turns + 16 * (turns // 2)
    lines = (stack.place / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{number} {turn}" for number in range(16) for turn in range(turns))


# Large files

GIB = 1 << 30


@pytest.mark.parametrize("change", ["chmod", "append", "write-in-the-middle"])
def test_sparse_file_over_4_gib_keeps_its_holes_in_copy_up(change: str, stack: Stack) -> None:
    lower = stack.lowers[0] / "sparse"
    islands = {0: b"head", 4 * GIB - 2: b"across", 5 * GIB: b"tail"}
    with open(lower, "wb") as file:
        for offset, data in islands.items():
            file.seek(offset)
            file.write(data)
    size = lower.stat().st_size
    stack.mount()
    place = stack.place / "sparse"
    match change:
        case "chmod":
            place.chmod(0o600)
        case "append":
            with open(place, "ab") as file:
                file.write(b"appended")
        case _:
            with open(place, "r+b") as file:
                file.seek(3 * GIB)
                file.write(b"middle")
            islands[3 * GIB] = b"middle"
    upper = stack.upper / "sparse"
    assert upper.stat().st_blocks * 512 < 1 << 20
    assert place.stat().st_size == size + (8 if change == "append" else 0)
    with open(place, "rb") as file:
        for offset, data in islands.items():
            file.seek(offset)
            assert file.read(len(data)) == data
        file.seek(2 * GIB)
        assert file.read(1 << 20) == bytes(1 << 20)


# A daemon that is stopped, ended or killed

MOST_WRITTEN = 10_000


def _writer(place: Path, ready: int) -> None:
    """Write files and say so after each fsync, until something fails."""
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)  # the mount's, also when that is gone
    for number in range(MOST_WRITTEN):
        file = os.open(f"written{number}", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
        os.write(file, f"content {number}".encode())
        os.fsync(file)
        os.close(file)
        os.write(ready, b".")


def _start_writer(place: Path) -> tuple[int, int]:
    """Its pid, and a pipe that has a byte for each file that must not be lost."""
    reading, writing = os.pipe()
    pid = fork(lambda: _writer(place, writing))
    os.close(writing)
    return pid, reading


def _fsynced(reading: int) -> int:
    """How many files the writer, which has ended, has fsynced."""
    count = 0
    while data := os.read(reading, 1 << 16):
        count += len(data)
    os.close(reading)
    return count


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_daemon_that_is_ended_under_load_loses_nothing_fsynced(signal_number: int, stack: Stack) -> None:
    stack.mount()
    pidfd = os.pidfd_open(stack.pid)
    pid, reading = _start_writer(stack.place)
    assert len(os.read(reading, 1)) == 1
    signal.pidfd_send_signal(pidfd, signal_number)
    assert has_ended(pidfd)
    os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    assert os.WEXITSTATUS(status) == 1
    if signal_number != signal.SIGKILL:
        wait_for_mounts(lambda: not mounts_beneath(stack.base))
    stack.remount()
    count = 1 + _fsynced(reading)
    for number in range(count):
        assert (stack.place / f"written{number}").read_bytes() == f"content {number}".encode()
    assert not list(stack.work.glob("work/*"))


def test_stopped_daemon_keeps_clients_waiting_and_goes_on(stack: Stack) -> None:
    make_tree(stack.lowers[0], ["file"], b"lower")
    stack.mount()
    pidfd = os.pidfd_open(stack.pid)
    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    reading, writing = os.pipe()
    pid = fork(lambda: os.write(writing, (stack.place / "file").read_bytes()))
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 10)
    signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    os.close(pidfd)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(reading, 10) == b"lower"
    os.close(reading)
    os.close(writing)


def test_client_that_waits_for_a_stopped_daemon_can_be_killed(stack: Stack) -> None:
    make_tree(stack.lowers[0], ["file"], b"lower")
    stack.mount()
    pidfd = os.pidfd_open(stack.pid)
    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    pid = fork((stack.place / "file").read_bytes)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    os.close(pidfd)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert (stack.place / "file").read_bytes() == b"lower"


# A handler that fails

BREAKABLE = """
import os, sys
from overlayfs.fuse import lane
from overlayfs.overlay import engine
from overlayfs.overlay.engine import Overlay
from overlayfs.cli.mount_program import main

trigger = os.fsencode(sys.argv.pop(1))

def breakable(name, method):
    def call(*arguments, **keywords):
        if os.path.exists(trigger + name.encode()):
            raise ZeroDivisionError(name)
        return method(*arguments, **keywords)
    return call

methods = {name: breakable(name, getattr(Overlay, name)) for name in sys.argv.pop(1).split(",")}
engine.Overlay = type("BreakableOverlay", (Overlay,), methods)
sys.exit(main())
"""

USES: dict[str, Callable[[Path], object]] = {
    "find": lambda place: (place / "other").stat(),
    "setattr": lambda place: (place / "file").chmod(0o600),
    "readlink": lambda place: os.readlink(place / "link"),
    "symlink": lambda place: (place / "new-link").symlink_to("x"),
    "link": lambda place: os.link(place / "file", place / "hard"),
    "mknod": lambda place: os.mkfifo(place / "fifo"),
    "mkdir": lambda place: (place / "directory").mkdir(),
    "unlink": lambda place: (place / "victim").unlink(),
    "rmdir": lambda place: (place / "empty").rmdir(),
    "rename": lambda place: (place / "mover").rename(place / "moved"),
    "create": lambda place: (place / "made").write_bytes(b"x"),
    "open_file": lambda place: (place / "file").read_bytes(),
    "read_into": lambda place: (place / "file").read_bytes(),
    "write": lambda place: (place / "written").write_bytes(b"x"),
    "opendir": lambda place: os.listdir(place / "d"),
    "fill": lambda place: os.listdir(place / "d"),
    "statfs": os.statvfs,
    "find_xattr": lambda place: os.getxattr(place / "file", "user.x"),
    "listxattr": lambda place: os.listxattr(place / "file"),
    "setxattr": lambda place: os.setxattr(place / "file", "user.y", b"y"),
    "removexattr": lambda place: os.removexattr(place / "file", "user.x"),
    "pin_to_sync": lambda place: _fsync(place / "file"),
}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The lane has the kernel not ask for these.
ONLY_WITHOUT_LANE = ("open_file", "opendir")


def _broken_methods() -> list[object]:
    """Each method with the lane and without; without it only those that differ, unless the run is a long one."""
    return [
        *(("on", method) for method in USES if method not in ONLY_WITHOUT_LANE),
        *(("off", method) for method in (*ONLY_WITHOUT_LANE, "read_into")),
        *(
            pytest.param("off", method, marks=pytest.mark.long)
            for method in USES
            if method not in (*ONLY_WITHOUT_LANE, "read_into")
        ),
    ]


def _make_used(directory: Path) -> None:
    make_tree(directory, ["file", "other", "victim", "mover", "written", "d/f", "empty/"], b"content")
    (directory / "link").symlink_to("file")
    os.setxattr(directory / "file", "user.x", b"x")


@contextmanager
def _serving(base: Path, lane: str) -> Iterator[Breakable]:
    """A mount whose engine fails in a method while a file of that name lies in a directory, and its log.

    Each method has a directory of its own in it: what the kernel remembers of another would not be asked for.
    """
    base.mkdir()
    stack = Stack.make(base)
    for method in USES:
        _make_used(stack.lowers[0] / method)
    triggers, log = stack.base / "triggers", stack.base / "log"
    triggers.mkdir()
    command = [
        sys.executable,
        "-c",
        BREAKABLE,
        f"{triggers}/",
        ",".join(USES),
        "-f",
        "-o",
        f"{stack.options},lane={lane}",
        str(stack.place),
    ]
    with open(log, "wb") as errors, subprocess.Popen(command, cwd=REPOSITORY, stderr=errors) as daemon:
        wait_for_mounts(lambda: bool(mounts_beneath(stack.base)))
        yield stack, log
        unmount(stack.place)
        assert daemon.wait(timeout=PATIENCE_S) == 0


@pytest.fixture(scope="module")
def serving(module_scratch: Path) -> Iterator[Callable[[str], Breakable]]:
    """The mount with the lane on or off, made when it is first asked for."""
    with ExitStack() as at_end:
        yield cache(lambda lane: at_end.enter_context(_serving(module_scratch / lane, lane)))


@pytest.mark.parametrize(("lane", "method"), _broken_methods())
def test_handler_that_fails_is_eio_and_the_mount_lives(
    lane: str, method: str, serving: Callable[[str], Breakable]
) -> None:
    stack, log = serving(lane)
    directory = stack.place / method
    directory.stat()
    said_before = log.stat().st_size
    trigger = stack.base / "triggers" / method
    trigger.touch()
    broken = as_actor(ROOT, lambda: (USES[method](directory), "no error")[1])
    assert broken == "EIO"
    trigger.unlink()
    healed = as_actor(ROOT, lambda: (USES[method](directory), "no error")[1])
    assert healed == "no error"
    text = log.read_bytes()[said_before:].decode()
    assert "Traceback" in text
    assert f"ZeroDivisionError: {method}" in text
