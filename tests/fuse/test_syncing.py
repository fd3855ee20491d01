"""An fsync that others do not wait for, and what is remembered of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from overlayfs.fuse.patience import Patience
from overlayfs.fuse.syncing import Sync, Syncs, sync_of_directory, sync_of_file, wait_for
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.inodes import ROOT, Caller
from overlayfs.overlay.options import OverlayOptions
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


def test_a_failed_fsync_stays_failed(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports lost pages once; a second fsync that says yes would be a lie."""
    number = _new_file(overlay)
    calls: list[int] = []

    def fail_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def sync() -> None:
        await wait_for(sync_of_file(overlay, number, False))

    monkeypatch.setattr(os, "fsync", fail_once)
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            trio.run(sync)
    assert len(calls) == 1


def test_a_new_name_is_synced_before_data_alone_is(overlay: Overlay) -> None:
    number = _new_file(overlay)
    first = sync_of_file(overlay, number, True)
    assert first is not None
    assert not first.data_only
    first.run()
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
    root.run()
    root.note(None)
    assert len(os.listdir("/proc/self/fd")) == before


# -- by the kernel's threads


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


def _answers_of(waits: Patience, file: int, count: int) -> tuple[list[tuple[int, int]], list[int]]:
    """What is answered, and what is noted, of so many syncs begun at once."""
    answers: list[tuple[int, int]] = []
    noted: list[int] = []

    async def run() -> None:
        all_answered = trio.Event()

        def answer(unique: int, code: int) -> None:
            answers.append((unique, code))
            if len(answers) == count:
                all_answered.set()

        syncs = Syncs(waits, answer)
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(syncs.serve)
                for unique in range(count):
                    syncs.begin(unique, Sync(file, False, lambda failure: noted.append(0 if failure is None else 1)))
                await all_answered.wait()
                nursery.cancel_scope.cancel()
        syncs.close()

    trio.run(run)
    return answers, noted


@pytest.mark.parametrize("longest_ns", [0, LONG_NS], ids=["later", "at-once"])
def test_each_sync_is_answered_once(file: int, longest_ns: int) -> None:
    answers, noted = _answers_of(Patience(longest_ns), file, 30)
    assert sorted(answers) == [(unique, 0) for unique in range(30)]
    assert noted == [0] * 30


def test_what_is_synced_in_time_is_answered_before_anything_else(file: int) -> None:
    answers: list[tuple[int, int]] = []
    syncs = Syncs(Patience(LONG_NS), lambda unique, code: answers.append((unique, code)))
    syncs.begin(7, Sync(file, True, lambda _: None))
    assert answers == [(7, 0)]
    syncs.close()


def test_an_end_that_cannot_be_told_is_told_later(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = SyncQueue.ended, [OSError(errno.EFAULT, "not now")] * 2

    def ended(queue: SyncQueue, wait_ns: int = 0) -> list[tuple[int, int]]:
        if failures:
            raise failures.pop()
        return real(queue, wait_ns)

    monkeypatch.setattr(SyncQueue, "ended", ended)
    answers, _noted = _answers_of(Patience(LONG_NS), file, 1)
    assert answers == [(0, 0)]


def test_a_failed_sync_is_noted_before_it_is_answered(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(SyncQueue, "ended", lambda _self, _wait_ns=0: [(3, errno.EIO)])
    syncs = Syncs(Patience(LONG_NS), lambda unique, code: told.append((unique, code)))
    syncs.begin(3, Sync(file, False, lambda failure: told.append(getattr(failure, "errno", None))))
    assert told == [errno.EIO, (3, errno.EIO)]
    syncs.close()
