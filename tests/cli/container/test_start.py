"""Which modules does `overlayfs run` not wait for? Those that only other commands or options need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from tests.container.small import small_image
from tests.prepared import PATIENCE_S

# `dataclasses` compiles the code of each class when its module is imported, half a millisecond each; a Struct of
# msgspec or a NamedTuple does without.
SLOW = {
    *("dataclasses", "httpx", "pyfuse3", "rich", "socket", "tomlkit", "trio", "zstandard"),
    *("overlayfs.cli.mounts.live", "overlayfs.container.live.conmon", "overlayfs.container.live.network"),
    *("overlayfs.image.registry", "overlayfs.image.store.missing_layers", "overlayfs.overlay.drafts"),
}
PROGRAM = """
import json, sys
from overlayfs.cli.main import main
status = main()
print(json.dumps(sorted(sys.modules)))
sys.exit(status)
"""


def test_run_has_imported_nothing_slow(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        unpack_image(store, small_image(store))
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "--store",
        str(tmp_path / "store"),
        "run",
        "--rm",
        "small",
        "sh",
        "-c",
        ":",
    ]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=True)
    imported = set(json.loads(ran.stdout))
    assert "overlayfs.cli.container.running" in imported
    assert sorted(SLOW & imported) == []


@pytest.mark.parametrize("options", [["--rm"], ["--rm", "-d"]])
def test_run_as_the_first_word_finds_its_engine_loaded(options: list[str], tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        unpack_image(store, small_image(store))
    environ = {**os.environ, "OVERLAYFS_STORE": str(tmp_path / "store")}

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "overlayfs", *words]
        return subprocess.run(
            command, env=environ, stdout=subprocess.PIPE, check=True, text=True, timeout=PATIENCE_S
        ).stdout

    printed = call("run", *options, "--name", "box", "small", "sh", "-c", "pwd; exit 0")
    assert len(printed) == 65 if "-d" in options else printed == "/\n"
    if "-d" in options:
        call("rm", "--force", "box")
