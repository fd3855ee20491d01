"""An fsync that others do not wait for, and what is remembered of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from overlayfs.fuse.syncing import Syncs, sync_of_directory, sync_of_file
from overlayfs.fuse.tasks import Tasks
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.inodes import ROOT
from overlayfs.overlay.options import OverlayOptions
from overlayfs.overlay.values import Caller
from overlayfs.tree.syscalls import SyncQueue

CALLER = Caller(uid=os.geteuid(), gid=os.getegid())
DEADLINE_S = 20
LONG_NS = 900_000_000


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "lower-file").write_bytes(b"lower")
    lower, upper, work = (os.fsencode(tmp_path / name) for name in ("lower", "upper", "work"))
    opened = Overlay.open(OverlayOptions(lowers=(lower,), upper=upper, work=work))
    yield opened
    opened.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"data")
    yield fd
    os.close(fd)


def _new_file(overlay: Overlay) -> int:
    return overlay.create(ROOT, b"file", 0o644, os.O_RDWR, CALLER).ino


# -- what is synced, and how


@pytest.mark.parametrize("queues", [True, False], ids=["kernel", "own"])
def test_a_failed_fsync_stays_failed(overlay: Overlay, monkeypatch: pytest.MonkeyPatch, queues: bool) -> None:
    """The kernel reports lost pages once; a second fsync that says yes would be a lie."""
    number = _new_file(overlay)
    calls: list[int] = []

    def fail(queue: SyncQueue, _wait_ns: int = 0) -> list[tuple[int, int]]:
        calls.append(len(calls))
        return [(1, errno.EIO)]

    def fail_call(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    failures: list[int | None] = []

    async def sync() -> None:
        tasks = Tasks()
        syncs = Syncs(tasks, queues=queues)
        async with trio.open_nursery() as nursery:
            tasks.run_in(nursery)
            try:
                await syncs.wait(sync_of_file(overlay, number, False))
            except OSError as error:
                failures.append(error.errno)
        syncs.close()

    monkeypatch.setattr(SyncQueue, "ended", fail)
    monkeypatch.setattr(os, "fsync", fail_call)
    for _ in range(3):
        trio.run(sync)
    assert failures == [errno.EIO] * 3
    assert len(calls) == 1


def test_no_fsync_succeeds_beside_one_that_failed(overlay: Overlay) -> None:
    """The kernel tells of a loss once for each open file, and all who use a file share ours."""
    number = _new_file(overlay)
    first, second = (sync_of_file(overlay, number, False) for _ in range(2))
    assert first is not None
    assert second is not None
    first.note(OSError(errno.EIO, os.strerror(errno.EIO)))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        second.note(None)
    assert number not in overlay.state.synced_names


def test_a_new_name_is_synced_before_data_alone_is(overlay: Overlay) -> None:
    number = _new_file(overlay)
    first = sync_of_file(overlay, number, True)
    assert first is not None
    assert not first.data_only
    os.fsync(first.fd)
    first.note(None)
    second = sync_of_file(overlay, number, True)
    assert second is not None
    assert second.data_only
    second.note(None)


def test_what_cannot_be_dirty_is_not_synced(overlay: Overlay) -> None:
    assert sync_of_file(overlay, overlay.lookup(ROOT, b"lower-file").ino, False) is None
    before = len(os.listdir("/proc/self/fd"))
    root = sync_of_directory(overlay, ROOT)
    assert root is not None
    os.fsync(root.fd)
    root.note(None)
    assert len(os.listdir("/proc/self/fd")) == before


# -- by the kernel's threads


def test_what_slows_the_end_of_a_process_is_made_for_the_first_sync(file: int) -> None:
    before = _aio_contexts()
    queue = SyncQueue()
    assert queue.ended(LONG_NS) == []
    assert _aio_contexts() == before
    queue.submit(file, data_only=False, token=1)
    assert _aio_contexts() == before + 1
    assert queue.ended(LONG_NS) == [(1, 0)]
    queue.close()
    assert _aio_contexts() == before


def _aio_contexts() -> int:
    return Path("/proc/self/maps").read_text().count("[aio]")


def test_the_kernel_syncs_what_it_is_given(file: int) -> None:
    queue = SyncQueue()
    for token in range(40):
        queue.submit(file, data_only=bool(token % 2), token=token)
    ended: list[tuple[int, int]] = []
    while len(ended) < 40:
        ended += queue.ended(LONG_NS)
    assert sorted(ended) == [(token, 0) for token in range(40)]
    assert queue.ended() == []
    queue.close()


def test_the_kernel_says_why_it_cannot_sync() -> None:
    reading, writing = os.pipe()
    queue = SyncQueue()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        queue.submit(writing, data_only=False, token=1)
    queue.close()
    os.close(reading)
    os.close(writing)


def _failures_of(file: int, count: int, *, waits: bool, queues: bool) -> list[int]:
    """How so many syncs that were begun at once ended: an errno or 0 of each."""
    failures: list[int] = []

    async def run() -> None:
        all_ended = trio.Event()

        def done(failure: OSError | None) -> None:
            failures.append(0 if failure is None else failure.errno or -1)
            if len(failures) == count:
                all_ended.set()

        tasks = Tasks()
        syncs = Syncs(tasks, waits=waits, queues=queues)
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                tasks.run_in(nursery)
                nursery.start_soon(syncs.serve)
                for number in range(count):
                    syncs.begin(file, number % 2 == 1, done)
                await all_ended.wait()
                nursery.cancel_scope.cancel()
        syncs.close()

    trio.run(run)
    return failures


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "does-not"])
@pytest.mark.parametrize("queues", [True, False], ids=["kernel", "own"])
def test_each_sync_is_told_once(file: int, waits: bool, queues: bool) -> None:
    assert _failures_of(file, 240, waits=waits, queues=queues) == [0] * 240


def test_what_the_kernel_cannot_sync_is_said() -> None:
    reading, writing = os.pipe()
    assert _failures_of(writing, 2, waits=True, queues=True) == [errno.EINVAL] * 2
    os.close(reading)
    os.close(writing)


def test_an_end_that_cannot_be_told_is_told_later(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = SyncQueue.ended, [OSError(errno.EFAULT, "not now")] * 2

    def ended(queue: SyncQueue, wait_ns: int = 0) -> list[tuple[int, int]]:
        if failures:
            raise failures.pop()
        return real(queue, wait_ns)

    monkeypatch.setattr(SyncQueue, "ended", ended)
    assert _failures_of(file, 1, waits=True, queues=True) == [0]


def test_a_sync_whose_end_cannot_be_noted_does_not_keep_the_others(file: int) -> None:
    def fail(_: OSError | None) -> None:
        raise RuntimeError("a bug")

    async def run() -> None:
        tasks, told = Tasks(), trio.Event()
        syncs = Syncs(tasks, queues=False)
        syncs.begin(file, False, fail)
        syncs.begin(file, False, lambda _: told.set())
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                tasks.run_in(nursery)
                await told.wait()
                await syncs.sync(file)

    trio.run(run)
