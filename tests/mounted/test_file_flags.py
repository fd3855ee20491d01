"""Flags of chattr(1), with the programs that people use, in every way in which a mount takes writes."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.calls import outcome
from tests.mounted.stack import Stack, run

WAYS = ["", "writeback=1", "passthrough=on", "timeout=0", "fsync=volatile"]
# those in which the kernel tells the mount of every open
ASKED = ["writeback=1", "passthrough=on", "timeout=0"]


@pytest.fixture
def flagged(new_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """Files and a directory with flags in the lower layer."""
    stack = new_stack()
    lower = stack.lowers[0]
    for letter in "iaASd":
        (lower / letter).write_bytes(b"lower\n")
        run("chattr", f"+{letter}", lower / letter)
    yield stack
    stack.unmount()
    run("chattr", "-R", "-f", "-ia", lower, stack.upper)


def letters(path: Path) -> str:
    """The flags of lsattr(1) that are not about how the filesystem keeps the file."""
    return run("lsattr", "-d", path).split()[0].replace("-", "").replace("e", "")


def shell(command: str, place: Path) -> str:
    """What a shell says of a command: nothing, or the reason."""
    return run("bash", "-c", f"({command}) 2>&1 | sed 's/.*: //'", cwd=place).strip()


@pytest.mark.parametrize("way", WAYS)
def test_shell_appends_to_append_only_file_and_does_nothing_else(flagged: Stack, way: str) -> None:
    flagged.mount(*filter(None, [way]))
    (flagged.place / "made").write_bytes(b"made\n")
    run("chattr", "+a", flagged.place / "made")
    for name, content in (("a", b"lower\n"), ("made", b"made\n")):
        assert shell(f"echo more >> {name}", flagged.place) == ""
        assert shell(f"touch {name}", flagged.place) == ""
        for command in (
            f"echo x > {name}",
            f"rm -f {name}",
            f"mv {name} z",
            f"chmod 600 {name}",
            f"touch -d @1 {name}",
        ):
            assert shell(command, flagged.place) == "Operation not permitted", command
        assert (flagged.place / name).read_bytes() == content + b"more\n"
    flagged.remount(*(way for way in [way] if way == "fsync=volatile"))
    for name in ("a", "made"):
        assert (flagged.upper / name).read_bytes().endswith(b"\nmore\n")
        assert letters(flagged.place / name) == "a"
        assert letters(flagged.upper / name) == ""


@pytest.mark.parametrize("way", WAYS)
def test_shell_changes_nothing_of_immutable_file(flagged: Stack, way: str) -> None:
    flagged.mount(*filter(None, [way]))
    commands = ("echo x > i", "echo x >> i", "rm -f i", "mv i z", "ln i z", "chmod 600 i", "touch i", "touch -d @1 i")
    for command in commands:
        assert shell(command, flagged.place) == "Operation not permitted", command
    assert (flagged.place / "i").read_bytes() == b"lower\n"
    assert not (flagged.upper / "i").exists()


def test_refused_truncation_of_a_large_append_only_file_leaves_its_content(flagged: Stack) -> None:
    large = flagged.lowers[0] / "large"
    large.write_bytes(bytes(1 << 20))
    run("chattr", "+a", large)
    flagged.mount()
    assert outcome(lambda: os.truncate(flagged.place / "large", 1 << 19)) == "EPERM"
    assert not (flagged.upper / "large").exists()


@pytest.mark.parametrize("way", ASKED)
@pytest.mark.parametrize(("name", "flags"), [("i", os.O_RDWR), ("i", os.O_WRONLY | os.O_APPEND), ("a", os.O_WRONLY)])
def test_open_is_refused_where_the_kernel_asks(flagged: Stack, way: str, name: str, flags: int) -> None:
    flagged.mount(way)
    assert outcome(lambda: os.open(flagged.place / name, flags)) == "EPERM"


@pytest.mark.parametrize("way", ASKED)
def test_file_that_is_open_is_written_on(flagged: Stack, way: str) -> None:
    """As in the kernel, where the flag counts for opens; and what was written before it is not lost."""
    flagged.mount(way)
    path = flagged.place / "file"
    with open(path, "wb", buffering=0) as file:
        file.write(b"before ")
        run("chattr", "+i", path)
        file.write(b"after")
        os.fsync(file.fileno())
    assert path.read_bytes() == b"before after"
    assert (flagged.upper / "file").read_bytes() == b"before after"
    assert outcome(lambda: path.write_bytes(b"")) == "EPERM"


@pytest.mark.parametrize("way", [way for way in WAYS if way != "writeback=1"])
def test_open_file_that_forgets_to_append_does_not_overwrite(flagged: Stack, way: str) -> None:
    """The kernel's own filesystems refuse to change the flags of the open file; here the write is refused."""
    flagged.mount(*filter(None, [way]))
    for _ in "once in the lower", "once copied up":
        fd = os.open(flagged.place / "a", os.O_WRONLY | os.O_APPEND)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
            assert outcome(lambda fd=fd: os.pwrite(fd, b"LOWER", 0)) == "EPERM"  # type: ignore[misc]
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
            assert os.write(fd, b"more\n") == 5
        finally:
            os.close(fd)
    assert (flagged.upper / "a").read_bytes() == b"lower\nmore\nmore\n"


def test_writing_through_a_mapping_of_an_immutable_file_is_an_error(flagged: Stack) -> None:
    """Where the kernel does not ask for opens the file opens, but the change does not pass for done."""
    flagged.mount()
    fd = os.open(flagged.place / "i", os.O_RDWR)
    try:
        with mmap.mmap(fd, 6) as memory:
            memory[0] = ord("L")
            assert outcome(memory.flush) == "EPERM"
    finally:
        outcome(lambda: os.close(fd))
    deadline = time.monotonic() + 60
    while (flagged.place / "i").read_bytes() != b"lower\n":  # the kernel drops the pages soon
        assert time.monotonic() < deadline, "others still see what may not be written"
        time.sleep(0.01)
    assert (flagged.lowers[0] / "i").read_bytes() == b"lower\n"
    assert not (flagged.upper / "i").exists()


def test_copied_up_file_keeps_the_flags(flagged: Stack) -> None:
    flagged.mount()
    for letter in "ASd":
        (flagged.place / letter).chmod(0o600)
        assert letters(flagged.place / letter) == letters(flagged.upper / letter) == letter


def test_immutable_directory_stays_one_in_a_copied_up_tree(flagged: Stack) -> None:
    inner = flagged.lowers[0] / "tree" / "fixed"
    inner.mkdir(parents=True)
    (inner / "file").write_bytes(b"")
    run("chattr", "+i", inner)
    flagged.mount()
    (flagged.place / "tree" / "fixed" / "file").write_bytes(b"may change")
    assert outcome((flagged.place / "tree" / "fixed" / "file").unlink) == "EPERM"
    assert outcome((flagged.place / "tree" / "fixed" / "new").touch) == "EPERM"
    assert letters(flagged.place / "tree" / "fixed") == "i"
    run("rm", "-r", flagged.upper / "tree")


def test_flag_on_the_file_in_the_upper_itself(flagged: Stack) -> None:
    """As the mount left it once: its filesystem protects the file, and chattr takes the flag away."""
    (flagged.upper / "old").write_bytes(b"old")
    run("chattr", "+i", flagged.upper / "old")
    flagged.mount()
    path = flagged.place / "old"
    assert letters(path) == "i"
    assert outcome(lambda: path.write_bytes(b"new")) == outcome(path.unlink) == "EPERM"
    run("chattr", "+A", path)
    assert (letters(path), letters(flagged.upper / "old")) == ("iA", "A")
    run("chattr", "-iA", path)
    path.write_bytes(b"new")
    assert letters(path) == letters(flagged.upper / "old") == ""


def test_kernel_reads_our_protection_and_we_the_kernels(flagged: Stack) -> None:
    flagged.mount()
    (flagged.place / "ours").write_bytes(b"")
    run("chattr", "+i", flagged.place / "ours")
    flagged.unmount()
    run("mount", "-t", "overlay", "overlay", "-o", flagged.options, flagged.place)
    try:
        assert letters(flagged.place / "ours") == "i"
        (flagged.place / "kernels").write_bytes(b"")
        run("chattr", "+a", flagged.place / "kernels")
    finally:
        run("umount", flagged.place)
    flagged.mount()
    assert (letters(flagged.place / "ours"), letters(flagged.place / "kernels")) == ("i", "a")
    assert outcome((flagged.place / "kernels").unlink) == "EPERM"


@pytest.mark.parametrize("way", WAYS)
def test_chattr_moves_the_ctime_in_the_mount(flagged: Stack, way: str) -> None:
    flagged.mount(*filter(None, [way]))
    (flagged.place / "directory").mkdir()
    (flagged.place / "file").write_bytes(b"")
    # with writeback=1 the kernel keeps the times of files itself
    for name in ("directory", "file")[: 1 if way == "writeback=1" else 2]:
        path, on_disk = flagged.place / name, flagged.upper / name
        for letter in "+i", "+A", "-i":
            before = path.stat().st_ctime_ns
            run("chattr", letter, path)
            assert path.stat().st_ctime_ns == on_disk.stat().st_ctime_ns > before


@pytest.mark.parametrize("has_lower", [True, False])
@pytest.mark.parametrize("closes", [True, False])
def test_passed_through_mapping_moves_the_mtime_in_the_mount(stack: Stack, has_lower: bool, closes: bool) -> None:
    if has_lower:
        (stack.lowers[0] / "file").write_bytes(bytes(8192))
    stack.mount("passthrough=on")
    path = stack.place / "file"
    with open(path, "ab") as file:
        file.write(bytes(8192))
    on_disk = stack.upper / "file"
    fd = os.open(path, os.O_RDWR)
    memory = mmap.mmap(fd, 8192)
    if closes:
        os.close(fd)
    for place in (0, 4096):
        os.utime(path, (1, 1))
        memory.flush()  # its page is written at a fault again
        memory[place] = 1
        found = path.stat()
        assert found.st_mtime_ns == on_disk.stat().st_mtime_ns > 1_000_000_000
        assert [entry.stat().st_mtime_ns for entry in os.scandir(stack.place)] == [found.st_mtime_ns]
    memory.close()
    if not closes:
        os.close(fd)
    os.utime(path, (1, 1))
    assert path.stat().st_mtime_ns == 1_000_000_000
