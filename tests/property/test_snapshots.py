"""Whatever is done between them, a snapshot changes nothing, and a rollback brings back all that was there.

The model of a snapshot is a copy of the plain directory. The kernel's overlayfs has none, and takes no part.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from overlayfs.fuse import commanding
from overlayfs.overlay.options import OverlayOptions

from .bare import EngineTarget
from .machine import Opener, ThreeWays
from .paths import MountedTarget
from .steps import Snapshot, Target, step


class SnapshotMachine(ThreeWays):
    """Ours beside a plain directory."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, Path, dict[bytes, int]]] = []
        self.count = 0
        self.first: tuple[Path, dict[bytes, int]] | None = None

    def openers(self) -> tuple[tuple[str, Opener], ...]:
        return (("ours", self.open_ours),)

    def take(self, name: str) -> None:
        raise NotImplementedError

    def go_back(self, name: str, *, drop: bool) -> None:
        raise NotImplementedError

    def drop(self, name: str) -> None:
        raise NotImplementedError

    def drop_changes(self) -> None:
        raise NotImplementedError

    def _add(self, opener: Opener, places: list[Path]) -> None:
        super()._add(opener, places)
        self.first = self.base / "first", self.targets[-1].numbers()
        subprocess.run(["cp", "-a", os.fsdecode(self.plain.root), self.first[0]], check=True)

    @rule()
    def reset(self) -> None:
        """The root keeps what it has."""
        assert self.first is not None
        for number in sorted(self.open_numbers):
            self._drop(number)
        self.kept.clear()
        self._note(step("reset"))
        self.drop_changes()
        root, (copy, numbers) = Path(os.fsdecode(self.plain.root)), self.first
        st = root.stat()
        subprocess.run(["find", root, "-mindepth", "1", "-delete"], check=True)
        subprocess.run(["cp", "-a", copy, anew := self.base / "anew"], check=True)
        for name in os.listdir(anew):
            (anew / name).rename(root / name)
        anew.rmdir()
        os.utime(root, ns=(st.st_atime_ns, st.st_mtime_ns))
        self.observe()
        found = self.targets[-1].numbers()
        if found != numbers:
            self._diverge(f"inode numbers changed with the reset: {numbers} became {found}")

    @rule()
    def snapshot(self) -> None:
        self.count += 1
        name, copy = f"s{self.count}", self.base / f"copy{self.count}"
        self._note(step("snapshot", name))
        before = self.targets[-1].numbers()
        self.take(name)
        subprocess.run(["cp", "-a", os.fsdecode(self.plain.root), copy], check=True)
        after = self.targets[-1].numbers()
        if after != before:
            self._diverge(f"inode numbers changed with the snapshot: {before} became {after}")
        self.kept.append((name, copy, before))
        self.observe()

    @rule(data=st.data(), drop=st.booleans())
    def roll_back(self, data: st.DataObject, drop: bool) -> None:
        if not self.kept:
            return
        for number in sorted(self.open_numbers):
            self._drop(number)
        at = data.draw(st.integers(0, len(self.kept) - 1))
        del self.kept[at + 1 :]
        name, copy, numbers = self.kept[at]
        self._note(step("roll_back", name, drop))
        self.go_back(name, drop=drop)
        if drop:
            self.kept.pop()
        shutil.rmtree(self.plain.root)
        subprocess.run(["cp", "-a", copy, os.fsdecode(self.plain.root)], check=True)
        self.observe()
        found = self.targets[-1].numbers()
        if found != numbers:
            self._diverge(f"inode numbers changed with the rollback: {numbers} became {found}")

    @rule(data=st.data())
    def drop_snapshot(self, data: st.DataObject) -> None:
        if not self.kept:
            return
        name, copy, _ = self.kept.pop(data.draw(st.integers(0, len(self.kept) - 1)))
        self._note(step("drop_snapshot", name))
        before = self.targets[-1].numbers()
        self.drop(name)
        shutil.rmtree(copy)
        self.observe()
        after = self.targets[-1].numbers()
        if after != before:
            self._diverge(f"inode numbers changed with the drop: {before} became {after}")

    def _check_interchange(self, expected: Snapshot) -> None:
        """Nobody else mounts such an upper."""


class EngineMachine(SnapshotMachine):
    def open_ours(self, place: Path, lowers: Sequence[Path], upper: Path, work: Path) -> Target:
        options = OverlayOptions(lowers=tuple(bytes(lower) for lower in lowers), upper=bytes(upper), work=bytes(work))
        self.ours = EngineTarget(options)
        return self.ours

    def take(self, name: str) -> None:
        self.ours.overlay.snapshot(name)

    def go_back(self, name: str, *, drop: bool) -> None:
        self.ours.overlay.roll_back(name, drop=drop)

    def drop(self, name: str) -> None:
        self.ours.overlay.drop_snapshot(name)

    def drop_changes(self) -> None:
        self.ours.overlay.reset()


class MountMachine(SnapshotMachine):
    options: tuple[str, ...] = ()

    def open_ours(self, place: Path, lowers: Sequence[Path], upper: Path, work: Path) -> Target:
        self.place = os.fsencode(place)
        return MountedTarget(place, lowers, upper, work, *self.options)

    def take(self, name: str) -> None:
        commanding.take_snapshot(self.place, name)

    def go_back(self, name: str, *, drop: bool) -> None:
        commanding.roll_back(self.place, name, drop=drop)

    def drop(self, name: str) -> None:
        commanding.drop_snapshot(self.place, name)

    def drop_changes(self) -> None:
        commanding.reset(self.place)


class MountWithoutLaneMachine(MountMachine):
    options = ("lane=off",)


def _settings(examples: int, *, derandomize: bool) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        derandomize=derandomize,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def test_engine_agrees_with_copies_of_a_plain_directory() -> None:
    run_state_machine_as_test(EngineMachine, settings=_settings(15, derandomize=True))


@pytest.mark.parametrize("machine", [MountMachine, MountWithoutLaneMachine])
def test_mount_agrees_with_copies_of_a_plain_directory(machine: type[MountMachine]) -> None:
    run_state_machine_as_test(machine, settings=_settings(4, derandomize=True))


@pytest.mark.long
@pytest.mark.parametrize("machine", [EngineMachine, MountMachine, MountWithoutLaneMachine])
def test_all_agree_over_many_steps(machine: type[SnapshotMachine]) -> None:
    run_state_machine_as_test(machine, settings=_settings(200, derandomize=False))
