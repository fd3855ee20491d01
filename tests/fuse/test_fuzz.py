"""The lane is sent what no kernel sends, millions of times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .fuzz import ROUND
from .fuzz_layers import VARIANTS

CLONE = Path(__file__).parents[2]


def _play(first_seed: int, rounds: int) -> None:
    """In a process of its own: a crash is then a failure that names the seed."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuse.fuzz", str(first_seed), str(rounds)]
    done = subprocess.run(command, cwd=CLONE, capture_output=True, text=True, check=False)
    seed = done.stdout.split("\n")[-2:-1]
    assert done.returncode == 0, f"python -m tests.fuse.fuzz {seed} 1 fails, {done.returncode}:\n{done.stderr}"
    assert seed == [f"seed {first_seed + rounds - 1}"]


def test_lane_survives_any_message() -> None:
    _play(0, 2 * len(VARIANTS))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_lane_survives_ten_million_messages() -> None:
    _play(1000, 10_000_000 // ROUND)
