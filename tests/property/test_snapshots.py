"""Whatever is done between them, a snapshot changes nothing, and a rollback brings back all that was there.

The model of a snapshot is a copy of the plain directory. The kernel's overlayfs has none, and takes no part.
"""

import os
import shutil
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from overlayfs.fuse import commanding
from overlayfs.overlay import forking
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import OverlayOptions
from overlayfs.tree import marks

from .bare import EngineTarget
from .intended import READ_ONLY_NUMBERS
from .machine import Opener, ThreeWays
from .paths import MountedTarget, PlainTarget
from .steps import Target, step

MOST_MOUNTS = 3
MOST_OPEN = 4


@dataclass(frozen=True, slots=True)
class Kept:
    """A state to go back to: a copy of the plain directory, and the inode numbers that ours had."""

    name: str
    copy: Path
    numbers: dict[bytes, int]


@dataclass(frozen=True, slots=True)
class Mount:
    """One of ours beside its plain directory, with its snapshots; a fork is one more."""

    plain: PlainTarget
    ours: Target
    upper: Path
    work: Path
    first: Kept
    kept: list[Kept] = field(default_factory=list)
    open_numbers: set[int] = field(default_factory=set)


class SnapshotMachine(ThreeWays):
    """Ours beside a plain directory, and each fork of it beside one of its own; all steps go to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.mounts: list[Mount] = []
        self.doubled: set[int] = set()  # numbers of files without a name that a rollback brought back: as another file

    def openers(self) -> tuple[tuple[str, Opener], ...]:
        return (("ours", self.open_ours),)

    @abstractmethod
    def take(self, name: str) -> None:
        """Take a snapshot of the present mount."""

    @abstractmethod
    def go_back(self, name: str, *, drop: bool) -> None:
        """Roll the present mount back."""

    @abstractmethod
    def drop_snapshot(self, name: str) -> None:
        """Drop a snapshot of the present mount."""

    @abstractmethod
    def drop_changes(self) -> None:
        """Reset the present mount."""

    # The mounts

    def _add(self, opener: Opener, places: list[Path]) -> None:
        super()._add(opener, places)
        self._begin(self.plain, self.targets[-1], places[1], places[2])

    def _begin(self, plain: PlainTarget, ours: Target, upper: Path, work: Path) -> None:
        self.targets = [plain, ours]  # to be closed, whatever fails now
        first = Kept("", self._copy_of(plain), ours.numbers())
        self.mounts.append(Mount(plain, ours, upper, work, first))
        self._turn_to(self.mounts[-1])

    def _turn_to(self, mount: Mount) -> None:
        self.mount = mount
        self.plain, self.targets, self.open_numbers = mount.plain, [mount.plain, mount.ours], mount.open_numbers

    def _copy_of(self, plain: PlainTarget) -> Path:
        self.count += 1
        copy = self.base / f"copy{self.count}"
        subprocess.run(["cp", "-a", os.fsdecode(plain.root), copy], check=True)
        return copy

    def _observe_all(self) -> None:
        present = self.mount
        for mount in self.mounts:
            self._turn_to(mount)
            self.observe()
        self._turn_to(present)

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        """All that follows goes to the fork, until one turns to another mount."""
        if len(self.mounts) == MOST_MOUNTS:
            return
        if not self.mount.kept:
            self.snapshot(data=data)
        kept = data.draw(st.sampled_from(self.mount.kept))
        self._note(step("fork", kept.name))
        upper, work = bytes(self.mount.upper), bytes(self.mount.work)
        made = Path(os.fsdecode(forking.make(upper, work, kept.name, marks.TRUSTED)))
        place = self._directory(f"fork{len(self.mounts)}")
        plain = PlainTarget(self.base / f"plain{len(self.mounts)}")
        plain.started_ns = self.plain.started_ns
        subprocess.run(["cp", "-a", kept.copy, os.fsdecode(plain.root)], check=True)
        ours = self.open_ours(place, self.lowers, made / "upper", made / "work")
        ours.started_ns = self.plain.started_ns
        self._begin(plain, ours, made / "upper", made / "work")
        self._require_numbers("the fork", kept.numbers)
        self.observe()

    @rule(data=st.data())
    def turn(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.mounts) - 1))
        self._note(step("turn", at))
        self._turn_to(self.mounts[at])
        self.observe()

    # Snapshots

    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        self._meddle(data)
        self._note(step("snapshot", name := f"s{self.count}"))
        before = self.mount.ours.numbers()
        self.take(name)
        self.mount.kept.append(Kept(name, self._copy_of(self.plain), before))
        self._require_numbers("the snapshot", before)
        self.observe()

    @rule(data=st.data(), drop=st.booleans(), at_once=st.booleans())
    def roll_back(self, data: st.DataObject, drop: bool, at_once: bool) -> None:
        kept = self.mount.kept
        if not kept:
            self.snapshot(data=data)
        self._meddle(data)
        at = data.draw(st.integers(0, len(kept) - 1))
        target = kept[at]
        self._note(step("roll_back", target.name, drop, at_once))
        there, named = self._held_in(target)
        self.go_back(target.name, drop=drop)
        del kept[at + (not drop) :]
        shutil.rmtree(self.plain.root)
        subprocess.run(["cp", "-a", target.copy, os.fsdecode(self.plain.root)], check=True)
        self._go_on_holding(there)
        for number in named if at_once else ():
            self._use(number)
        self._check_rolled_back("rollback", target)

    @rule(data=st.data(), at_once=st.booleans())
    def reset(self, data: st.DataObject, at_once: bool) -> None:
        """The root keeps what it has."""
        self._meddle(data)
        self._note(step("reset", at_once))
        there, named = self._held_in(self.mount.first)
        self.mount.kept.clear()
        self.drop_changes()
        root = Path(os.fsdecode(self.plain.root))
        times = root.stat()
        subprocess.run(["find", root, "-mindepth", "1", "-delete"], check=True)
        subprocess.run(["cp", "-a", self.mount.first.copy, anew := self.base / "anew"], check=True)
        for name in os.listdir(anew):
            (anew / name).rename(root / name)
        anew.rmdir()
        os.utime(root, ns=(times.st_atime_ns, times.st_mtime_ns))
        self._go_on_holding(there)
        for number in named if at_once else ():
            self._use(number)
        self._check_rolled_back("reset", self.mount.first)

    @rule(data=st.data())
    def drop_one(self, data: st.DataObject) -> None:
        kept = self.mount.kept
        if not kept:
            return
        dropped = kept.pop(data.draw(st.integers(0, len(kept) - 1)))
        self._note(step("drop_snapshot", dropped.name))
        before = self.mount.ours.numbers()
        self.drop_snapshot(dropped.name)
        shutil.rmtree(dropped.copy)
        self._observe_all()
        self._require_numbers("the drop", before)

    # Files that are open

    def _meddle(self, data: st.DataObject) -> None:
        """Open files, and do something to those that are open: by rules alone a rollback seldom meets any."""
        for held in range(MOST_OPEN):
            if held not in self.open_numbers:
                if data.draw(st.booleans()):
                    self.hold(data=data, number=held)
                continue
            names = self._names_of(held)
            match data.draw(st.sampled_from(("leave", "write", "unlink", "rename"))):
                case "write" if held not in READ_ONLY_NUMBERS:
                    self.do("held_write", held, 1, b"meddled with")
                case "unlink" if names:
                    self.do("unlink", data.draw(st.sampled_from(names)))
                case "rename" if names:
                    self.do("rename", data.draw(st.sampled_from(names)), self._place(data), 0)

    def _names_of(self, held: int) -> list[bytes]:
        number = self.plain.held_number(held)
        return [path for path, found in self.plain.numbers().items() if found == number]

    def _held_in(self, target: Kept) -> tuple[dict[int, bytes], list[int]]:
        """Which open files a state has, and under which name; and those of them that have a name now that they had
        then, by which ours finds them before anybody looks for them.

        A file without a name stays what it is, and one of its number comes into being beside it. When it is closed,
        that one may get its number back, and would be another file after the next rollback.
        """
        now = self.mount.ours.numbers()
        there: dict[int, bytes] = {}
        named: list[int] = []
        for held in sorted(self.open_numbers):
            number = self.mount.ours.held_number(held)
            names = [name for name, found in target.numbers.items() if found == number]
            if number - 1 in self.doubled:
                self._drop(held)
            elif not self.plain.held_links(held):
                self.doubled.update([number] if names else [])
            elif names:
                there[held] = names[0]
                if any(now.get(name) == number for name in names):
                    named.append(held)
        return there, named

    def _go_on_holding(self, there: dict[int, bytes]) -> None:
        """The open files of the plain directory are those that it has now."""
        for held, name in there.items():
            self.plain.drop(held)
            self.plain.hold(held, name, self._flags(held))

    def _check_rolled_back(self, what: str, target: Kept) -> None:
        self._observe_all()
        self._require_numbers(f"the {what}", target.numbers)
        for held in sorted(self.open_numbers):
            self._use(held)

    def _use(self, held: int) -> None:
        self.do("held_stat", held)
        self.do("held_read", held)

    def _comparable(self, numbers: dict[bytes, int]) -> dict[bytes, int]:
        return {path: number for path, number in numbers.items() if not self.doubled & {number, number - 1}}

    # The end

    def opened(self) -> list[Target]:
        of_mounts = (target for mount in self.mounts for target in (mount.plain, mount.ours))
        return list(dict.fromkeys([*self.targets, *of_mounts]))

    def _final_checks(self) -> None:
        for mount in self.mounts:
            self._turn_to(mount)
            self.observe()
            self.remount()
        for target in self.opened():
            target.close()
        self.targets, self.mounts = [], []
        self._check_lowers()


class EngineMachine(SnapshotMachine):
    def open_ours(self, place: Path, lowers: Sequence[Path], upper: Path, work: Path) -> Target:
        options = OverlayOptions(lowers=tuple(bytes(lower) for lower in lowers), upper=bytes(upper), work=bytes(work))
        return EngineTarget(options)

    @property
    def overlay(self) -> Overlay:
        assert isinstance(self.mount.ours, EngineTarget)
        return self.mount.ours.overlay

    def take(self, name: str) -> None:
        self.overlay.snapshot(name)

    def go_back(self, name: str, *, drop: bool) -> None:
        self.overlay.roll_back(name, drop=drop)

    def drop_snapshot(self, name: str) -> None:
        self.overlay.drop_snapshot(name)

    def drop_changes(self) -> None:
        self.overlay.reset()


class MountMachine(SnapshotMachine):
    options: tuple[str, ...] = ()

    def open_ours(self, place: Path, lowers: Sequence[Path], upper: Path, work: Path) -> Target:
        return MountedTarget(place, lowers, upper, work, *self.options)

    @property
    def place(self) -> bytes:
        assert isinstance(self.mount.ours, MountedTarget)
        return bytes(self.mount.ours.place)

    def _await_forgets(self) -> None:
        """A deleted file keeps its number until the kernel has told that it forgot it; of some dozens of messages and
        requests that wait together, requests come first."""
        for _ in range(100):
            os.getxattr(self.place, commanding.SETTLED_XATTR)

    def take(self, name: str) -> None:
        commanding.take_snapshot(self.place, name)

    def go_back(self, name: str, *, drop: bool) -> None:
        self._await_forgets()
        commanding.roll_back(self.place, name, drop=drop)

    def drop_snapshot(self, name: str) -> None:
        commanding.drop_snapshot(self.place, name)

    def drop_changes(self) -> None:
        self._await_forgets()
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
    run_state_machine_as_test(EngineMachine, settings=_settings(10, derandomize=True))


@pytest.mark.parametrize("machine", [MountMachine, MountWithoutLaneMachine])
def test_mount_agrees_with_copies_of_a_plain_directory(machine: type[MountMachine]) -> None:
    run_state_machine_as_test(machine, settings=_settings(3, derandomize=True))


@pytest.mark.long
@pytest.mark.parametrize("machine", [EngineMachine, MountMachine, MountWithoutLaneMachine])
def test_all_agree_over_many_steps(machine: type[SnapshotMachine]) -> None:
    run_state_machine_as_test(machine, settings=_settings(200, derandomize=False))
