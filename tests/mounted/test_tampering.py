"""Layers that change or lie: nothing outside is read or touched, nothing hangs, the daemon lives."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.actors import Who, as_actor, confine, fork
from tests.mounted.stack import RefusedError, Stack, make_tree, tree_of
from tests.property.paths import rename_with_flags, unmount
from tests.property.steps import RENAME_EXCHANGE

ROOT = Who(0, 0)
SECRET = b"only outside the layers"
PREFIX = "trusted.overlay."
Tamper = Callable[[Stack], None]
Observations = dict[str, tuple[object, ...]]


@pytest.fixture
def canary(scratch: Path) -> Iterator[Path]:
    """A tree outside that must be the same afterwards."""
    outside = scratch / "outside"
    make_tree(outside, ["sub/f0", "sub/f1", "sub/deep/f0", "f0", "f1"], SECRET)
    before = tree_of(outside)
    yield outside
    assert tree_of(outside) == before


# Looking


def observe(place: Path) -> Observations:
    """What each path beneath `place` gives to somebody confined to it, errors as their names."""
    found = as_actor(ROOT, _observe, place)
    assert isinstance(found, dict)
    return found


def _observe() -> Observations:
    root = Path("/")
    found: Observations = {}
    pending = [""]
    for name in pending:
        found[name] = _look(root / name)
        names = found[name][1]
        if isinstance(names, list) and len(found) < 1000:
            pending += [os.path.join(name, child) for child in names]
    return found


def _look(path: Path) -> tuple[object, ...]:
    mode = _try(lambda: stat.S_IFMT(path.lstat().st_mode))
    return (
        mode,
        _try(lambda: sorted(os.listdir(path))) if mode == stat.S_IFDIR else None,
        _try(path.read_bytes) if mode == stat.S_IFREG else None,
        _try(lambda: os.readlink(path)) if mode == stat.S_IFLNK else None,
    )


def _try(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def disturb(place: Path) -> None:
    """Try to change everything beneath `place`, confined to it; what fails, fails."""
    as_actor(ROOT, _disturb, place)


def _disturb() -> None:
    root = Path("/")
    for name in _observe():
        path = root / name
        _try(lambda path=path: path.joinpath("made").write_bytes(b"made"))  # type: ignore[misc]
        _try(lambda path=path: path.joinpath("sub").mkdir())  # type: ignore[misc]
        _try(lambda path=path: path.chmod(0o711))  # type: ignore[misc]
        _try(lambda path=path: _overwrite(path))  # type: ignore[misc]
        _try(lambda path=path: os.setxattr(path, "user.x", b"x"))  # type: ignore[misc]
    for name in filter(None, reversed(_observe())):
        path = root / name
        _try(lambda path=path: path.rename(path.with_name("moved")))  # type: ignore[misc]
        _try(lambda path=path: path.with_name("moved").unlink())  # type: ignore[misc]
        _try(lambda path=path: path.with_name("moved").rmdir())  # type: ignore[misc]


def _overwrite(path: Path) -> None:
    """Without waiting where it is a pipe that nobody reads."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
    try:
        os.write(descriptor, b"overwritten")
    finally:
        os.close(descriptor)


def is_alive(stack: Stack) -> bool:
    return as_actor(ROOT, lambda: stack.status["pid"]) == stack.pid


def shows_secret(found: Observations) -> list[str]:
    return [name for name, facts in found.items() if facts[2] == SECRET]


# Marks that lie


def _redirect(value: bytes, name: str = "d", layer: str = "upper") -> Tamper:
    return _xattr(name, "redirect", value, layer)


def _xattr(name: str, mark: str, value: bytes, layer: str = "upper") -> Tamper:
    return lambda stack: os.setxattr(stack.base / layer / name, PREFIX + mark, value)


def _all(*tampers: Tamper) -> Tamper:
    def tamper(stack: Stack) -> None:
        for each in tampers:
            each(stack)

    return tamper


def _swapped_for_link(path: str) -> Tamper:
    """A directory of a layer becomes a symlink to the outside."""

    def tamper(stack: Stack) -> None:
        place = stack.base / path
        place.rename(place.with_name(place.name + "-gone"))
        place.symlink_to(stack.base.parent / "outside")

    return tamper


def _whiteout(path: str) -> Tamper:
    return lambda stack: os.mknod(stack.base / path, stat.S_IFCHR, os.makedev(0, 0))


REDIRECTS: Mapping[str, bytes] = {
    "empty": b"",
    "dot": b".",
    "dotdot": b"..",
    "relative-with-slash": b"a/b",
    "relative-upwards": b"../outside",
    "absolute-upwards": b"/../../outside",
    "absolute-upwards-inside": b"/other/../../../outside",
    "root": b"/",
    "slashes": b"//",
    "double-slash": b"/other//sub",
    "trailing-slash": b"/other/",
    "dot-inside": b"/other/./sub",
    "outside-path": b"/etc",
    "nul": b"/ot\0her",
    "nul-at-end": b"/other\0",
    "not-utf-8": b"/\xff\xfe",
    "not-utf-8-name": b"\xff\xfe",
    "256-bytes": b"/" + b"x" * 255,
    "257-bytes": b"/" + b"x" * 256,
    "long": b"/" + b"/".join([b"x" * 100] * 20),
    "to-itself": b"/d",
    "below-itself": b"/d/sub/d",
    "to-a-file": b"/other/f0",
    "through-a-file": b"/other/f0/sub",
    "to-a-link": b"/link",
    "through-a-link": b"/link/sub",
    "to-nothing": b"/nothing/here",
    "good": b"/other",
}

CASES: dict[str, Tamper] = {
    **{f"redirect-{name}": _redirect(value) for name, value in REDIRECTS.items()},
    **{f"lower-redirect-{name}": _redirect(value, layer="lower0") for name, value in REDIRECTS.items()},
    **{
        f"file-redirect-{name}": _all(_xattr("file", "metacopy", b""), _redirect(value, "file"))
        for name, value in REDIRECTS.items()
    },
    "redirects-in-a-circle": _all(
        *(_redirect(b"/other", "d", layer) for layer in ("upper", "lower0")),
        *(_redirect(b"/d", "other", layer) for layer in ("upper", "lower0")),
    ),
    "two-redirects-to-one": _all(_redirect(b"/other", "d"), _redirect(b"/other", "d/sub")),
    "metacopy-without-data": _xattr("new", "metacopy", b""),
    "metacopy-short": _xattr("file", "metacopy", b"\0"),
    "metacopy-version": _xattr("file", "metacopy", b"\x09\x04\0\0"),
    "metacopy-length": _xattr("file", "metacopy", b"\0\xff\0\0"),
    "metacopy-digest": _xattr("file", "metacopy", b"\0\x24\0\x01" + b"d" * 32),
    "metacopy-long": _xattr("file", "metacopy", b"m" * 1000),
    "metacopy-on-directory": _xattr("d", "metacopy", b""),
    "metacopy-in-lower": _xattr("file", "metacopy", b"", "lower1"),
    "opaque-x": _xattr("d", "opaque", b"x"),
    "opaque-n": _xattr("d", "opaque", b"n"),
    "opaque-empty": _xattr("d", "opaque", b""),
    "opaque-long": _xattr("d", "opaque", b"y" * 100),
    "opaque-and-redirect": _all(_xattr("d", "opaque", b"y"), _redirect(b"/other")),
    "opaque-on-file": _xattr("file", "opaque", b"y"),
    "whiteout-in-opaque": _all(_xattr("d", "opaque", b"y"), _whiteout("upper/d/lower0")),
    "whiteout-of-nothing": _whiteout("upper/never-there"),
    "whiteout-in-pure-upper": _whiteout("upper/pure/never-there"),
    "origin-empty": _xattr("file", "origin", b""),
    "origin-short": _xattr("file", "origin", b"\0\xfb"),
    "origin-magic": _xattr("file", "origin", b"\0\x11\x20\0\x01" + b"o" * 32),
    "origin-length": _xattr("file", "origin", b"\0\xfb\xff\0\x01" + b"o" * 32),
    "origin-unknown": _xattr("file", "origin", b"\0\xfb\x25\0\x01" + b"o" * 32),
    "origin-on-directory": _xattr("d", "origin", b"\0\xfb\x25\0\x01" + b"o" * 32),
    "origin-long": _xattr("file", "origin", b"\0\xfb" + b"o" * 2000),
    "nlink-huge": _xattr("file", "nlink", b"U+99999999999999999999"),
    "nlink-negative": _xattr("file", "nlink", b"L-5"),
    "nlink-nonsense": _xattr("file", "nlink", b"\xff\0"),
    "upper-nonsense": _xattr("file", "upper", b"\xff\0"),
    "impure-nonsense": _xattr("d", "impure", b"\xff" * 50),
    "protattr-nonsense": _xattr("file", "protattr", b"\xff" * 50),
    "whiteout-mark-on-directory": _xattr("d", "whiteout", b"y"),
    "whiteout-mark-on-long-file": _xattr("file", "whiteout", b"y"),
    "root-opaque": _xattr("", "opaque", b"y"),
    "root-redirect": _redirect(b"/other", ""),
    "upper-directory-is-link": _swapped_for_link("upper/d"),
    "lower-directory-is-link": _swapped_for_link("lower0/d"),
    "bottom-directory-is-link": _swapped_for_link("lower1/d"),
    "nested-directory-is-link": _swapped_for_link("lower1/d/sub"),
}  # fmt: skip


REFUSED_BY_US = {
    "redirect-nul",
    "redirect-nul-at-end",
    "redirect-257-bytes",
    "redirect-long",
    "file-redirect-nul",
    "file-redirect-nul-at-end",
    "metacopy-version",
    "metacopy-length",
    "metacopy-long",
}
"""Malformed marks that the kernel happens to read as something; to us they are EIO."""


def departures(expected: Observations, found: Observations, *, may_refuse: bool) -> list[str]:
    """Where we show something else than the kernel does.

    Whatever error the kernel has for a mark that leads nowhere, ours is EIO. Names that the kernel lists but does
    not find (whiteouts where nothing is merged) we do not list. A second directory over the same lower one is
    ESTALE there; we show both.
    """
    wanted = _without_ghosts(expected)
    gone = {path for path, facts in found.items() if facts[0] == "EIO"}
    doubled = {path for path, facts in expected.items() if facts[0] == "ESTALE"}
    lines: list[str] = []
    for path in sorted(wanted.keys() | found.keys()):
        want, have = wanted.get(path), found.get(path)
        refused = have is not None and "EIO" in have
        justified = may_refuse or (want is not None and bool({"EIO", "EINVAL", "EACCES"} & set(map(str, want))))
        if (
            want != have
            and not (refused and justified)
            and not _is_below(path, gone)
            and not _is_below(path + "/.", doubled)
        ):
            lines.append(f"{path}: {have}, but the kernel {want}")
    return lines


def _without_ghosts(observed: Observations) -> Observations:
    ghosts = {path for path, facts in observed.items() if facts[0] == "ENOENT"}
    return {
        path: (facts[0], [name for name in facts[1] if os.path.join(path, name) not in ghosts], *facts[2:])
        if isinstance(facts[1], list)
        else facts
        for path, facts in observed.items()
        if path not in ghosts
    }


def _is_below(path: str, tops: set[str]) -> bool:
    return any(path.startswith(f"{top}/") for top in tops)


def _layers(stack: Stack) -> None:
    for layer in ("lower1", "lower0", "upper"):
        make_tree(
            stack.base / layer,
            [f"d/{layer}", "d/f0", "d/sub/f0", f"other/{layer}", "other/f0", "other/sub/f0", "file"],
            f"{layer:6}".encode(),  # a metacopy has the size of its data
        )
        (stack.base / layer / "link").symlink_to(stack.base.parent / "outside")
    make_tree(stack.upper, ["pure/f0", "new"], b"upper")


@contextmanager
def kernel_mount(stack: Stack) -> Iterator[Path]:
    """The kernel's reading of a copy of the same layers."""
    base = stack.base.with_name("kernel")
    subprocess.run(["cp", "-a", stack.base, base], check=True)
    copied = Stack(base, [base / lower.name for lower in stack.lowers])
    options = f"{copied.options},redirect_dir=on,metacopy=on,index=off"
    place = copied.place
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, place], check=True)
    try:
        yield place
    finally:
        unmount(place)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name.startswith("lower-") else ()) for name in CASES]
)
def test_lying_marks_are_errors_or_ignored_as_by_the_kernel(
    name: str, new_stack: Callable[..., Stack], canary: Path
) -> None:
    stack = new_stack(2)
    _layers(stack)
    CASES[name](stack)
    with kernel_mount(stack) as place:
        expected = observe(place)
    stack.mount("metacopy=on")
    found = observe(stack.place)
    assert shows_secret(found) == []
    assert departures(expected, found, may_refuse=name.removeprefix("lower-") in REFUSED_BY_US) == []
    disturb(stack.place)
    assert is_alive(stack)


@pytest.mark.parametrize("inside", ["work", "index"])
def test_workdir_that_leads_outside_is_not_followed(inside: str, stack: Stack, canary: Path) -> None:
    make_tree(stack.lowers[0], ["a/f0", "a/f1"], b"lower")
    os.link(stack.lowers[0] / "a/f0", stack.lowers[0] / "a/linked")
    (stack.work / inside).symlink_to(canary)
    try:
        stack.mount()
    except RefusedError as refusal:
        # that is an answer too
        reason = str(refusal)
    else:
        reason = ""
        disturb(stack.place)
    assert "Traceback" not in reason


def test_rubbish_in_the_index_is_not_followed(stack: Stack, canary: Path) -> None:
    make_tree(stack.lowers[0], ["f0"], b"lower")
    os.link(stack.lowers[0] / "f0", stack.lowers[0] / "f1")
    stack.mount()
    (stack.place / "f0").chmod(0o600)
    stack.unmount()
    for entry in (stack.work / "index").iterdir():
        entry.unlink()
        entry.symlink_to(canary / "f0")
    make_tree(stack.work / "index", ["nonsense", "00fb", "x" * 255, "\udcff"], SECRET)
    stack.mount()
    found = observe(stack.place)
    assert shows_secret(found) == []
    disturb(stack.place)
    assert is_alive(stack)


# Layers that change


ANSWERS_TO_CHANGE = {"ENOENT", "ESTALE", "EIO", "ENOTDIR", "EISDIR", "EINVAL", "ELOOP"}
CHANGES: dict[str, Callable[[Path], object]] = {
    "file-deleted": lambda lower: (lower / "d/f0").unlink(),
    "file-truncated": lambda lower: os.truncate(lower / "d/f0", 0),
    "file-grown": lambda lower: (lower / "d/f0").write_bytes(b"grown" * 10_000),
    "file-replaced": lambda lower: _away(lower / "d/f0").write_bytes(b"new"),
    "file-to-directory": lambda lower: _away(lower / "d/f0").mkdir(),
    "file-to-fifo": lambda lower: os.mkfifo(_away(lower / "d/f0")),
    "file-to-link": lambda lower: _away(lower / "d/f0").symlink_to("../../../outside/f0"),
    "file-to-whiteout": lambda lower: os.mknod(_away(lower / "d/f0"), stat.S_IFCHR, 0),
    "directory-renamed": lambda lower: (lower / "d").rename(lower / "elsewhere"),
    "directory-to-file": lambda lower: _away(lower / "d").write_bytes(b""),
    "directory-to-link": lambda lower: _away(lower / "d").symlink_to("../../outside"),
    "inner-directory-to-link": lambda lower: _away(lower / "d/sub").symlink_to("../../../outside/sub"),
    "all-deleted": lambda lower: subprocess.run(["rm", "-rf", *lower.iterdir()], check=True),
    "names-added": lambda lower: make_tree(lower, [f"d/added{number}" for number in range(50)]),
}


def _away(path: Path) -> Path:
    """Rename what is at `path`, to make something else there."""
    path.rename(path.with_name("gone"))
    return path


@pytest.mark.parametrize(
    ("seen", "timeout"),
    [
        pytest.param(True, "", id="after-a-look"),
        pytest.param(False, "timeout=0", id="before-a-look-no-timeout"),
        pytest.param(False, "", id="before-a-look", marks=pytest.mark.long),
        pytest.param(True, "timeout=0", id="after-a-look-no-timeout", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("name", CHANGES)
def test_changed_lower_layer_is_stale_or_an_error(
    name: str, seen: bool, timeout: str, stack: Stack, canary: Path
) -> None:
    make_tree(stack.lowers[0], ["d/f0", "d/f1", "d/sub/f0", "d/sub/deep/f0", "f0"], b"lower")
    stack.mount(timeout)
    if seen:
        observe(stack.place)
    CHANGES[name](stack.lowers[0])
    found = observe(stack.place)
    assert shows_secret(found) == []
    wrong = {answer for facts in found.values() for answer in facts if isinstance(answer, str) and answer[0] == "E"}
    assert wrong <= ANSWERS_TO_CHANGE
    disturb(stack.place)
    assert is_alive(stack)
    stack.remount()
    observe(stack.place)


def test_layer_that_is_gone_is_stale_or_an_error(stack: Stack) -> None:
    make_tree(stack.lowers[0], ["d/f0", "f0"], b"lower")
    stack.mount()
    subprocess.run(["rm", "-rf", stack.lowers[0]], check=True)
    observe(stack.place)
    disturb(stack.place)
    assert is_alive(stack)
    with pytest.raises(RefusedError, match="does not exist"):
        stack.remount()


# Layers that change all the time


@dataclass
class Workers:
    """Children that do one thing over and over until they are told to stop."""

    pids: list[int]

    @classmethod
    def start(cls, *calls: Callable[[int], object]) -> Workers:
        return cls([cls._fork(call) for call in calls])

    @staticmethod
    def _fork(call: Callable[[int], object]) -> int:
        return fork(lambda: _over_and_over(call))

    def stop(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)


def _over_and_over(call: Callable[[int], object]) -> None:
    for turn in itertools.count():
        _try(functools.partial(call, turn))


def _swap(place: Path) -> Callable[[int], object]:
    """Exchange `place` with a symlink to the outside, back and forth, whatever is done to the directories above."""
    name = os.fsencode(place.name)
    directory = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)

    def call(turn: int) -> None:
        if turn == 0:
            os.fchdir(directory)
        rename_with_flags(name, name + b"-link", RENAME_EXCHANGE)

    return call


def _client(place: Path, number: int) -> Callable[[int], object]:
    def call(turn: int) -> None:
        if turn == 0:
            confine(place)
        where = Path("/") / ("d", "d/sub", "d/sub/deep")[turn % 3]
        name = f"f{(turn + number) % 4}"
        calls: tuple[Callable[[], object], ...] = (
            lambda: (where / name).write_bytes(b"written by a client"),
            (where / name).read_bytes,
            lambda: (where / f"new{number}").write_bytes(b"made by a client"),
            (where / f"new{number}").unlink,
            lambda: (where / name).chmod(0o600 + turn % 8),
            lambda: os.chown(where / name, 5, 5, follow_symlinks=False),
            lambda: os.setxattr(where / name, "user.client", b"x", follow_symlinks=False),
            lambda: os.truncate(where / name, 3),
            lambda: (where / name).rename(where / f"moved{number}"),
            (where / f"made{number}").mkdir,
            (where / f"made{number}").rmdir,
            (where / name).unlink,
            lambda: os.listdir(where),
            lambda: os.symlink("x", where / f"link{number}"),
            (where / f"link{number}").unlink,
        )
        for each in calls:
            _try(each)

    return call


@pytest.mark.parametrize("timeout", ["", "timeout=0"])
def test_directories_swapped_for_links_lead_nobody_out(timeout: str, stack: Stack, canary: Path, long: bool) -> None:
    for layer in (stack.upper, stack.lowers[0]):
        make_tree(layer, [f"d/{inside}f{number}" for inside in ("", "sub/", "sub/deep/") for number in range(4)])
        (layer / "d-link").symlink_to(canary)
        (layer / "d/sub-link").symlink_to(canary / "sub")
    stack.mount(timeout)
    workers = Workers.start(
        _swap(stack.upper / "d"),
        _swap(stack.upper / "d/sub"),
        *(_client(stack.place, number) for number in range(3)),
    )
    try:
        found = _watch(stack, looks=600 if long else 12)
    finally:
        workers.stop()
    assert shows_secret(found) == []
    assert is_alive(stack)
    stack.remount()


def _watch(stack: Stack, looks: int) -> Observations:
    """Read everything so many times while others work; what held the secret, or else the last look."""
    found: Observations = {}
    for _ in range(looks):
        found = observe(stack.place)
        if shows_secret(found):
            break
    return found
