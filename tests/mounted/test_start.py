"""Which modules does a mount not wait for? Those that it needs neither to start nor to serve what engines ask for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.program import ENVIRONMENT, PATIENCE_S, Place, make_place, wait_for_mounts

# Each takes a millisecond or more: the standard library's that import many others or compile code when they are
# imported, and what serves only some requests, or only people.
SLOW = {
    *("ast", "dataclasses", "dis", "getopt", "gettext", "inspect", "json", "linecache", "locale", "logging"),
    *("pathlib", "pickle", "random", "re", "selectors", "shutil", "socket", "string", "subprocess", "tempfile"),
    *("textwrap", "threading", "tokenize", "traceback", "typing", "warnings"),
    *("msgspec", "pyfuse3", "rich", "trio", "typer"),
}
PROGRAM = """
import sys
before = set(sys.modules)  # what the interpreter's own start imports
from overlayfs.cli.mount_program import main
status = main()
print(*sorted(set(sys.modules) - before))
sys.exit(status)
"""


@pytest.fixture
def place() -> Iterator[Place]:
    base = Path(tempfile.mkdtemp(prefix="overlayfs-start-"))
    made = make_place(base)
    yield made
    made.clear()


def walk(place: Place) -> None:
    """What an engine asks of each mount, and some changes."""
    os.statvfs(place.target)
    assert (place.target / "below").read_text() == "only below\n"
    for name in os.listdir(place.target):
        os.lstat(place.target / name)
        os.listxattr(place.target / name)
    (place.target / "new").mkdir()
    (place.target / "new" / "f").write_text("x")
    (place.target / "new" / "f").rename(place.target / "new" / "g")
    (place.target / "new" / "g").unlink()


@pytest.mark.parametrize("options", ["fsync=volatile", "ro"])
def test_served_mount_has_imported_nothing_slow(options: str, place: Place) -> None:
    (place.base / "bottom/large").write_bytes(bytes(1 << 20))
    command = [sys.executable, "-c", PROGRAM, "-f", "-o", f"{place.options},{options}", str(place.target)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as program:
        wait_for_mounts(place.is_mounted)
        if options == "ro":
            assert (place.target / "below").read_text() == "only below\n"
        else:
            walk(place)
            with (place.target / "large").open("ab") as large:
                large.write(b"copied up in a thread")
        subprocess.run(["umount", place.target], check=True)
        printed, _ = program.communicate(timeout=PATIENCE_S)
    imported = set(printed.split())
    assert (program.returncode, "overlayfs.fuse.lane" in imported) == (0, True)
    assert sorted(SLOW & {name.split(".")[0] for name in imported}) == []
