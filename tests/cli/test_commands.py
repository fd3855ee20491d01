"""Each command is found in the module that is said to declare it, so that the others need not be imported."""

from __future__ import annotations

import json
import subprocess
import sys

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
