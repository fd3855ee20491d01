"""How long a read from a disk is waited for."""

from __future__ import annotations

from collections.abc import Callable

from overlayfs.fuse.patience import Patience


def _answers(*counts: int | None) -> Callable[[], int | None]:
    left = iter(counts)
    return lambda: next(left)


def _never() -> int | None:
    return None


def test_what_comes_soon_is_waited_for() -> None:
    patience = Patience(longest_ns=60 * 10**9)
    for _ in range(200):
        assert patience.is_left()
        assert patience.wait(_answers(None, None, 7)) == 7
    assert patience.wait(_answers(0)) == 0  # the end of the file is an answer


def test_a_slow_disk_is_not_waited_for_each_time() -> None:
    patience = Patience(longest_ns=1000)
    waited = 0
    for _ in range(640):
        if patience.is_left():
            waited += 1
            assert patience.wait(_never) is None
    assert waited == 40  # 4 of 64


def test_one_late_read_changes_nothing() -> None:
    patience = Patience(longest_ns=20_000_000)
    for _ in range(5):
        assert patience.is_left()
        assert patience.wait(_never) is None
        assert patience.is_left()
        assert patience.wait(_answers(5)) == 5


def test_without_polling_nothing_is_waited_for() -> None:
    assert not Patience(0).is_left()


def test_the_first_reads_are_waited_for_longer() -> None:
    patience = Patience(longest_ns=1, first_ns=60 * 10**9)
    assert patience.wait(_answers(*[None] * 50, 7)) == 7
    patience = Patience(longest_ns=1, first_ns=1000)
    assert patience.wait(_never) is None  # which takes longer than both
    reads = 0

    def read() -> None:
        nonlocal reads
        reads += 1

    assert patience.wait(read) is None
    assert reads <= 1
