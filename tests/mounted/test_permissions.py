"""Who may do what, and what that does to modes, owners and ACLs: exactly as on a plain directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.actors import as_actor
from tests.mounted.permission_rows import CLEARED_FILES, INTENDED, ROWS, Row, Thing
from tests.mounted.stack import Stack

Facts = dict[str, tuple[object, ...]]
# On the lower layer every row is played, on the upper, where nothing is copied up, by default every third.
_ROWS_ON_UPPER = [pytest.param(row, marks=[] if at % 3 == 0 else [pytest.mark.long]) for at, row in enumerate(ROWS)]


def _put(row: Row, directory: Path) -> None:
    """Make the row's things as root."""
    directory.mkdir()
    directory.chmod(0o777)
    for name, thing in row.things.items():
        place = directory / name
        if thing.link is not None:
            os.link(directory / thing.link, place)
            continue
        if name.endswith("/"):
            place.mkdir()
        else:
            place.write_bytes(thing.content)
        _dress(place, thing)


def _dress(place: Path, thing: Thing) -> None:
    os.chown(place, thing.uid, thing.gid)
    # after the owner: chown takes set-id bits and capabilities away
    place.chmod(thing.mode)
    for name, value in thing.xattrs.items():
        os.setxattr(place, name, value)


def _facts(directory: Path) -> Facts:
    found: Facts = {}
    for place in sorted(directory.rglob("*")):
        info = place.lstat()
        xattrs = [
            (name, os.getxattr(place, name, follow_symlinks=False))
            for name in sorted(os.listxattr(place, follow_symlinks=False))
        ]
        content = place.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        owner = (info.st_uid, info.st_gid)
        links = None if stat.S_ISDIR(info.st_mode) else info.st_nlink
        found[str(place.relative_to(directory))] = (oct(info.st_mode), owner, links, xattrs, content)
    return found


def _play(row: Row, directory: Path) -> tuple[list[object], Facts]:
    """What each call gave, and what is there afterwards."""
    outcomes = [as_actor(row.who, lambda call=call: call(directory)) for call in row.calls]  # type: ignore[misc]
    found = _facts(directory)
    for start, (things, _why) in INTENDED.items():
        for thing in things if row.name.startswith(start) else ():
            del found[thing]
            if len(outcomes) == len(CLEARED_FILES):
                outcomes[CLEARED_FILES.index(thing)] = "meant to differ"
    return outcomes, found


@pytest.fixture(
    scope="module", params=["on", pytest.param("off", marks=pytest.mark.long)], ids=lambda lane: f"lane={lane}"
)
def arena(module_scratch: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A mount whose lower layer holds every row's directory; beside it a plain one."""
    base = module_scratch / f"lane-{request.param}"
    base.mkdir()
    stack = Stack.make(base)
    plain = base / "plain"
    plain.mkdir()
    for row in ROWS:
        _put(row, stack.lowers[0] / row.name)
        _put(row, plain / row.name)
    # who may do what does not depend on what a crash would leave
    stack.mount("volatile", f"lane={request.param}")
    yield stack
    stack.unmount()


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 60


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_lower_files_have_native_permissions(row: Row, arena: Stack) -> None:
    expected = _play(row, arena.base / "plain" / row.name)
    assert _play(row, arena.place / row.name) == expected


@pytest.mark.parametrize("row", _ROWS_ON_UPPER, ids=lambda row: row.name)
def test_upper_files_have_native_permissions(row: Row, arena: Stack) -> None:
    directories = (arena.base / "plain" / f"{row.name}-upper", arena.place / f"{row.name}-upper")
    for directory in directories:
        _put(row, directory)
    expected, found = (_play(row, directory) for directory in directories)
    assert found == expected
