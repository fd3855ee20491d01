"""The compiled gate of system calls: what it says is what the system calls say."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from overlayfs.tree import access, syscalls

FIELDS = (
    *("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks"),
    *(f"st_{time}time{unit}" for time in "amc" for unit in ("", "_ns")),
)
BEYOND_64_BITS_OF_NS = 300 * 366 * 86400 * 10**9


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[int]:
    with opened(tmp_path, os.O_PATH) as fd:
        yield fd


def _same(found: syscalls.Stat, expected: os.stat_result) -> None:
    assert {name: getattr(found, name) for name in FIELDS} == {name: getattr(expected, name) for name in FIELDS}


# -- what a file is


@pytest.mark.parametrize("time_ns", [0, 1_234_567_890_123_456_789, -1, BEYOND_64_BITS_OF_NS])
def test_stat_says_what_that_of_python_says(here: int, tmp_path: Path, time_ns: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    os.link(path, tmp_path / "link")
    os.utime(path, ns=(time_ns, time_ns + 7))
    _same(access.stat_at(here, b"file"), path.stat())
    with opened(path, os.O_RDONLY) as fd:
        _same(syscalls.stat_of(fd), path.stat())


def test_stat_is_of_the_symlink_and_of_the_device(here: int, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    _same(access.stat_at(here, b"link"), (tmp_path / "link").lstat())
    with opened(Path("/dev/null"), os.O_PATH) as fd:
        _same(syscalls.stat_of(fd), os.stat("/dev/null"))


def test_same_file(here: int, tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    (tmp_path / "two").touch()
    os.link(tmp_path / "one", tmp_path / "again")
    one, two, again = (access.stat_at(here, name) for name in (b"one", b"two", b"again"))
    assert one.is_same_file(again) and not one.is_same_file(two)


# -- names and errors


Call = Callable[[int, bytes], object]
ON_A_NAME: dict[str, Call] = {
    "open_at": lambda fd, name: access.open_at(fd, name, os.O_RDONLY),
    "stat_at": access.stat_at,
    "unlink": access.unlink,
    "rmdir": access.rmdir,
    "mknod": lambda fd, name: access.mknod(fd, name, stat.S_IFREG),
    "link": lambda fd, name: access.link(fd, name, fd, b"new"),
    "link to": lambda fd, name: access.link(fd, b"file", fd, name),
    "rename": lambda fd, name: access.rename(fd, name, fd, b"new"),
    "rename to": lambda fd, name: access.rename(fd, b"file", fd, name),
    "open_beneath": lambda fd, name: access.open_beneath(fd, name, os.O_RDONLY),
}


@pytest.mark.parametrize("call", ON_A_NAME.values(), ids=ON_A_NAME)
def test_nul_in_a_name_cuts_nothing_short(here: int, tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="null byte"):
        call(here, b"file\0rest")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", [ON_A_NAME[name] for name in ("open_at", "stat_at", "unlink", "rmdir", "rename")])
def test_error_has_its_class_its_number_and_the_name(here: int, call: Call) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        call(here, b"absent")
    assert caught.value.errno == errno.ENOENT and caught.value.filename == b"absent"


def test_opened_descriptors_are_not_inherited(here: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = access.open_at(here, b"file", os.O_RDONLY)
    again = access.reopen(fd, os.O_RDONLY)
    try:
        assert not os.get_inheritable(fd) and not os.get_inheritable(again)
    finally:
        os.close(fd)
        os.close(again)


def test_signal_handler_runs_while_an_open_waits(here: int, tmp_path: Path) -> None:
    """It opens the other end of the pipe that the open waits for."""
    os.mkfifo(tmp_path / "pipe")
    ends: list[int] = []

    def handle(_number: int, _frame: FrameType | None) -> None:
        ends.append(os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK))

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        ends.append(access.open_at(here, b"pipe", os.O_RDONLY))
    finally:
        signal.signal(signal.SIGALRM, before)
        for fd in ends:
            os.close(fd)
    assert len(ends) == 2


def test_exception_of_a_signal_handler_ends_an_open_that_waits(here: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError("enough")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(TimeoutError, match="enough"):
            os.close(access.open_at(here, b"pipe", os.O_RDONLY))
    finally:
        signal.signal(signal.SIGALRM, before)


# -- owner, mode and times


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH], ids=["opened", "O_PATH"])
def test_owner_mode_and_times_of_a_descriptor(tmp_path: Path, flags: int) -> None:
    path = tmp_path / "file"
    path.touch()
    with opened(path, flags) as fd:
        syscalls.set_owner(fd, 7, -1)
        syscalls.set_owner(fd, -1, 8)
        syscalls.set_mode(fd, 0o4751)
        syscalls.set_times(fd, -5, BEYOND_64_BITS_OF_NS + 1)
        syscalls.set_times(fd, 9, None)
    st = path.stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (7, 8, 0o4751)
    assert (st.st_atime_ns, st.st_mtime_ns) == (9, BEYOND_64_BITS_OF_NS + 1)


def test_owner_and_times_of_a_symlink_are_its_own(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch()
    before = target.stat()
    link.symlink_to("target")
    with opened(link, os.O_PATH | os.O_NOFOLLOW) as fd:
        syscalls.set_owner(fd, 7, 8)
        syscalls.set_times(fd, 5, 6)
    st = link.lstat()
    assert (st.st_uid, st.st_gid, st.st_atime_ns, st.st_mtime_ns) == (7, 8, 5, 6)
    assert target.stat() == before


@pytest.mark.parametrize("owner", [-2, 1 << 32])
def test_owner_that_is_none_is_refused(tmp_path: Path, owner: int) -> None:
    with opened(tmp_path, os.O_RDONLY) as fd, pytest.raises(OverflowError):
        syscalls.set_owner(fd, owner, -1)


# -- listings


def _kinds(top: Path) -> dict[bytes, int]:
    (top / "directory").mkdir()
    (top / "file").touch()
    (top / "link").symlink_to("directory")
    (top / "..more").touch()
    return {b"directory": access.DIRECTORY, b"file": access.REGULAR, b"link": access.SYMLINK, b"..more": access.REGULAR}


def test_listing_tells_every_name_and_its_kind(here: int, tmp_path: Path) -> None:
    expected = _kinds(tmp_path)
    assert dict(access.scan(here)) == expected
    assert dict(access.scan(here, quietly=True)) == expected


@pytest.fixture
def untold(tmp_path: Path) -> Iterator[Path]:
    """A filesystem whose listings do not tell kinds."""
    image, place = tmp_path / "image", tmp_path / "disk"
    image.touch()
    os.truncate(image, 8 << 20)
    place.mkdir()
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^filetype", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_listing_finds_the_kinds_that_a_filesystem_does_not_list(untold: Path) -> None:
    expected = _kinds(untold)
    with opened(untold, os.O_PATH) as fd:
        assert dict(access.scan(fd)) == {b"lost+found": access.DIRECTORY, **expected}


def test_listing_longer_than_its_buffer(here: int, tmp_path: Path) -> None:
    names = {b"%0200d" % number for number in range(500)}
    for name in names:
        os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    assert len(access.list_names(here)) == len(names) and set(access.list_names(here)) == names


def test_listing_of_a_deleted_directory_is_empty(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with opened(gone, os.O_PATH) as fd:
        gone.rmdir()
        assert access.list_names(fd) == []


def test_listing_that_nobody_reads_to_its_end_is_closed(here: int, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / str(number)).touch()
    before = os.listdir("/proc/self/fd")
    listing = access.scan(here)
    next(listing)
    del listing
    assert os.listdir("/proc/self/fd") == before
