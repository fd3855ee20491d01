"""The shell scripts: what a run of them shows only now and then."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CLONE = Path(__file__).parents[1]
SCRIPTS = [path for path in (*sorted((CLONE / "scripts").glob("*")), CLONE / ".ci" / "run") if path.is_file()]
# A reader that may end before its input does. GNU grep ends early with -q, -m, -l and -L.
LEAVES_EARLY = re.compile(r"\|\s*(?:head\b|grep\s+-\w*[qmlL]|sed\s+(?:-\S+\s+)*\S*\d+q\b)[^\n]*")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_no_pipeline_of_a_script_leaves_its_writer_early(script: Path) -> None:
    """Under pipefail the writer's SIGPIPE fails the script, or does not, as the two processes are scheduled."""
    code = [line for line in script.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert [found[0] for line in code for found in LEAVES_EARLY.finditer(line)] == []


@pytest.mark.parametrize(
    "pipeline", ["x | head -n 1", "x|grep -qx y", "x | sed -n 1,12q", "x | sed 1q", "x | grep -m 1 y"]
)
def test_reader_that_leaves_early_is_recognised(pipeline: str) -> None:
    assert LEAVES_EARLY.search(pipeline)
