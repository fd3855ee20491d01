"""Xattrs as they are on disk, asked by name and by descriptor, on kernels and in sandboxes of any age."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.tree import marks, xattrs

LONG_VALUE = b"v" * 3000

# Loads a seccomp filter that refuses getxattrat and listxattrat with the errno in argv, then lists and reads.
SANDBOXED = """
import ctypes, os, struct, sys
code = b"".join(struct.pack("=HBBI", *step) for step in (
    (0x20, 0, 0, 0), (0x15, 2, 0, 464), (0x15, 1, 0, 465), (0x06, 0, 0, 0x7FFF0000),
    (0x06, 0, 0, 0x00050000 | int(sys.argv[1])),
))
buffer = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
assert libc.syscall(465, -1, b"x", 0, None, 0) < 0 and ctypes.get_errno() == int(sys.argv[1])
from overlayfs.tree import xattrs
fd = os.open(sys.argv[2], os.O_PATH)
print(sorted(xattrs.list_xattrs(fd, b"file")), xattrs.read_xattr(fd, b"file", b"user.one"))
try:
    xattrs.list_xattrs(fd, b"n" * 5000)
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").touch()
    (tmp_path / "bare").touch()
    (tmp_path / "link").symlink_to("file")
    os.setxattr(tmp_path / "file", "user.one", b"1")
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


def test_by_name(directory: int) -> None:
    assert xattrs.list_xattrs(directory, b"file") == (b"user.one",)
    assert xattrs.read_xattr(directory, b"file", b"user.one") == b"1"
    assert xattrs.list_xattrs(directory, b"bare") == ()
    assert xattrs.read_xattr(directory, b"bare", b"user.one") is None


def test_those_of_a_symlink_are_its_own(directory: int) -> None:
    os.setxattr(f"/proc/self/fd/{directory}/link", "trusted.its", b"own", follow_symlinks=False)
    assert xattrs.list_xattrs(directory, b"link") == (b"trusted.its",)
    assert xattrs.read_xattr(directory, b"link", b"trusted.its") == b"own"
    assert xattrs.read_xattr(directory, b"link", b"user.one") is None


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH], ids=["opened", "O_PATH"])
def test_by_descriptor(directory: int, flags: int) -> None:
    for name, expected in ((b"file", b"1"), (b"bare", None)):
        fd = os.open(name, flags, dir_fd=directory)
        try:
            assert xattrs.list_xattrs_of_descriptor(fd) == (() if expected is None else (b"user.one",))
            assert xattrs.read_xattr_of_descriptor(fd, b"user.one") == expected
        finally:
            os.close(fd)


def test_long_lists_and_values_are_whole(directory: int, tmp_path: Path) -> None:
    names = {b"user.%0100d" % number for number in range(15)}
    for name in names:
        os.setxattr(tmp_path / "bare", name, b"")
    os.setxattr(tmp_path / "file", "user.long", LONG_VALUE)
    fd = os.open(tmp_path / "file", os.O_PATH)
    try:
        assert set(xattrs.list_xattrs(directory, b"bare")) == names
        assert xattrs.read_xattr(directory, b"file", b"user.long") == LONG_VALUE
        assert xattrs.read_xattr_of_descriptor(fd, b"user.long") == LONG_VALUE
    finally:
        os.close(fd)


def test_missing_file_is_an_error_not_a_file_without_xattrs(directory: int) -> None:
    for call in (lambda: xattrs.list_xattrs(directory, b"no"), lambda: xattrs.read_xattr(directory, b"no", b"user.x")):
        with pytest.raises(FileNotFoundError):
            call()


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.EPERM], ids=["old kernel", "old sandbox"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter does not look at the architecture")
def test_where_the_calls_by_name_are_missing(directory: int, tmp_path: Path, refusal: int) -> None:
    """EPERM from a file says that it has no xattrs; from a sandbox it must not."""
    command = [sys.executable, "-c", SANDBOXED, str(refusal), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["[b'user.one'] b'1'", str(errno.ENAMETOOLONG)]


def test_marks_tell_the_names_of_all_xattrs(directory: int, tmp_path: Path) -> None:
    spelling = marks.spelling(marks.USER, is_upper=True)
    assert marks.read_marks(directory, b"bare", spelling) is marks.NO_MARKS
    assert marks.read_marks(directory, b"file", spelling) == marks.Marks((b"user.one",))
    os.setxattr(tmp_path / "file", "user.overlay.redirect", b"/there")
    found = marks.read_marks(directory, b"file", spelling)
    assert found.redirect == b"/there" and set(found.names) == {b"user.one", b"user.overlay.redirect"}
