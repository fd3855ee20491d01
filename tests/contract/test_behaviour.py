"""What needs more than one call to see: listings that change, stable numbers, mappings, direct I/O."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.contract import libc
from tests.contract.case import Case
from tests.contract.client import Client, Credentials
from tests.contract.engine_client import EngineClient
from tests.contract.play import check_step, directories
from tests.contract.posix_client import PosixClient, acting_as
from tests.contract.steps import make_symlink, mkdir, rename, rmdir, unlink
from tests.contract.targets import EngineTarget, FuseTarget, KernelTarget, Target
from tests.contract.tree import Format, Tree, char, directory, fifo, file, hardlink, symlink, whiteout

LOW = file(b"low", 0o640, 5, 6)


@pytest.fixture(scope="module")
def fuse() -> Iterator[FuseTarget]:
    target = FuseTarget()
    yield target
    target.close()


@pytest.fixture(scope="module")
def without_lane() -> Iterator[FuseTarget]:
    target = FuseTarget(lane=False)
    yield target
    target.close()


WITHOUT_LANE = pytest.param("without_lane", marks=pytest.mark.long)


@pytest.fixture(params=["engine", "fuse", WITHOUT_LANE, "kernel"])
def target(request: pytest.FixtureRequest) -> Target:
    return _target(request)


@pytest.fixture(params=["engine", "fuse", WITHOUT_LANE])
def ours(request: pytest.FixtureRequest) -> Target:
    return _target(request)


def _target(request: pytest.FixtureRequest) -> Target:
    match request.param:
        case "engine":
            return EngineTarget()
        case "kernel":
            return KernelTarget()
    target: Target = request.getfixturevalue(request.param)
    return target


@contextmanager
def mounted(target: Target, lowers: list[Tree], upper: Tree | None = None) -> Iterator[Client]:
    with (
        directories(Case("one", lowers, {}, upper=upper or {}), Format.OVERLAY) as places,
        target.mounted(places, Format.OVERLAY, {}) as client,
    ):
        yield client


def _names(first: str, count: int) -> list[str]:
    return [f"{first}{at:03}" for at in range(count)]


MIXED: list[Tree] = [
    {f"d/{name}": LOW for name in _names("low", 60)},
    {f"d/{name}": LOW for name in [*_names("low", 30), *_names("deep", 40)]},
]
MIXED_UPPER: Tree = {f"d/{name}": LOW for name in _names("up", 50)} | {"d/low000": whiteout()}
ALL = {*_names("low", 60), *_names("deep", 40), *_names("up", 50)} - {"low000"}


def _rest(client: Client, key: str) -> list[str]:
    found: list[str] = []
    while entries := client.readdir(key, 7):
        found += [os.fsdecode(entry.name) for entry in entries]
    return found


def test_listing_in_pieces_is_the_whole(target: Target) -> None:
    with mounted(target, MIXED, MIXED_UPPER) as client:
        client.opendir("h", "d")
        found = _rest(client, "h")
        assert sorted(found) == sorted([".", "..", *ALL])
        client.finish()


def test_listing_resumes_after_any_entry(target: Target) -> None:
    with mounted(target, MIXED, MIXED_UPPER) as client:
        client.opendir("h", "d")
        whole = client.readdir("h", 1000)
        for at in (0, 1, 2, 50, len(whole) - 2):
            client.seekdir("h", whole[at].offset)
            assert client.readdir("h", 1000) == whole[at + 1 :]
        client.finish()


def test_listing_while_the_directory_changes(target: Target) -> None:
    with mounted(target, MIXED, MIXED_UPPER) as client:
        client.opendir("h", "d")
        first = [os.fsdecode(entry.name) for entry in client.readdir("h", 60)]
        later = sorted(ALL - set(first))
        client.unlink(f"d/{first[10]}")
        client.unlink(f"d/{later[3]}")
        client.rename(f"d/{first[20]}", "d/moved")
        client.mkdir("d/new")
        found = first + _rest(client, "h")
        client.finish()
        steady = ALL - {first[10], first[20], later[3]}
        assert steady <= set(found), "a name that was there all the time is missing"
        assert len(found) == len(set(found)), "a name is listed twice"
        assert set(found) <= ALL | {".", "..", "moved", "new"}


def test_rewound_listing_shows_the_changes(target: Target) -> None:
    with mounted(target, MIXED, MIXED_UPPER) as client:
        client.opendir("h", "d")
        _rest(client, "h")
        client.unlink("d/low010")
        client.unlink("d/up010")
        client.mkdir("d/new")
        client.seekdir("h", 0)
        assert set(_rest(client, "h")) == (ALL - {"low010", "up010"}) | {".", "..", "new"}
        client.finish()


def test_listing_of_a_removed_directory_is_empty() -> None:
    with mounted(EngineTarget(), [{"d": directory()}]) as client:
        client.opendir("h", "d")
        client.rmdir("d")
        assert set(_rest(client, "h")) <= {".", ".."}
        client.finish()


def test_dots_have_the_numbers_of_directory_and_parent(ours: Target) -> None:
    with mounted(ours, [{"d/e/f": LOW}]) as client:
        for path, parent in (("", ""), ("d", ""), ("d/e", "d")):
            numbers = {entry.name: entry.ino for entry in client.entries(path)}
            assert numbers[b"."] == client.stat(path).ino
            assert numbers[b".."] == client.stat(parent).ino


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.long)])
def test_large_directory_lists_every_name_once(ours: Target, count: int) -> None:
    with mounted(ours, [{f"d/{at:06}": file() for at in range(count)}]) as client:
        found = [entry.name for entry in client.entries("d")]
        assert len(found) == len(set(found)) == count + 2


def test_unreadable_lower_directory_is_an_error_not_a_smaller_listing() -> None:
    user = Credentials(1000, 1000)
    lowers: list[Tree] = [{"d/a": LOW}, {"d": directory(0), "d/b": LOW}]
    with directories(Case("unreadable", lowers, {}), Format.OVERLAY) as places:
        for name in (places.upper, places.work):
            os.chown(places.at(name or b""), 1000, 1000)
        with acting_as(user), EngineTarget().mounted(places, Format.OVERLAY, {}) as client:
            with pytest.raises(PermissionError):
                client.entries("d")
            assert {entry.name for entry in client.entries("")} == {b".", b"..", b"d"}


KINDS: Tree = {
    "file": LOW,
    "directory/in": LOW,
    "symlink": symlink("file"),
    "fifo": fifo(),
    "device": char(1, 3),
    "link1": file(b"linked"),
    "link2": hardlink("link1"),
}


@pytest.mark.parametrize("form", list(Format), ids=lambda form: form.value)
@pytest.mark.parametrize("path", [path for path in KINDS if path != "directory/in"] + ["directory"])
def test_number_is_kept_over_copy_up_rename_and_remount(ours: Target, path: str, form: Format) -> None:
    with directories(Case("kept", [KINDS], {}), form) as places:
        with ours.mounted(places, form, {}) as client:
            number = client.stat(path).ino
            client.chown(path, 7, 8)
            assert client.stat(path).ino == number, "copy-up"
            client.rename(path, "moved")
            assert client.stat("moved").ino == number, "rename"
        with ours.mounted(places, form, {}) as client:
            assert client.stat("moved").ino == number, "remount"
            client.chown("moved", 9, 9)
            client.mkdir("d")
            client.rename("moved", "d/again")
            assert client.stat("d/again").ino == number
        with ours.mounted(places, form, {}) as client:
            assert client.stat("d/again").ino == number, "second remount"


@pytest.mark.parametrize("form", list(Format), ids=lambda form: form.value)
def test_number_of_a_new_file_is_kept(ours: Target, form: Format) -> None:
    with directories(Case("kept", [{}], {}), form) as places:
        with ours.mounted(places, form, {}) as client:
            client.mkdir("d")
            client.symlink("t", "d/s")
            numbers = client.stat("d").ino, client.stat("d/s").ino
            client.rename("d", "e")
        with ours.mounted(places, form, {}) as client:
            assert (client.stat("e").ino, client.stat("e/s").ino) == numbers


def test_changes_of_names_change_the_times_of_the_directory(target: Target) -> None:
    with mounted(target, [{"d/f": LOW, "e": directory()}]) as client:
        for step in (mkdir("d/n"), unlink("d/f"), rename("d/n", "d/m"), rmdir("d/m"), make_symlink("t", "d/s")):
            client.utime("d", 0, 0)
            check_step(client, step, str(step))
            seen = client.stat("d")
            assert seen.mtime > 0
            assert seen.ctime > 0


def test_write_and_truncate_change_the_times_of_the_file(target: Target) -> None:
    with mounted(target, [{"f": LOW}]) as client:
        client.utime("f", 0, 0)
        client.open("h", "f", os.O_RDWR)
        client.pwrite("h", b"x", 0)
        client.close("h")
        assert client.stat("f").mtime > 0
        client.utime("f", 0, 0)
        client.truncate("f", 1)
        assert client.stat("f").mtime > 0


def test_directory_link_counts_are_plausible(target: Target) -> None:
    """1 says that subdirectories are not counted; otherwise 2 and one for each."""
    with mounted(target, [{"d/a": directory(), "d/b": directory()}, {"d/c": directory()}]) as client:
        assert client.stat("d").nlink in (1, 5)


# -- mounted only: the page cache takes part


@pytest.fixture(params=["fuse", "without_lane", "kernel"])
def on_mount(request: pytest.FixtureRequest) -> Target:
    return _target(request)


@contextmanager
def mountpoint(target: Target, lowers: list[Tree]) -> Iterator[bytes]:
    with mounted(target, lowers) as client:
        assert isinstance(client, PosixClient)
        yield client.root


def test_one_device_for_everything(fuse: Target) -> None:
    with mountpoint(fuse, [{"d/f": LOW, "g": LOW}, {"d/h": LOW}]) as root:
        with open(os.path.join(root, b"g"), "ab") as stream:
            stream.write(b"+")
        paths = [b"", b"d", b"d/f", b"d/h", b"g"]
        assert len({os.stat(os.path.join(root, path)).st_dev for path in paths}) == 1


@pytest.mark.parametrize("name", ["fuse", "kernel"])
def test_shared_mapping_over_copy_up(name: str, fuse: Target) -> None:
    """Ours is coherent; the kernel's overlayfs goes on showing the lower file, which this asserts as well."""
    target = fuse if name == "fuse" else KernelTarget()
    with mountpoint(target, [{"f": file(b"old" * 2000)}]) as root:
        path = os.path.join(root, b"f")
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:3] == b"old"
            with open(path, "r+b") as writer:
                writer.write(b"NEW")
            assert mapping[:3] == (b"NEW" if name == "fuse" else b"old")


def test_shared_writable_mapping_reaches_the_file(on_mount: Target) -> None:
    with mountpoint(on_mount, [{"f": file(b"old" * 2000)}]) as root:
        path = os.path.join(root, b"f")
        with open(path, "r+b") as writer, mmap.mmap(writer.fileno(), 0) as mapping:
            mapping[:3] = b"NEW"
            mapping.flush()
        with open(path, "rb") as reader:
            assert reader.read(6) == b"NEWold"


def test_buffered_reads_see_direct_writes(on_mount: Target) -> None:
    with mountpoint(on_mount, [{"f": file(b"o" * 8192)}]) as root:
        path = os.path.join(root, b"f")
        reader = os.open(path, os.O_RDONLY)
        writer = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            assert os.pread(reader, 3, 4096) == b"ooo"
            block = mmap.mmap(-1, 4096)
            block.write(b"N" * 4096)
            assert os.pwritev(writer, [block], 4096) == 4096
            assert os.pread(reader, 3, 4095) == b"oNN"
        finally:
            os.close(reader)
            os.close(writer)


def test_fallocate_works_or_says_that_it_cannot(on_mount: Target) -> None:
    with mountpoint(on_mount, [{"f": file(b"old")}]) as root:
        fd = os.open(os.path.join(root, b"f"), os.O_RDWR)
        try:
            os.posix_fallocate(fd, 0, 10_000)
            assert os.fstat(fd).st_size == 10_000
            assert os.pread(fd, 4, 0) == b"old\0"
        finally:
            os.close(fd)


def test_holes_are_found_or_the_whole_is_data(on_mount: Target) -> None:
    with mountpoint(on_mount, [{"f": file(b"x" * 4096, size=1 << 20)}]) as root:
        fd = os.open(os.path.join(root, b"f"), os.O_RDONLY)
        try:
            assert os.lseek(fd, 0, os.SEEK_DATA) == 0
            assert os.lseek(fd, 0, os.SEEK_HOLE) in (4096, 1 << 20)
            with pytest.raises(OSError, match="No such device or address"):
                os.lseek(fd, 1 << 20, os.SEEK_DATA)
        finally:
            os.close(fd)


def test_copy_file_range_copies(on_mount: Target) -> None:
    with (
        mountpoint(on_mount, [{"f": file(b"content")}]) as root,
        open(os.path.join(root, b"f"), "rb") as source,
        open(os.path.join(root, b"g"), "w+b") as made,
    ):
        assert os.copy_file_range(source.fileno(), made.fileno(), 7) == 7
        assert os.pread(made.fileno(), 10, 0) == b"content"


def test_symlinks_are_followed_inside_the_mount(on_mount: Target) -> None:
    with mountpoint(on_mount, [{"d/f": LOW, "s": symlink("d/f"), "t": symlink("s"), "loop": symlink("loop")}]) as root:
        with open(os.path.join(root, b"t"), "ab") as stream:
            stream.write(b"+")
        assert stat.S_ISLNK(os.lstat(os.path.join(root, b"t")).st_mode)
        with open(os.path.join(root, b"d/f"), "rb") as stream:
            assert stream.read() == b"low+"
        with pytest.raises(OSError, match="Too many levels") as raised:
            os.stat(os.path.join(root, b"loop"))
        assert raised.value.errno == errno.ELOOP


def test_pipes_and_sockets_work(on_mount: Target) -> None:
    with mountpoint(on_mount, [{"p": fifo(0o600)}]) as root:
        fd = os.open(os.path.join(root, b"p"), os.O_RDWR | os.O_NONBLOCK)
        os.write(fd, b"through")
        assert os.read(fd, 10) == b"through"
        os.close(fd)
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as caller:
            server.bind(os.path.join(root, b"k"))
            server.listen()
            caller.connect(os.path.join(root, b"k"))


def test_removed_directory_cannot_be_listed(on_mount: Target) -> None:
    """The kernel says so itself, for any filesystem."""
    with mountpoint(on_mount, [{"d": directory()}]) as root:
        fd = os.open(os.path.join(root, b"d"), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.rmdir(os.path.join(root, b"d"))
            with pytest.raises(FileNotFoundError):
                libc.read_directory(fd)
        finally:
            os.close(fd)


def test_engine_forgets_what_it_was_told_to() -> None:
    with mounted(EngineTarget(), [{f"d/{at}/f": LOW for at in range(50)}]) as client:
        assert isinstance(client, EngineClient)
        for at in range(50):
            client.stat(f"d/{at}/f")
        assert len(client.overlay.state.inodes) == 1
