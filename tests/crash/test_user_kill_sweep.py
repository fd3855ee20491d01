"""An ordinary user's daemon is killed before each system call, its deputy's too: the tree is that of before or after.

The layers' modes refuse the daemon what the operations need, so that the deputy makes the calls that publish.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import OverlayOptions, WhiteoutFormat
from overlayfs.overlay.values import Caller

from .operations import Operation, Step, chmod, parent_of, rename, rmdir, unlink, write
from .supervisor import Gate
from .sweep import Figures, Report, Scene, State, empty, options_for, sweep_kills
from .trees import PAGES, build, directory, file

USER = 1000
SAMPLE = 6

LOWER = {
    "cache": directory(0o555),
    "cache/file": file(b"content"),
    "cache/closed": file(PAGES, 0o200),
    "cache/sub": directory(0o555),
    "cache/sub/file": file(b"below"),
    "gone": directory(0o111),
    "open": directory(),
    "open/closed": file(PAGES, 0),
    "open/empty": directory(0o311),
}
UPPER = {"mine": directory(0o555), "mine/file": file(b"upper")}


def mkdir(path: str, mode: int) -> Step:
    def step(overlay: Overlay) -> object:
        with parent_of(overlay, path) as (parent, name):
            made = overlay.mkdir(parent, name, mode, Caller(USER, USER))
            overlay.forget(made.ino, 1)
            return made.mode

    return step


def operation(parents: str, *steps: Step) -> Operation:
    return Operation(steps, frozenset(f"./{name}".encode() for name in parents.split()) | {b"."})


OPERATIONS = {
    "write below read-only directories": operation("cache cache/sub", write("cache/sub/file", b"new")),
    "write to unreadable file": operation("cache", write("cache/closed", b"new")),
    "chmod unreadable file": operation("open", chmod("open/closed", 0o600)),
    "rename unreadable file": operation("open", rename("open/closed", "open/moved")),
    "make read-only directory": operation("", mkdir("new", 0o555)),
    "make unreadable directory over deleted one": operation("", rmdir("gone"), mkdir("gone", 0o111)),
    "remove unreadable directory": operation("open", rmdir("open/empty")),
    "rename read-only lower directory": operation("cache cache/sub", rename("cache", "moved")),
    "rename read-only upper directory": operation("mine", rename("mine", "moved")),
    "open read-only tree and delete in it": operation(
        "cache cache/sub",
        chmod("cache", 0o755),
        chmod("cache/sub", 0o755),
        unlink("cache/sub/file"),
        rmdir("cache/sub"),
    ),
}


def give_away(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)


@dataclass(slots=True)
class UserScene(Scene):
    """A scene whose layers and daemon are an ordinary user's; root looks at what is left, told whose marks they are."""

    @property
    def options(self) -> OverlayOptions:
        options = options_for(self.layers, self.whiteout, metacopy=self.operation.metacopy)
        return options._replace(user_xattr=True)

    def reset(self) -> None:
        empty(self.base)
        build(self.layers.upper, UPPER)
        self.layers.work.mkdir()
        give_away(self.base)

    def look(self, *, with_kernel: bool) -> State:
        return Scene.look(self, with_kernel=False)  # which is mounted with other options for a user's marks

    def _act(self, gate: Gate, count: int, retry: bool) -> Report:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        return Scene._act(self, gate, count, retry)


@pytest.fixture(scope="module")
def user_base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="overlayfs-crash-", dir="/dev/shm") as name:
        base = Path(name)
        base.chmod(0o755)
        build(base / "lower", LOWER)
        give_away(base)
        yield base


def swept(name: str, whiteout: WhiteoutFormat, base: Path, limit: int | None) -> Figures:
    scene = UserScene(name, OPERATIONS[name], (base / "lower",), base / "stage", whiteout)
    scene.learn()
    return sweep_kills(scene, limit)


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_operation_of_a_user_leaves_tree_of_before_or_after(
    name: str, user_base: Path, figures: dict[str, Figures]
) -> None:
    found = swept(name, WhiteoutFormat.OVERLAY, user_base, SAMPLE)
    figures.setdefault("kill sweep of a user, sample", Figures()).__iadd__(found)
    assert found.outcomes["killed"] == found.points >= 1
    assert not found.bad, "\n".join(found.bad)


@pytest.mark.long
@pytest.mark.parametrize("whiteout", WhiteoutFormat)
def test_no_point_of_any_operation_of_a_user_is_bad(
    whiteout: WhiteoutFormat, user_base: Path, figures: dict[str, Figures]
) -> None:
    found = Figures()
    for name in OPERATIONS:
        found += swept(name, whiteout, user_base, None)
    figures[f"kill sweep of a user, {whiteout.value}, full"] = found
    assert found.outcomes["killed"] == found.points
    assert not found.bad, "\n".join(found.bad)
