"""The state machine: each step is done on ours, a plain directory and the kernel's overlayfs."""

import os
import shutil
import stat
import struct
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from . import trees
from .intended import READ_ONLY_NUMBERS, is_intended, without_deleted_names
from .paths import KernelTarget, PlainTarget, snapshot
from .steps import RENAME_EXCHANGE, RENAME_NOREPLACE, UMASK, Snapshot, Step, Target, differences, outcome_of, step

NEVER_NS = 1 << 62
XATTR_NAMES = (b"user.one", b"user.three", b"trusted.two", b"security.capability")
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
"""`cap_net_bind_service=ep`: struct vfs_cap_data, capabilities(7)."""


def posix_acl(user: int, mask: int) -> bytes:
    """An ACL in which user 1000 has `user` as far as `mask` allows: linux/posix_acl_xattr.h."""
    entries = ((0x01, 7, -1), (0x02, user, 1000), (0x04, 5, -1), (0x10, mask, -1), (0x20, 1, -1))
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permissions, who & 0xFFFFFFFF) for tag, permissions, who in entries
    )


Opener = Callable[[Path, Sequence[Path], Path, Path], Target]
"""Mounts at a place the lowers with an upper and its workdir."""


class Divergence(AssertionError):
    """One of the three says something else."""


class ThreeWays(RuleBasedStateMachine):
    """Ours, plain and kernel start from the same generated layers. A subclass says what ours is."""

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = ExitStack()
        self.base = Path(tempfile.mkdtemp(prefix="ovl-property-"))
        self.cleanup.callback(shutil.rmtree, self.base, ignore_errors=True)
        self.cleanup.callback(os.umask, os.umask(UMASK))
        self.plain = PlainTarget(self.base / "plain")
        self.targets: list[Target] = []
        self.open_numbers: set[int] = set()
        self.diverged = False
        self.layers: tuple[trees.Layer, ...] = ()
        self.done: list[Step] = []  # with the layers, all that is needed to do it again

    @abstractmethod
    def open_ours(self, place: Path, lowers: Sequence[Path], upper: Path, work: Path) -> Target:
        """A target that is ours, mounted at `place` if it needs a mount."""

    def openers(self) -> tuple[tuple[str, Opener], ...]:
        """What is compared with the plain directory; ours comes last."""
        return (("kernel", KernelTarget), ("ours", self.open_ours))

    def _directory(self, name: str) -> Path:
        path = self.base / name
        path.mkdir()
        return path

    @initialize(layers=trees.stacks())
    def build(self, layers: tuple[trees.Layer, ...]) -> None:
        self.layers = layers
        self.lowers = [self._directory(f"lower{index}") for index in range(len(layers))]
        for layer, lower in zip(layers, self.lowers, strict=True):
            trees.write(layer, os.fsencode(lower))
        self.lower_before = self._lower_snapshots()
        trees.write(trees.merge(layers), os.fsencode(self._directory("plain")))
        self.targets = [self.plain]
        for name, opener in self.openers():
            places = [self._directory(f"{name}-{what}") for what in ("mount", "upper", "work")]
            # the upper's root is the mount's
            trees.write({b"": layers[0][b""]}, os.fsencode(places[1]))
            self._add(opener, places)
        self.observe()

    def _add(self, opener: Opener, places: list[Path]) -> None:
        mount, upper, work = places
        self.targets.append(opener(mount, self.lowers, upper, work))

    def _lower_snapshots(self) -> list[Snapshot]:
        return [snapshot(os.fsencode(lower), NEVER_NS) for lower in self.lowers]

    # Comparing

    def do(self, operation: str, *arguments: object) -> object:
        """Do one step everywhere; the plain directory's outcome is returned."""
        wanted = step(operation, *arguments)
        self._note(wanted)
        plain = outcome_of(self.plain, wanted)
        for target in self.targets[1:]:
            found = outcome_of(target, wanted)
            if found != plain and not is_intended(target.name, wanted, plain, found):
                self._diverge(f"{target.name}: {wanted} gave {found!r}, a plain directory {plain!r}")
        return plain

    def _note(self, wanted: Step) -> None:
        note(str(wanted))
        self.done.append(wanted)

    def _diverge(self, what: str) -> NoReturn:
        self.diverged = True
        raise Divergence(what)

    def _compare(self, name: str, expected: Snapshot, found: Snapshot) -> None:
        lines = list(differences(expected, found))
        if lines:
            self._diverge(f"{name} shows another tree:\n  " + "\n  ".join(lines))

    @rule()
    def observe(self) -> None:
        self._note(step("observe"))
        expected = self.plain.snapshot()
        for target in self.targets[1:]:
            self._compare(target.name, expected, self._snapshot(target))

    def _snapshot(self, target: Target) -> Snapshot:
        """The target's whole tree; that it can be read without an error is part of the comparison."""
        try:
            return target.snapshot()
        except OSError as error:
            self._diverge(f"{target.name}: what it lists cannot be read: {error!r}")

    # Choosing

    def _paths(self, accept: Callable[[int], bool] = lambda mode: True) -> list[bytes]:
        """What is there, but the root, in a plain directory's order."""
        root = self.plain.root
        return [path for path in self.plain.snapshot() if path and accept(os.lstat(os.path.join(root, path)).st_mode)]

    def _there(self, data: st.DataObject, accept: Callable[[int], bool] = lambda mode: True) -> bytes:
        """A path that mostly names something of the wanted kind."""
        wanted = self._paths(accept)
        if wanted and data.draw(st.integers(0, 9)) > 0:
            return data.draw(st.sampled_from(wanted))
        path: bytes = data.draw(trees.PATHS)
        return path

    def _place(self, data: st.DataObject) -> bytes:
        """A path that may be free, in a directory that mostly exists."""
        directory = data.draw(st.sampled_from([b"", *self._paths(stat.S_ISDIR)]))
        return os.path.join(directory, data.draw(st.sampled_from(trees.NAMES)))

    def _is_fifo(self, path: bytes) -> bool:
        try:
            return stat.S_ISFIFO(os.stat(os.path.join(self.plain.root, path)).st_mode)
        except OSError:
            return False

    # Steps: files

    @rule(
        data=st.data(),
        flags=st.sampled_from((0, os.O_EXCL, os.O_TRUNC)),
        mode=st.sampled_from((0o666, 0o600, 0o4755, 0o777)),
        content=st.sampled_from((b"", b"new", b"N" * 5000)),
    )
    def create(self, data: st.DataObject, flags: int, mode: int, content: bytes) -> None:
        path = self._place(data)
        if not self._is_fifo(path):
            self.do("create", path, flags, mode, content)

    @rule(data=st.data(), offset=st.sampled_from((0, 2, 5000)), content=st.sampled_from((b"w", b"W" * 4096)))
    def write(self, data: st.DataObject, offset: int, content: bytes) -> None:
        path = self._there(data, stat.S_ISREG)
        if not self._is_fifo(path):
            self.do("write", path, offset, content)

    @rule(data=st.data(), content=st.sampled_from((b"+", b"appended" * 100)))
    def append(self, data: st.DataObject, content: bytes) -> None:
        path = self._there(data, stat.S_ISREG)
        if not self._is_fifo(path):
            self.do("append", path, content)

    @rule(data=st.data(), size=st.sampled_from((0, 1, 4096, 100_000)))
    def truncate(self, data: st.DataObject, size: int) -> None:
        path = self._there(data, stat.S_ISREG)
        # to the size it has: ext4 sets the times, tmpfs does not, and POSIX allows both
        if self._size(path) != size:
            self.do("truncate", path, size)

    def _size(self, path: bytes) -> int | None:
        try:
            return os.stat(os.path.join(self.plain.root, path)).st_size
        except OSError:
            return None

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        path = self._there(data)
        self.do("stat", path)
        self.do("readlink", path)
        self.do("listdir", path)
        if not self._is_fifo(path):
            self.do("read", path)

    @rule(data=st.data(), number=st.integers(0, 3))
    def hold(self, data: st.DataObject, number: int) -> None:
        path = self._there(data, stat.S_ISREG)
        if number in self.open_numbers or self._is_fifo(path) or os.path.isdir(os.path.join(self.plain.root, path)):
            return
        if not isinstance(self.do("hold", number, path, self._flags(number)), str):
            self.open_numbers.add(number)

    def _flags(self, number: int) -> int:
        return os.O_RDONLY if number in READ_ONLY_NUMBERS else os.O_RDWR

    @rule(data=st.data(), size=st.sampled_from((0, 3, 9000)), content=st.sampled_from((b"held", b"H" * 4096)))
    def use_held(self, data: st.DataObject, size: int, content: bytes) -> None:
        if not self.open_numbers:
            return
        number = data.draw(st.sampled_from(sorted(self.open_numbers)))
        self.do("held_stat", number)
        self.do("held_read", number)
        if number not in READ_ONLY_NUMBERS:
            self.do("held_truncate", number, size)
            self.do("held_write", number, size // 2, content)
            self.do("held_stat", number)
            self.do("held_read", number)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.open_numbers:
            self._drop(data.draw(st.sampled_from(sorted(self.open_numbers))))

    def _drop(self, number: int) -> None:
        self.open_numbers.remove(number)
        self.do("drop", number)

    # Steps: names

    @rule(data=st.data(), mode=st.sampled_from((0o755, 0o777, 0o2775, 0o1750)))
    def mkdir(self, data: st.DataObject, mode: int) -> None:
        self.do("mkdir", self._place(data), mode)

    @rule(data=st.data())
    def rmdir(self, data: st.DataObject) -> None:
        self.do("rmdir", self._there(data, stat.S_ISDIR))

    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        self.do("unlink", self._there(data, lambda mode: not stat.S_ISDIR(mode)))

    @rule(data=st.data())
    def remove_tree(self, data: st.DataObject) -> None:
        """As rm -r: directories become empty far more often this way."""
        top = self._there(data, stat.S_ISDIR)
        inside = [path for path in self._paths() if path.startswith(top + b"/")]
        for path in reversed(inside):
            self.do("rmdir" if os.path.isdir(self._real(path)) else "unlink", path)
        self.do("rmdir", top)

    def _real(self, path: bytes) -> bytes:
        """A place whose kind can be asked; links are not followed."""
        place = os.path.join(self.plain.root, path)
        return place if not os.path.islink(place) else b"/dev/null"

    @rule(data=st.data(), flags=st.sampled_from((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE)))
    def rename(self, data: st.DataObject, flags: int) -> None:
        old = self._there(data)
        new = self._there(data) if flags == RENAME_EXCHANGE or data.draw(st.booleans()) else self._place(data)
        self.do("rename", old, new, flags)

    @rule(data=st.data())
    def rename_directory(self, data: st.DataObject) -> None:
        self.do("rename", self._there(data, stat.S_ISDIR), self._place(data), 0)

    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        self.do("link", self._there(data), self._place(data))

    @rule(data=st.data(), goal=trees.TARGETS)
    def symlink(self, data: st.DataObject, goal: bytes) -> None:
        self.do("symlink", goal, self._place(data))

    @rule(data=st.data(), mode=st.sampled_from((0o644, 0o666)))
    def mkfifo(self, data: st.DataObject, mode: int) -> None:
        self.do("mkfifo", self._place(data), mode)

    # Steps: attributes

    @rule(data=st.data(), mode=st.sampled_from((0o600, 0o4711, 0o2755, 0o755, 0o1750)))
    def chmod(self, data: st.DataObject, mode: int) -> None:
        self.do("chmod", self._there(data), mode)

    @rule(data=st.data(), uid=st.sampled_from((-1, 0, 1000)), gid=st.sampled_from((-1, 0, 2000)))
    def chown(self, data: st.DataObject, uid: int, gid: int) -> None:
        self.do("chown", self._there(data), uid, gid)

    @rule(data=st.data(), past=trees.TIMES)
    def utimens(self, data: st.DataObject, past: int) -> None:
        self.do("utimens", self._there(data), past - 1, past)

    @rule(data=st.data(), name=st.sampled_from(XATTR_NAMES), flags=st.sampled_from((0, 0, 1, 2)))
    def setxattr(self, data: st.DataObject, name: bytes, flags: int) -> None:
        value = CAPABILITY if name == b"security.capability" else data.draw(st.sampled_from((b"", b"1", b"x" * 200)))
        accept = stat.S_ISREG if name == b"security.capability" else None
        self.do("setxattr", self._there(data, accept or (lambda mode: True)), name, value, flags)

    @rule(data=st.data(), name=st.sampled_from(XATTR_NAMES))
    def getxattr(self, data: st.DataObject, name: bytes) -> None:
        self.do("getxattr", self._there(data), name)

    @rule(data=st.data(), name=st.sampled_from(XATTR_NAMES))
    def removexattr(self, data: st.DataObject, name: bytes) -> None:
        self.do("removexattr", self._there(data), name)

    @rule(
        data=st.data(),
        user=st.sampled_from((0, 4, 6)),
        mask=st.sampled_from((0, 5, 7)),
        default=st.booleans(),
    )
    def set_acl(self, data: st.DataObject, user: int, mask: int, default: bool) -> None:
        accept = stat.S_ISDIR if default else lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        wanted = self._paths(accept)
        if wanted:
            kind = b"default" if default else b"access"
            path = data.draw(st.sampled_from(wanted))
            self.do("setxattr", path, b"system.posix_acl_" + kind, posix_acl(user, mask), 0)

    # Steps: mounts

    @rule()
    def remount(self) -> None:
        for number in sorted(self.open_numbers):
            self._drop(number)
        self._note(step("remount"))
        before = self.targets[-1].numbers()
        for target in self.targets:
            target.remount()
        self._require_numbers("the remount", before)
        self.observe()

    def _require_numbers(self, what: str, wanted: dict[bytes, int]) -> None:
        found = self.targets[-1].numbers()
        if self._comparable(found) != self._comparable(wanted):
            self._diverge(f"inode numbers changed with {what}: {wanted} became {found}")

    def _comparable(self, numbers: dict[bytes, int]) -> dict[bytes, int]:
        """Those inode numbers that must stay."""
        return numbers

    def opened(self) -> list[Target]:
        """All that is to be closed at the end."""
        return self.targets

    def teardown(self) -> None:
        try:
            if self.targets and not self.diverged:
                self._final_checks()
        finally:
            for target in self.opened():
                self.cleanup.callback(target.close)
            self.cleanup.close()

    def _final_checks(self) -> None:
        self.observe()
        self.remount()
        expected = self.plain.snapshot()
        while len(self.targets) > 1:
            self.targets.pop().close()
        self._check_lowers()
        self._check_interchange(expected)

    def _check_lowers(self) -> None:
        for index, (before, after) in enumerate(zip(self.lower_before, self._lower_snapshots(), strict=True)):
            self._compare(f"lower{index}, which nobody may change,", before, after)

    def _check_interchange(self, expected: Snapshot) -> None:
        """faults 19: each mounts what the other wrote and shows the same tree."""
        place = self._directory("interchange")
        openers: tuple[tuple[str, Opener], ...] = (("kernel", self.open_ours), ("ours", KernelTarget))
        for writer, opener in openers:
            note(f"interchange: what {writer} wrote")
            upper = self.base / f"{writer}-upper"
            self._add(opener, [place, upper, self.base / f"{writer}-work"])
            self.targets[-1].started_ns = self.plain.started_ns
            found = self._snapshot(self.targets[-1])
            self.targets.pop().close()
            if writer == "ours":
                found = without_deleted_names(expected, found, upper)
            self._compare(f"over the upper that {writer} wrote, the other", expected, found)
