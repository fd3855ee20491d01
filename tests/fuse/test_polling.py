"""The daemon polls for the next request only while it has the processor for itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.fuse.channel import Channel
from overlayfs.fuse.copying import CopyUps
from overlayfs.fuse.lane import NOTHING, Lane
from overlayfs.fuse.syncing import Syncs
from overlayfs.fuse.tasks import Tasks
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import OverlayOptions

POLL_US, TURN_NS = 10_000, 1_000_000_000
ENOUGH_TURNS = 1000


@pytest.fixture
def lane(tmp_path: Path) -> Iterator[Lane]:
    """A lane that no request comes to."""
    (tmp_path / "lower").mkdir()
    overlay = Overlay.open(OverlayOptions(lowers=(os.fsencode(tmp_path / "lower"),)))
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    device.setblocking(False)
    tasks = Tasks()
    syncs = Syncs(tasks, queues=False)
    with kernel, device:
        yield Lane(overlay, CopyUps(overlay, syncs), tasks, Channel(device.fileno()), POLL_US, None)
    overlay.close()


@pytest.fixture
def one_processor() -> Iterator[int]:
    """This process runs on one processor alone."""
    allowed = os.sched_getaffinity(0)
    one = min(allowed)
    os.sched_setaffinity(0, {one})
    yield one
    os.sched_setaffinity(0, allowed)


def test_a_processor_that_another_program_wants_is_left_to_it(lane: Lane, one_processor: int) -> None:
    """Who yields to a busy program gets the processor back milliseconds later, which every request would wait for."""
    assert lane.pauses == 0
    busy = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])  # on the same processor
    try:
        for _ in range(ENOUGH_TURNS):
            assert lane.serve_turn(TURN_NS, polls=True) == NOTHING
            if lane.pauses:
                return
    finally:
        busy.kill()
        busy.wait()
    pytest.fail("it polls beside a busy program")


def test_a_lane_that_does_not_poll_does_not_pause(lane: Lane) -> None:
    for _ in range(100):
        assert lane.serve_turn(TURN_NS, polls=False) == NOTHING
    assert lane.pauses == 0
