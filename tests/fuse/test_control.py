"""What the kernel is told after a rollback."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from overlayfs.fuse import abi, control
from overlayfs.fuse.commanding import DROP_XATTR, ROLLBACK_XATTR, SETTLED_XATTR
from overlayfs.fuse.control import Control
from overlayfs.overlay.state import Changed

INODES, NAMES = [1, 7], [(1, b"changed"), (7, b"deleted")]


class Device:
    """Stands in for /dev/fuse: keeps each message as one."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def told_by_rollback(self, count: int) -> list[bytes]:
        """The first `count` messages, which a thread sends, and all that follow them."""
        overlay: Any = SimpleNamespace(
            is_changing=False,
            is_nearly_full=False,
            roll_back=lambda _name, *, drop: ("a", Changed(list(INODES), list(NAMES))),
        )
        under_test = Control(overlay, cast(Any, SimpleNamespace(are_running=False)), self.theirs.fileno)
        under_test.run(ROLLBACK_XATTR, b"a", os.geteuid(), os.getpid())
        return [self.ours.recv(1 << 12) for _ in range(count)]

    def is_silent(self) -> bool:
        self.theirs.close()
        return self.ours.recv(1 << 12) == b""


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    made.ours.close()
    made.theirs.close()


def test_kernel_that_begins_an_epoch_is_told_of_inodes_alone(device: Device) -> None:
    expected = [abi.new_epoch(), *map(abi.invalidation, INODES)]
    assert device.told_by_rollback(len(expected)) == expected
    assert device.is_silent()


def test_older_kernel_is_told_of_each_name(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_begin_epoch", lambda _fd: False)
    names = [abi.entry_invalidation(parent, name) for parent, name in NAMES]
    expected = [*names, *map(abi.invalidation, INODES)]
    assert device.told_by_rollback(len(expected)) == expected
    assert device.is_silent()


def test_refusal_of_the_epoch_is_that_of_an_older_kernel() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        assert not control._begin_epoch(fd)
    finally:
        os.close(fd)


def test_drop_is_settled_when_what_it_merges_is() -> None:
    done, gave_way = threading.Event(), threading.Event()
    overlay: Any = SimpleNamespace(
        is_changing=False,
        drop_name=lambda name: name,
        merges=lambda: iter([done.wait]),
        take_waste=lambda: None,
        give_way=gave_way.set,
    )
    under_test = Control(overlay, cast(Any, SimpleNamespace(are_running=False)), lambda: -1)
    under_test.run(DROP_XATTR, b"a", os.geteuid(), os.getpid())
    assert under_test.answer(SETTLED_XATTR) == b"0"
    with pytest.raises(OSError, match=os.strerror(errno.EINPROGRESS)):
        under_test.run(ROLLBACK_XATTR, b"a", os.geteuid(), os.getpid())
    assert gave_way.is_set()
    overlay.is_changing = True  # a request holds inodes
    done.set()
    assert under_test.answer(SETTLED_XATTR) == b"0"
    overlay.is_changing = False
    while under_test.answer(SETTLED_XATTR) != b"1":
        os.sched_yield()
