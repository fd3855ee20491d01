"""The program `overlayfs`: where its commands are declared, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from overlayfs._version import __version__
from overlayfs.cli.commands import MODULES

DECLARED = """
import json, sys
from importlib import import_module
from typer.main import get_command
from overlayfs.cli.app import app
from overlayfs.cli.commands import MODULES

before, found = set(), {}
for module in MODULES:
    import_module(f"overlayfs.cli.commands.{module}")
    now = set(get_command(app).commands)
    before, found[module] = now, sorted(now - before)
json.dump(found, sys.stdout)
"""


def test_each_module_declares_what_is_said_of_it() -> None:
    answer = subprocess.run([sys.executable, "-c", DECLARED], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == {module: sorted(names) for module, names in MODULES.items()}


@pytest.mark.parametrize(
    ("words", "status", "output", "complaint"),
    [
        (["--version"], 0, f"overlayfs {__version__}\n", ""),
        (["history", "missing"], 1, "", "overlayfs: no image 'missing'"),
        (["--missing"], 2, "", "overlayfs: No such option"),
    ],
)
def test_program_ends_with_its_status_and_all_its_output(
    words: list[str], status: int, output: str, complaint: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "overlayfs", "--store", str(tmp_path / "store"), *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr[: len(complaint)]) == (status, output, complaint)
