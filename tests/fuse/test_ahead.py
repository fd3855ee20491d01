"""Who serves a mount: the child that has loaded the engine ahead, or where that cannot, one that is forked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A command that loads ahead and then gives work away; it prints who did it, and what both see.
COMMAND = """
import json, os, pickle, signal, socket, sys
from overlayfs.fuse import ahead
from overlayfs.tree.syscalls import CLONE_NEWNS, CLONE_NEWUSER, mount, unshare

def place():
    return [os.stat("/proc/self/ns/mnt").st_ino, os.stat("/").st_ino, os.getcwd()]

def work(argument, descriptor):
    inherited = [fd for fd in range(100) if os.path.exists(f"/proc/self/fd/{fd}")]
    has_engine, leads = "overlayfs.fuse.serving" in sys.modules, os.getsid(0) == os.getpid()
    said = [place(), has_engine, leads, inherited == [0, 1, 2, descriptor], argument]
    os.write(descriptor, json.dumps(said).encode())

sys.modules["command"] = sys.modules["__main__"]
work.__module__ = "command"
ahead._PATIENCE_S = float(sys.argv[2])
os.dup2(0, 77)  # the shell may have opened it
ahead.load()
loader = ahead._loader.pid
exec(sys.argv[1])
heard, told = os.pipe()
child = ahead.fork(work, "an argument", descriptors=[told])
os.close(told)
said = json.loads(os.fdopen(heard).read())
print(json.dumps([child == loader, os.waitpid(child, 0)[1], place(), said]))
"""
NEW_ROOT = """
unshare(CLONE_NEWNS)
mount(b"none", b"/", b"", 0x44000, b"")  # MS_REC, MS_PRIVATE
mount(b"proc", b"proc", b"proc", 0, b"")
os.chroot(".")
"""


def is_done_by_loader(steps: str, directory: Path, patience_s: float = 60) -> bool:
    """Whether the child that loaded ahead did the work, after `steps` of the command; what it must see is checked."""
    words = [sys.executable, "-c", COMMAND, steps, str(patience_s)]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    printed = subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=120, cwd=directory, env=environ).stdout
    is_loader, status, place, said = json.loads(printed)
    assert (status, said) == (0, [place, is_loader, True, True, "an argument"])
    return bool(is_loader)


@pytest.mark.parametrize("steps", ["", "os.chdir('/usr')", "unshare(CLONE_NEWNS)", NEW_ROOT])
def test_work_is_done_ahead_where_the_command_is(steps: str, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert is_done_by_loader(steps, tmp_path)


@pytest.mark.parametrize(
    "steps",
    [
        "os.kill(loader, signal.SIGKILL); os.waitpid(loader, 0)",
        "os.chdir('/'); unshare(CLONE_NEWUSER)",  # in which the child would have no rights
        "os.fork() and (os.wait(), os._exit(0)); os.closerange(3, 100)",  # the child is another process's
    ],
)
def test_work_is_done_by_a_fork_where_the_loader_cannot(steps: str, tmp_path: Path) -> None:
    assert not is_done_by_loader(steps, tmp_path)


def test_loader_waits_for_some_seconds_only(tmp_path: Path) -> None:
    assert not is_done_by_loader("os.waitpid(loader, 0)", tmp_path, patience_s=0)


def test_loader_ends_with_the_command() -> None:
    code = "from overlayfs.fuse import ahead; ahead.load(); print(ahead._loader.pid)"
    read_fd, write_fd = os.pipe()  # of which the loader must not have an end
    with subprocess.Popen([sys.executable, "-c", code], stdout=write_fd) as command:
        os.close(write_fd)
        with os.fdopen(read_fd) as printed:
            loader = int(printed.read())
    assert command.returncode == 0
    while Path(f"/proc/{loader}").exists():  # it sees the end of the command when it has loaded
        os.sched_yield()


def test_without_processes_to_spare_nothing_is_loaded_ahead() -> None:
    code = "import os; os.fork = lambda: os.open('/no/such', 0); from overlayfs.fuse import ahead; ahead.load()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
