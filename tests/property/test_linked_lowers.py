"""Over hard-linked lowers, with every option that changes how copies are kept, ours behaves as a plain directory does.

Unlike in the comparison with the kernel, names stay known or are forgotten at random, and most steps are done without
a look at the whole tree, so that links which nobody has met are dealt with too.
"""

import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from overlayfs.overlay.options import OverlayOptions, RedirectDir, WhiteoutFormat

from .bare import EngineTarget
from .paths import PlainTarget
from .steps import RENAME_EXCHANGE, UMASK, Snapshot, Step, differences, outcome_of, step

STEPS = 25
DEFAULT_RUNS, LONG_RUNS = 6, 120  # for each set of options
COMBINATIONS: Mapping[str, dict[str, Any]] = {
    "default": {},
    "metacopy": {"metacopy": True},
    "redirect_dir=off": {"redirect_dir": RedirectDir.OFF},
    "metacopy,redirect_dir=nofollow": {"metacopy": True, "redirect_dir": RedirectDir.NOFOLLOW},
    "oci": {"whiteout": WhiteoutFormat.OCI},
    "metacopy,userxattr": {"metacopy": True, "user_xattr": True},
}
LONG_COMBINATIONS: Mapping[str, dict[str, Any]] = {
    "metacopy,redirect_dir=off": {"metacopy": True, "redirect_dir": RedirectDir.OFF},
    "metacopy,oci": {"metacopy": True, "whiteout": WhiteoutFormat.OCI},
    "overlay-xattr": {"whiteout": WhiteoutFormat.OVERLAY_XATTR},
    "xattr_permissions": {"xattr_permissions": 2},
}
DIRECTORIES = (b"", b"D", b"D/s", b"E")
NEW_NAMES = (b"a", b"b", b"h0", b"n1", b"n2", b"s")


class Forgetful(EngineTarget):
    """The engine under a kernel that forgets when it likes."""

    def __init__(self, options: OverlayOptions, chance: random.Random) -> None:
        self.chance = chance
        super().__init__(options)

    def _give_back(self) -> None:
        share = self.chance.choice((0, 0, 0, 0.3, 1))
        kept = [ino for ino in self.borrowed if self.chance.random() >= share]
        for ino in self.borrowed:
            self.overlay.forget(ino, 1)
        self.borrowed.clear()
        for ino in kept:
            if ino in self.overlay.state.inodes:
                self.overlay.state.inodes[ino].nlookup += 1
                self.borrowed.append(ino)


def _build_lower(root: Path, chance: random.Random) -> None:
    files = []
    for depth, directory in enumerate(map(os.fsdecode, DIRECTORIES)):
        (root / directory).mkdir(exist_ok=True)
        for name in ("a", "b"):
            files.append(root / directory / name)
            files[-1].write_text(f"{directory}{name}" * 3 + "#" * depth)
    for number in range(3):
        os.link(chance.choice(files), root / os.fsdecode(chance.choice(DIRECTORIES)) / f"h{number}")


class Run:
    """One sequence of steps on both."""

    def __init__(self, base: Path, seed: int, options: dict[str, Any]) -> None:
        self.chance = random.Random(seed)
        lower, upper, work, plain = (base / name for name in ("lower", "upper", "work", "plain"))
        for place in (lower, upper, work):
            place.mkdir(parents=True)
        _build_lower(lower, self.chance)
        subprocess.run(["cp", "-a", lower, plain], check=True)
        self.plain = PlainTarget(plain)
        self.ours = Forgetful(
            OverlayOptions(lowers=(bytes(lower),), upper=bytes(upper), work=bytes(work), **options), self.chance
        )
        self.work = work
        self.takes_snapshots = seed % 2 == 1
        self.done: list[Step] = []
        self.held: set[int] = set()

    def paths(self, accept: Callable[[int], bool]) -> list[bytes]:
        return [path for path, entry in self.plain.snapshot().items() if path and accept(entry.mode)] or [b"none"]

    def place(self) -> bytes:
        directory = self.chance.choice([b"", *self.paths(stat.S_ISDIR)])
        return os.path.join(directory, self.chance.choice(NEW_NAMES))

    def choose(self) -> Step:
        """The next step; what it names mostly exists."""
        pick = self.chance.choice
        file, directory = pick(self.paths(stat.S_ISREG)), pick(self.paths(stat.S_ISDIR))
        text = b"%d" % len(self.done)
        number = pick((0, 1))
        held = [step("held_write", number, 0, b"H" + text), step("held_truncate", number, 4), step("drop", number)]
        return pick(
            [
                step("write", file, 2, b"W" + text),
                step("chmod", file, pick((0o600, 0o644, 0o640))),
                step("unlink", file),
                step("link", file, self.place()),
                step("rename", file, self.place(), 0),
                step("rename", file, pick((file, directory)), RENAME_EXCHANGE),
                step("rename", directory, self.place(), 0),
                step("rename", directory, directory[:-1] + b"t", 0),
                step("mkdir", self.place(), 0o755),
                step("rmdir", directory),
                step("truncate", file, 5),
                step("create", self.place(), os.O_EXCL, 0o644, b"new" + text),
                step("setxattr", file, b"user.q", text, 0),
                step("read", file),
                pick(held) if number in self.held else step("hold", number, file, os.O_RDWR),
            ]
        )

    def do(self, wanted: Step) -> None:
        self.done.append(wanted)
        plain, ours = outcome_of(self.plain, wanted), outcome_of(self.ours, wanted)
        assert plain == ours, f"{wanted} gave {ours!r}, a plain directory {plain!r}"
        if wanted.operation == "hold" and plain is None:
            self.held.add(int(str(wanted.arguments[0])))
        elif wanted.operation == "drop":
            self.held.discard(int(str(wanted.arguments[0])))

    def compare(self) -> None:
        lines = list(differences(_timeless(self.plain.snapshot()), _timeless(self.ours.snapshot())))
        assert not lines, "\n".join(lines)
        for number in self.held:
            assert self.plain.held_read(number) == self.ours.held_read(number), f"held file {number}"

    def remount(self) -> None:
        self.done.append(step("remount"))
        for number in list(self.held):
            self.do(step("drop", number))
        self.ours.borrowed.clear()
        self.ours.remount()

    def take_snapshot(self) -> None:
        """Nothing that is shown changes by it."""
        self.done.append(step("snapshot"))
        self.ours.overlay.snapshot()

    def steps(self) -> Iterator[None]:
        for _ in range(STEPS):
            self.do(self.choose())
            yield
            if self.takes_snapshots and self.chance.random() < 0.15:
                self.take_snapshot()
            if self.chance.random() < 0.15:
                self.remount()
        self.remount()

    def all_the_same(self) -> None:
        """Every step gives the same, and now and then the whole trees are compared."""
        for _ in self.steps():
            if self.chance.random() < 0.4:
                self.compare()
        self.compare()
        self.plain.close()
        self.ours.close()
        assert set(os.listdir(self.work / "work")) <= {"incompat"}, "left in the workdir"

    def same_after_a_remount(self) -> None:
        """Without an index links do not stay links, but what is shown is what a next mount shows."""
        for _ in range(STEPS):
            wanted = self.choose()
            self.done.append(wanted)
            outcome = outcome_of(self.ours, wanted)
            assert outcome not in ("ESTALE", "EIO"), f"{wanted} gave {outcome}"
            if wanted.operation == "hold" and outcome is None:
                self.held.add(int(str(wanted.arguments[0])))
            elif wanted.operation == "drop":
                self.held.discard(int(str(wanted.arguments[0])))
            outcome_of(self.plain, wanted)
            if self.chance.random() < 0.3:
                before = _linkless(self.ours.snapshot())
                for number in self.held:
                    self.ours.drop(number)
                    self.plain.drop(number)
                self.held.clear()
                self.ours.remount()
                lines = list(differences(before, _linkless(self.ours.snapshot())))
                assert not lines, "\n".join(lines)
        self.plain.close()
        self.ours.close()


def _timeless(snapshot: Snapshot) -> Snapshot:
    return {path: replace(entry, mtime_ns=None) for path, entry in snapshot.items()}


def _linkless(snapshot: Snapshot) -> Snapshot:
    return {path: replace(entry, mtime_ns=None, nlink=None) for path, entry in snapshot.items()}


@contextmanager
def _umask() -> Iterator[None]:
    before = os.umask(UMASK)
    try:
        yield
    finally:
        os.umask(before)


def _repeat(base: Path, options: dict[str, Any], runs: int, what: Callable[[Run], None]) -> None:
    with _umask():
        for seed in range(runs):
            run = Run(base / str(seed), seed, options)
            try:
                what(run)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {error}\n" + "\n".join(map(str, run.done))) from error
            subprocess.run(["rm", "-rf", base / str(seed)], check=True)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_engine_agrees_with_plain_directory_over_linked_lower(name: str, tmp_path: Path) -> None:
    _repeat(tmp_path, COMBINATIONS[name], DEFAULT_RUNS, Run.all_the_same)


def test_engine_without_index_shows_what_the_next_mount_shows(tmp_path: Path) -> None:
    _repeat(tmp_path, {"index": False}, DEFAULT_RUNS, Run.same_after_a_remount)


@pytest.mark.long
@pytest.mark.parametrize("name", [*COMBINATIONS, *LONG_COMBINATIONS])
def test_engine_agrees_with_plain_directory_for_long(name: str, tmp_path: Path) -> None:
    _repeat(tmp_path, {**COMBINATIONS, **LONG_COMBINATIONS}[name], LONG_RUNS, Run.all_the_same)


@pytest.mark.long
@pytest.mark.parametrize("redirect_dir", [RedirectDir.ON, RedirectDir.OFF])
@pytest.mark.parametrize("metacopy", [True, False])
def test_engine_without_index_for_long(redirect_dir: RedirectDir, metacopy: bool, tmp_path: Path) -> None:
    options = {"index": False, "redirect_dir": redirect_dir, "metacopy": metacopy}
    _repeat(tmp_path, options, LONG_RUNS, Run.same_after_a_remount)
