"""What an ordinary user's mount does with the user's own files, whatever their modes: what a plain directory does.

The kernel checks who may do what (default_permissions); the daemon's own permissions on disk must not come between.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import permission_rows as rows
from tests.mounted.actors import Who, as_actor
from tests.mounted.permission_rows import Call, Row, Thing
from tests.mounted.program import AS_USER, SILENT_SUCCESS, Place, has_ended, make_place, open_device

USER = 1000
OWNER = Who(USER, USER)
Facts = dict[str, tuple[object, ...]]


def thing(mode: int, content: bytes = b"content") -> Thing:
    return Thing(mode, USER, USER, content=content)


def append(name: str) -> Call:
    return rows.opened(name, os.O_WRONLY | os.O_APPEND, lambda descriptor: os.write(descriptor, b"more"))


def keep_open(name: str, mode: int) -> Call:
    """Go on with a file whose mode forbids it since it was opened."""

    def use(descriptor: int) -> object:
        os.fchmod(descriptor, mode)
        os.write(descriptor, b"first")
        os.ftruncate(descriptor, 100)
        os.fsync(descriptor)
        return os.pread(descriptor, 100, 0), os.fstat(descriptor).st_size

    return rows.opened(name, os.O_RDWR, use)


def program(*words: str) -> Call:
    """A program in the row's directory: its exit status, and what it printed."""

    def call(directory: Path) -> object:
        done = subprocess.run(words, cwd=directory, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False)
        return done.returncode, done.stdout, done.stderr

    return call


def _in_directories() -> Iterator[Row]:
    """What happens in, to and below a directory of each mode."""
    calls = (
        rows.listdir("d"),
        append("d/f"),
        append("d/e/g"),
        rows.truncate("d/e/h", 3),
        rows.create("d/e/new"),
        rows.mkdir("d/e/sub", 0o555),
        rows.symlink("d/e/link"),
        rows.chmod("d/f", 0o600),
        rows.utimes("d/f"),
        rows.setxattr("d/e/g", "user.x"),
        rows.link("d/e/g", "d/e/i"),
        rows.rename("d/e/h", "d/e/moved"),
        rows.unlink("d/e/i"),
        rows.rename("d/f", "d/e/f"),
        rows.create("d/new"),
        rows.unlink("d/f"),
        rows.rename("d/e", "d/e2"),
        rows.setxattr("d", "user.x"),
        rows.utimes("d"),
        rows.rename("d", "d2"),
        rows.rename("d2", "o/d"),
        rows.rmdir("d2"),
    )
    for mode in (0o555, 0o500, 0o111, 0o444, 0o333, 0o000, 0o077, 0o2555):
        things = {
            "d/": thing(mode), "d/f": thing(0o644), "d/e/": thing(0o755), "d/e/g": thing(0o444 | 0o200),
            "d/e/h": thing(0o644), "o/": thing(0o755),
        }  # fmt: skip
        yield Row(f"directory-{mode:04o}", things, OWNER, calls)


def _to_files() -> Iterator[Row]:
    calls = (
        rows.read("f"),
        append("f"),
        rows.truncate("f", 4),
        rows.setxattr("f", "user.x"),
        rows.getxattr("f", "user.there"),
        rows.listxattr("f"),
        rows.utimes("f"),
        rows.link("f", "g"),
        rows.rename("f", "h"),
        rows.rename("h", "d/h"),
        rows.rename("other", "d/h"),
        rows.unlink("g"),
    )
    for mode in (0o000, 0o200, 0o111, 0o444, 0o555, 0o066):
        file = Thing(mode, USER, USER, {"user.there": b"1"}, b"content " * 1000)
        yield Row(f"file-{mode:04o}", {"f": file, "other": thing(0), "d/": thing(0o755)}, OWNER, calls)
        yield Row(f"chmod-{mode:04o}", {"f": file}, OWNER, (rows.chmod("f", 0o640), rows.read("f"), append("f")))
        yield Row(
            f"linked-{mode:04o}", {"f": file, "g": Thing(0, link="f")}, OWNER, (rows.chmod("g", 0o600), append("f"))
        )
        yield Row(f"open-{mode:04o}", {"f": Thing(0o600, USER, USER)}, OWNER, (keep_open("f", mode), rows.stat("f")))
    yield Row("empty-0000", {"f": thing(0, b"")}, OWNER, (rows.chmod("f", 0o600), append("f")))


def _made_and_removed() -> Iterator[Row]:
    for mode in (0o555, 0o111, 0o333, 0o000):
        calls = (
            rows.mkdir("new", mode),
            rows.rename("new", "new2"),
            rows.rmdir("new2"),
            rows.rmdir("empty"),
            rows.mkdir("empty", mode),
            rows.rmdir("full"),
            rows.rename("empty2", "empty3"),
            rows.rename("other", "empty3"),
            program("rm", "-rf", "gone"),
            rows.mkdir("gone", mode),
        )
        things = {
            "empty/": thing(mode), "empty2/": thing(mode), "full/": thing(mode), "full/f": thing(0o644),
            "other/": thing(0o755), "gone/": thing(0o755), "gone/f": thing(0o644),
        }  # fmt: skip
        yield Row(f"made-{mode:04o}", things, OWNER, calls)


def _trees() -> Iterator[Row]:
    cache = {
        "m/": thing(0o555), "m/mod/": thing(0o555), "m/mod/a.go": thing(0o444), "m/mod/sub/": thing(0o555),
        "m/mod/sub/b.go": thing(0o444),
    }  # fmt: skip
    yield Row("go-cache-refuses-rm", cache, OWNER, (program("rm", "-rf", "m"),))
    yield Row("go-cache-clean", cache, OWNER, (program("chmod", "-R", "u+w", "m"), program("rm", "-rf", "m")))
    yield Row("go-cache-copied", cache, OWNER, (program("cp", "-a", "m", "n"), program("mv", "n", "k")))
    yield Row("nix-store-path-replaced", cache, OWNER, (
        program("mv", "m", "old"), program("cp", "-a", "old", "m"), program("chmod", "-R", "u+w", "old"),
        program("rm", "-r", "old"), program("ln", "-s", "m", "current"),
    ))  # fmt: skip
    archive = (
        "tar -cf t.tar m && chmod -R u+w m && rm -r m && tar -xpf t.tar && tar -xpf t.tar; rm t.tar; find m | sort"
    )
    yield Row("tar-unpacks-read-only-tree", cache, OWNER, (program("sh", "-c", archive),))


ROWS = (*_in_directories(), *_to_files(), *_made_and_removed(), *_trees())
# As in test_permissions: on the upper, where nothing is copied up, by default every third.
_ROWS_ON_UPPER = [pytest.param(row, marks=[] if at % 3 == 0 else [pytest.mark.long]) for at, row in enumerate(ROWS)]


def _put(row: Row, directory: Path) -> None:
    """Make the row's things as root, whom no mode hinders."""
    directory.mkdir()
    os.chown(directory, USER, USER)
    for name, made in row.things.items():
        place = directory / name
        if made.link is not None:
            os.link(directory / made.link, place)
            continue
        place.mkdir() if name.endswith("/") else place.write_bytes(made.content)
        os.chown(place, USER, USER)
        for attribute, value in made.xattrs.items():
            os.setxattr(place, attribute, value)
        place.chmod(made.mode)


def _look(directory: Path) -> Facts:
    """As the owner, who may not look into everything: note what each is, then open it up."""
    found: Facts = {}
    for name in sorted(os.listdir(directory)):
        place = directory / name
        info = place.lstat()
        links = None if stat.S_ISDIR(info.st_mode) else info.st_nlink
        if not place.is_symlink():
            place.chmod(0o700)
        content = place.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        xattrs = [] if place.is_symlink() else [(at, os.getxattr(place, at)) for at in sorted(os.listxattr(place))]
        found[name] = oct(info.st_mode), info.st_uid, info.st_gid, links, xattrs, content
        if stat.S_ISDIR(info.st_mode):
            found |= {f"{name}/{below}": facts for below, facts in _look(place).items()}
    return found


def _play(row: Row, directory: Path) -> list[object]:
    return [as_actor(row.who, lambda call=call: call(directory)) for call in row.calls]  # type: ignore[misc]


class Arena:
    """A user's mount, and a plain directory beside it."""

    def __init__(self, place: Place, options: str) -> None:
        self.place = place
        self.options = options
        self.plain = place.base / "plain"
        self.plain.mkdir()
        for path in (place.base, *place.base.iterdir()):
            os.chown(path, USER, USER)

    def mount(self) -> None:
        words = (str(USER), "-o", f"{self.place.options}{self.options}", self.place.target)
        assert self.place.run(*words, command=(sys.executable, "-c", AS_USER)) == SILENT_SUCCESS
        pid = as_actor(OWNER, lambda: self.place.status()["pid"])
        assert isinstance(pid, int)
        self.place.pidfds.append(os.pidfd_open(pid))

    def remount(self) -> None:
        subprocess.run(["umount", self.place.target], check=True)
        assert has_ended(self.place.pidfds[-1])
        self.mount()

    def play(self, row: Row, suffix: str = "") -> tuple[list[object], list[object]]:
        """What the row's calls give in the mount, and on the plain directory."""
        there, here = (top / f"{row.name}{suffix}" for top in (self.place.target, self.plain))
        return _play(row, there), _play(row, here)

    def look(self, row: Row, suffix: str = "") -> tuple[object, object]:
        there, here = (top / f"{row.name}{suffix}" for top in (self.place.target, self.plain))
        return as_actor(OWNER, lambda: _look(there)), as_actor(OWNER, lambda: _look(here))


_OPTIONS = (
    "",
    pytest.param(",whiteout=oci", marks=pytest.mark.long),
    pytest.param(",whiteout=overlay-xattr,fsync=strict", marks=pytest.mark.long),
    pytest.param(",metacopy=on,lane=off", marks=pytest.mark.long),
)


@pytest.fixture(scope="module", params=_OPTIONS)
def arena(module_scratch: Path, request: pytest.FixtureRequest) -> Iterator[Arena]:
    """The rows' directories in the lower layer, in the upper, and in the lower once more for a remount."""
    base = Path(tempfile.mkdtemp(dir=module_scratch))
    base.chmod(0o755)
    arena = Arena(make_place(base), request.param)
    for row in ROWS:
        for suffix, layer in (("", "bottom"), ("-upper", "upper"), ("-again", "bottom")):
            _put(row, base / layer / f"{row.name}{suffix}")
            _put(row, arena.plain / f"{row.name}{suffix}")
    with open_device():
        arena.mount()
        yield arena
        arena.place.clear()


@pytest.fixture(scope="module")
def remounted(arena: Arena) -> Arena:
    """The same, all rows played in their directories, by another daemon."""
    for row in ROWS:
        arena.play(row, "-again")
    arena.remount()
    return arena


def assert_plain(row: Row, suffix: str, arena: Arena) -> None:
    mounted, plain = arena.play(row, suffix)
    assert mounted == plain
    mounted_tree, plain_tree = arena.look(row, suffix)
    assert mounted_tree == plain_tree


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_modes_of_lower_files_mean_what_they_mean_on_a_plain_directory(row: Row, arena: Arena) -> None:
    assert_plain(row, "", arena)


@pytest.mark.parametrize("row", _ROWS_ON_UPPER, ids=lambda row: row.name)
def test_modes_of_upper_files_mean_what_they_mean_on_a_plain_directory(row: Row, arena: Arena) -> None:
    assert_plain(row, "-upper", arena)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_next_mount_shows_the_same(row: Row, remounted: Arena) -> None:
    mounted, plain = remounted.look(row, "-again")
    assert mounted == plain
