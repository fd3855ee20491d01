"""The lane goes on: beside long copies, under many requests at once, without clients that were killed, and at rest."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.actors import Who, as_actor, fork
from tests.mounted.held_file import held_file
from tests.mounted.program import has_ended, mounts_beneath, wait_for_mounts
from tests.mounted.stack import Stack, make_tree, run
from tests.mounted.test_limits import until

MIB = 1 << 20


@pytest.fixture(params=["disk", "memory"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    base = Path(tempfile.mkdtemp(prefix="overlayfs-lane-", dir="/dev/shm" if request.param == "memory" else None))
    base.chmod(0o755)
    stack = Stack.make(base)
    try:
        yield stack
    finally:
        stack.unmount()
        shutil.rmtree(base, ignore_errors=True)


def _put_large(path: Path, size: int) -> None:
    block = random.Random(7).randbytes(MIB)
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(block)


def _append(path: Path, data: bytes = b"!") -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(data)


@pytest.mark.parametrize("options", [(), ("lane=off",)], ids=["default", "lane=off"])
def test_others_are_answered_while_a_large_file_is_copied_up(options: tuple[str, ...], stack: Stack) -> None:
    """The copy cannot end before the others have been answered: its source waits for them."""
    size = 64 * MIB
    count = 200
    stack.lowers.append(stack.base / "held")
    make_tree(stack.lowers[0], [f"d/file{number}" for number in range(count)], b"small")
    with held_file(stack.lowers[-1], size) as held:
        stack.mount(*options)
        pid = fork(lambda: _append(stack.place / "large"))
        held.wait_for_read()
        assert as_actor(Who(0, 0), lambda: _use_others(stack.place, count)) == count
        assert not (stack.upper / "large").exists()
        held.allow()
        assert os.waitpid(pid, 0)[1] == 0
        assert (stack.place / "large").stat().st_size == size + 1
        stack.unmount()


def _use_others(place: Path, count: int) -> int:
    """How many files there are in a directory, each of which was looked for, read, changed or made."""
    for number in range(count):
        assert not (place / f"d/absent{number}").exists()
        assert (place / f"d/file{number}").read_bytes() == b"small"
        _append(place / f"d/file{number}")
        (place / f"new{number}").write_bytes(b"made meanwhile")
    return len(os.listdir(place / "d"))


def test_those_who_need_the_copy_wait_and_the_others_do_not(stack: Stack) -> None:
    _put_large(stack.lowers[0] / "large", 128 * MIB)
    stack.mount()
    large = stack.place / "large"
    pids = [fork(lambda n=number: _append(large, b"%d" % n)) for number in range(4)]  # type: ignore[misc]
    pids += [fork(lambda: os.truncate(large, 200 * MIB)), fork(lambda: os.chmod(large, 0o600))]
    pids += [fork(lambda: os.setxattr(large, "user.a", b"b")), fork(lambda: os.link(large, stack.place / "hard"))]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)
    assert large.stat().st_nlink == 2
    assert stat.S_IMODE(large.stat().st_mode) == 0o600
    assert os.getxattr(stack.place / "hard", "user.a") == b"b"
    assert 200 * MIB <= large.stat().st_size <= 200 * MIB + 4
    with open(large, "rb") as file:
        assert file.read(MIB) == random.Random(7).randbytes(MIB)


@pytest.mark.parametrize("stack", ["memory"], indirect=True)
def test_copy_up_that_does_not_fit_leaves_nothing_and_the_next_works(stack: Stack) -> None:
    _put_large(stack.lowers[0] / "large", 8 * MIB)
    _put_large(stack.lowers[0] / "fits", 2 * MIB)
    small = stack.base / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small)
    try:
        (small / "upper").mkdir()
        (small / "work").mkdir()
        stack.mount(f"upperdir={small}/upper,workdir={small}/work")
        pids = [fork(lambda name=name: _append(stack.place / name)) for name in ("large", "fits")]  # type: ignore[misc]
        assert os.waitpid(pids[0], 0)[1] != 0
        if os.waitpid(pids[1], 0)[1] != 0:  # the other had the room
            _append(stack.place / "fits")
        assert [entry.name for entry in (small / "upper").iterdir()] == ["fits"]
        assert (stack.place / "large").stat().st_size == 8 * MIB
        assert os.statvfs(small).f_bfree * os.statvfs(small).f_frsize > 3 * MIB
        with pytest.raises(OSError, match="No space"):
            _append(stack.place / "large")
    finally:
        stack.unmount()
        run("umount", small)


def test_sigterm_ends_it_in_the_middle_of_a_copy_up(stack: Stack) -> None:
    size = 256 * MIB
    _put_large(stack.lowers[0] / "large", size)
    make_tree(stack.lowers[0], ["file"], b"x")
    stack.mount()
    pidfd = os.pidfd_open(stack.pid)
    place = os.open(stack.place, os.O_RDONLY)
    pid = fork(lambda: _append(stack.place / "large"))
    until(lambda: bool(list(stack.work.glob("work/*"))) or (stack.upper / "large").exists() or _busy(stack))
    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    assert has_ended(pidfd)
    os.close(place)
    os.close(pidfd)
    os.waitpid(pid, 0)
    wait_for_mounts(lambda: not mounts_beneath(stack.base))
    stack.remount()
    assert (stack.place / "large").stat().st_size in (size, size + 1)
    assert not list(stack.work.glob("work/*"))


def _busy(stack: Stack) -> bool:
    """Whether the daemon has read something of the large file: proc(5), io."""
    counters = dict(line.split(": ") for line in Path(f"/proc/{stack.pid}/io").read_text().splitlines())
    return int(counters["rchar"]) > MIB


@pytest.mark.parametrize("stack", ["memory"], indirect=True)
@pytest.mark.parametrize("options", [(), ("poll=10000",), ("lane=off",)], ids=["default", "long-poll", "lane=off"])
def test_idle_daemon_takes_no_time(options: tuple[str, ...], stack: Stack) -> None:
    make_tree(stack.lowers[0], [f"file{number}" for number in range(50)], b"x")
    stack.mount(*options)
    for path in stack.place.iterdir():
        _append(path)
    pid = stack.pid
    pidfd = os.pidfd_open(pid)
    try:
        until(lambda: _is_idle_for_a_second(pid, pidfd))
    finally:
        os.close(pidfd)


def _is_idle_for_a_second(pid: int, pidfd: int) -> bool:
    """Whether no thread of the daemon ran. One that wakes up by itself runs in each second, however often one looks;
    on a machine with much to do the last request's work may take a while to end."""
    before = _turns(pid)
    assert not has_ended(pidfd, 1)
    return _turns(pid) == before


def _turns(pid: int) -> dict[str, tuple[str, ...]]:
    """For each thread its state, and how often it gave up a processor or lost it: proc(5), status."""
    found: dict[str, tuple[str, ...]] = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        fields = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines())
        found[thread.name] = fields["State"], fields["voluntary_ctxt_switches"], fields["nonvoluntary_ctxt_switches"]
    return found


# Many at once


def test_hundreds_of_requests_for_pyfuse3_at_once(stack: Stack) -> None:
    count = 300
    make_tree(stack.lowers[0], [f"file{number}" for number in range(count)], b"lower")
    stack.mount()
    failures: list[BaseException] = []
    together = threading.Barrier(count)

    def use(number: int) -> None:
        path = stack.place / f"file{number}"
        try:
            together.wait()
            os.setxattr(path, "user.large", b"%04d" % number * 500)
            with open(path, "r+b", buffering=0) as file:
                file.write(b"%05d" % number)
                os.fsync(file.fileno())
                os.setxattr(file.fileno(), "user.small", b"%d" % number)
            os.removexattr(path, "user.small")
        except BaseException as failure:  # noqa: BLE001 - the test's own thread tells
            failures.append(failure)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stack.remount()
    for number in range(count):
        path = stack.place / f"file{number}"
        assert path.read_bytes() == b"%05d" % number
        assert os.listxattr(path) == ["user.large"]
        assert os.getxattr(path, "user.large") == b"%04d" % number * 500


def _restless(place: Path, seed: int, ready: int) -> None:
    """Do this and that until killed."""
    choice = random.Random(seed)
    own = place / f"own{seed}"
    own.mkdir()
    actions: list[Callable[[], object]] = [
        lambda: (own / "file").write_bytes(b"x" * 200_000),
        lambda: os.setxattr(own / "file", "user.a", b"v" * 3000),
        lambda: _synced(own / "file"),
        lambda: os.listdir(place / "d"),
        (place / "large").read_bytes,
        lambda: _append(place / f"d/file{choice.randrange(300)}"),
        lambda: os.rename(own / "file", own / "other"),
        lambda: os.chmod(place / f"d/file{choice.randrange(300)}", 0o600),
        lambda: os.path.exists(place / f"d/absent{choice.random()}"),
    ]
    (own / "file").write_bytes(b"")
    os.write(ready, b".")
    while True:
        action = choice.choice(actions)
        try:
            action()
        except FileNotFoundError:
            (own / "file").write_bytes(b"")


def _synced(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def test_clients_that_are_killed_in_the_middle_leave_the_mount_well(stack: Stack, long: bool) -> None:
    make_tree(stack.lowers[0], [f"d/file{number}" for number in range(300)], b"lower")
    _put_large(stack.lowers[0] / "large", 4 * MIB)
    stack.mount()
    choice = random.Random(3)
    for turn in range(20 if long else 1):
        reading, writing = os.pipe()
        pids = [
            fork(lambda seed=turn * 10 + n, ready=writing: _restless(stack.place, seed, ready))  # type: ignore[misc]
            for n in range(8)
        ]
        os.close(writing)
        for _ in pids:
            assert os.read(reading, 1) == b"."
        for pid in choice.sample(pids, len(pids)):
            for number in range(choice.randrange(100)):  # what takes some time, and is requests too
                (stack.place / f"d/none{turn}-{pid}-{number}").exists()
            os.kill(pid, signal.SIGKILL)
            assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        os.close(reading)
    assert len(os.listdir(stack.place / "d")) == 300
    for number in range(300):
        assert (stack.place / f"d/file{number}").read_bytes().rstrip(b"!") == b"lower"
    _synced(stack.place / "d/file0")
    os.setxattr(stack.place / "d/file0", "user.z", b"z")
    stack.remount()
    assert len(os.listdir(stack.place / "d")) == 300
    assert not list(stack.work.glob("work/*"))


# What is put off must not be done by halves


@pytest.mark.parametrize("stack", ["disk"], indirect=True)
@pytest.mark.parametrize("lane", ["on", "off"])
@pytest.mark.parametrize("size", [10, 600_000], ids=["small", "large"])
def test_change_that_waits_for_a_copy_takes_privileges_all_the_same(size: int, lane: str, stack: Stack) -> None:
    root, user = Who(0, 0), Who(1000, 1000)
    changes: dict[str, tuple[Who, Callable[[Path], object]]] = {
        "chown": (root, lambda path: os.chown(path, 1, 1)),
        "chgrp": (root, lambda path: os.chown(path, -1, 5)),
        "chown of nothing": (root, lambda path: os.chown(path, -1, -1)),
        "truncate": (root, lambda path: os.truncate(path, 5)),
        "write": (root, _append),
        "chmod": (root, lambda path: os.chmod(path, 0o6711)),
        "utime": (root, lambda path: os.utime(path, (1, 1))),
        "user's truncate": (user, lambda path: os.truncate(path, 5)),
        "user's extend": (user, lambda path: os.truncate(path, 700_000)),
        "user's truncate to nothing": (user, lambda path: os.truncate(path, 0)),
        "user's write": (user, _append),
        "user's open with truncation": (user, lambda path: path.write_bytes(b"new")),
        "user's touch": (user, os.utime),
    }
    plain = stack.base / "plain"
    plain.mkdir()
    for top in (stack.lowers[0], plain):
        for name in changes:
            (top / name).write_bytes(b"x" * size)
            (top / name).chmod(0o6777)
    stack.mount(f"lane={lane}")

    def modes(top: Path) -> dict[str, str]:
        return {name: oct((top / name).stat().st_mode) for name in changes}

    for name, (who, change) in changes.items():
        as_actor(who, lambda change=change, name=name: change(plain / name))  # type: ignore[misc]
        as_actor(who, lambda change=change, name=name: change(stack.place / name))  # type: ignore[misc]
    assert modes(stack.place) == modes(plain)
    stack.remount()
    assert modes(stack.place) == modes(plain)
