"""What befalls a daemon while it serves: signals, aborts, bugs, few descriptors.  Its clients get an errno.

Every client is a process of its own with a deadline: a test waiting inside a dead mount could not be ended.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest

from .mounting import mounted, unmount
from .trees import build, directory, file

PROGRAM = Path(__file__).with_name("live_daemon.py")
ROOT = Path(__file__).parents[2]
DEADLINE_S = 60
FILES = 80
LOWER = {f"f{number}": file(b"content %d" % number) for number in range(FILES)} | {
    "dir": directory(),
    "dir/file": file(b"lower"),
    "victim": file(b"v"),
    "hollow": directory(),
}


class Daemon:
    """One daemon over its layers; `start` again after its death mounts the same upper."""

    def __init__(self, base: Path, lane: str) -> None:
        self.base = base
        self.lane = lane
        self.mount = base / "mount"
        self.switch = base / "switch"
        self.log = base / "log"
        build(base / "lower", LOWER)
        for name in ("upper", "work", "mount"):
            (base / name).mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def spawn(self, stderr: IO[bytes] | int) -> "subprocess.Popen[bytes]":
        layers = [str(self.base / name) for name in ("lower", "upper", "work", "mount", "switch")]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(PROGRAM), *layers, self.lane]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment)

    def start(self) -> None:
        """Run it and return once it serves."""
        with self.log.open("ab") as log:
            self.process = self.spawn(log)
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            assert stdout.readline() == b"live\n", self.log.read_text()

    def mount_count(self) -> int:
        return sum(line.split()[4] == str(self.mount) for line in Path("/proc/self/mountinfo").read_text().splitlines())

    def ended(self) -> int:
        assert self.process is not None
        return self.process.wait(DEADLINE_S)

    def unmount(self) -> None:
        unmount(self.mount)
        assert self.ended() == 0

    def stop(self) -> None:
        """Leave nothing, whatever the test did."""
        for _ in range(self.mount_count()):
            unmount(self.mount)
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


# The default run has pyfuse3 alone serve only where the tests differ, see `both_ways`.
@pytest.fixture(params=["on", pytest.param("off", marks=pytest.mark.long)], ids=lambda lane: f"lane={lane}")
def daemon(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    daemon = Daemon(scratch, request.param)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


both_ways = pytest.mark.parametrize("daemon", ["on", "off"], ids=lambda lane: f"lane={lane}", indirect=True)

# An import inside the mount would list its root, and nothing there would be looked up any more.
CLIENT_PREAMBLE = "import fcntl, os, sys; os.chdir(sys.argv[1])\n"


def client(daemon: Daemon, code: str) -> str:
    """Run Python `code` in a process of its own within the mount; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT_PREAMBLE + code, str(daemon.mount)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def start_client(daemon: Daemon, code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-u", "-c", CLIENT_PREAMBLE + code, str(daemon.mount)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


READ_ALL = f"""
import hashlib
print(all(open(f"f{{n}}", "rb").read() == b"content %d" % n for n in range({FILES})))
"""
# Writes until it meets an error; says each number only when that file is synced.
WRITE_AND_SYNC = """
try:
    for number in range(100000):
        with open(f"synced{number}", "wb") as stream:
            stream.write(b"%d" % number * 1000)
            stream.flush()
            os.fsync(stream.fileno())
        print(number, flush=True)
except OSError as error:
    print("errno", error.errno, flush=True)
"""
COUNT_WRONG = """
names = range(int(sys.argv[2]) + 1)
print(sum(open(f"synced{number}", "rb").read() != b"%d" % number * 1000 for number in names))
"""


@contextmanager
def load(daemon: Daemon) -> Iterator["subprocess.Popen[str]"]:
    """A client that has synced twenty files already and goes on."""
    worker = start_client(daemon, WRITE_AND_SYNC)
    assert worker.stdout is not None
    try:
        while (line := worker.stdout.readline()).strip() != "20":
            assert line, worker.stderr.read() if worker.stderr else ""
        yield worker
    finally:
        worker.kill()
        worker.wait()
        for stream in (worker.stdout, worker.stderr):
            if stream is not None:
                stream.close()


def last_synced(worker: "subprocess.Popen[str]") -> int:
    """The number of the last file of which the client heard that it is durable."""
    output, _ = worker.communicate(timeout=DEADLINE_S)
    numbers = [int(line) for line in output.split("\n") if line.isdecimal()]
    return max(numbers, default=20)


def assert_synced_files_are_there(daemon: Daemon, last: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT_PREAMBLE + COUNT_WRONG, str(daemon.mount), str(last)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_killed_daemon_can_be_replaced(daemon: Daemon) -> None:
    """SIGKILL under load: an error for clients, a stale mountpoint that is refused, then a good new mount."""
    with load(daemon) as worker:
        daemon.process.kill()  # type: ignore[union-attr]
        assert daemon.ended() == -signal.SIGKILL
        last = last_synced(worker)
    second = daemon.spawn(subprocess.PIPE)
    _, complaint = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 1
    assert complaint.count(b"\n") == 1
    assert b"mount" in complaint
    unmount(daemon.mount)
    daemon.start()
    assert_synced_files_are_there(daemon, last)
    assert client(daemon, READ_ALL) == "True"
    daemon.unmount()


@both_ways
def test_sigterm_unmounts_and_loses_nothing(daemon: Daemon) -> None:
    with load(daemon) as worker:
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.ended() == 0
        last = last_synced(worker)
    assert daemon.mount_count() == 0
    daemon.start()
    assert_synced_files_are_there(daemon, last)
    daemon.unmount()


def test_stopped_daemon_goes_on_where_it_was(daemon: Daemon) -> None:
    with load(daemon) as worker:
        os.kill(daemon.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED)
        os.kill(daemon.pid, signal.SIGCONT)
        assert worker.stdout is not None
        numbers = [int(worker.stdout.readline()) for _ in range(20)]
        assert numbers == sorted(numbers)
        worker.kill()
        last_synced(worker)
    assert_synced_files_are_there(daemon, numbers[-1])
    daemon.unmount()


def test_aborted_connection_ends_the_daemon(daemon: Daemon) -> None:
    """What an administrator does to a mount that hangs: /sys/fs/fuse/connections/N/abort."""
    number = os.minor(os.stat(daemon.mount).st_dev)
    with ExitStack() as undo:
        control = Path("/sys/fs/fuse/connections")
        if not any(control.iterdir()):
            undo.enter_context(mounted("fusectl", control, "fusectl"))
        with load(daemon) as worker:
            (control / str(number) / "abort").write_text("1")
            daemon.ended()
            last = last_synced(worker)
    for _ in range(daemon.mount_count()):
        unmount(daemon.mount)
    daemon.start()
    assert_synced_files_are_there(daemon, last)
    daemon.unmount()


def test_few_descriptors_are_enough(daemon: Daemon) -> None:
    """The daemon pools descriptors: a client with eighty files open does not meet its limit."""
    assert client(daemon, "print(len(os.listdir('.')))") == str(len(LOWER) - 1)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (24, 24))
    code = f"""
streams = [open(f"f{{n}}", "r+b", buffering=0) for n in range({FILES})]
for number, stream in enumerate(streams):
    stream.seek(0, 2)
    stream.write(b" and more")
print(all(os.pread(s.fileno(), 100, 0) == b"content %d and more" % n for n, s in enumerate(streams)))
os.unlink("f0")
for number, stream in enumerate(streams[1:], 1):
    stream.close()
    os.unlink(f"f{{number}}")
print(len(os.listdir(".")), os.pread(streams[0].fileno(), 100, 0))
"""
    expected = f"True\n{len(LOWER) - 1 - FILES} b'content 0 and more'"
    assert client(daemon, code) == expected
    assert "Traceback" not in daemon.log.read_text()
    daemon.unmount()


# Each request of the client by the method of the engine that serves it, with the lane and without.
REQUESTS = {
    "find": "os.stat('f30')",
    "getattr": "os.fstat(stale)",
    "setattr": "os.chmod('f3', 0o600)",
    "readlink": "os.readlink('link')",
    "read_into": "os.pread(held, 10, 0)",
    "write": "os.pwrite(writable, b'x', 0)",
    "fill": "os.listdir('hollow')",
    "create": "open('new', 'x')",
    "mkdir": "os.mkdir('newdir')",
    "mknod": "os.mkfifo('newpipe')",
    "symlink": "os.symlink('x', 'newlink')",
    "link": "os.link('f5', 'newhard')",
    "unlink": "os.unlink('victim')",
    "rmdir": "os.rmdir('hollow')",
    "rename": "os.rename('f6', 'f6-moved')",
    "statfs": "os.statvfs('.')",
    "find_xattr": "os.getxattr('f7', 'user.a')",
    "listxattr": "os.listxattr('f7')",
    "setxattr": "os.setxattr('f7', 'user.a', b'x')",
    "removexattr": "os.removexattr('f7', 'user.set')",
}
# What the kernel does not ask where nobody needs to know, what is done at once in memory, what pyfuse3 cannot answer.
MORE_REQUESTS = {
    "off": {
        "open_file": "open('f2').read()",
        "opendir": "os.listdir('dir')",
        "pin_to_sync": "os.fsync(writable)",
        "open_to_sync": "os.fsync(held_directory)",
    },
    "on": {
        "fsync": "os.fsync(writable)",
        "fsyncdir": "os.fsync(held_directory)",
        "seek": "os.lseek(held, 0, os.SEEK_HOLE)",
        "allocate": "os.posix_fallocate(writable, 0, 100)",
        "pin_to_change": "os.copy_file_range(held, writable, 4, 0, 0)",
        "tmpfile": "os.open('.', os.O_TMPFILE | os.O_RDWR)",
        "file_flags": "fcntl.ioctl(held, 0x80086601, bytes(8))",
    },
}
BUGGY_CLIENT = """
held, writable = os.open('f8', os.O_RDONLY), os.open('f9', os.O_RDWR)
held_directory = os.open('dir', os.O_RDONLY)
stale = os.open('f10', os.O_RDWR)
os.symlink('target', 'link')
os.setxattr('f7', 'user.set', b'1')
requests = eval(sys.stdin.readline())
for name in ('f2', 'f3', 'f5', 'f6', 'f7', 'victim', 'hollow', 'dir'):
    os.stat(name)
os.pwrite(stale, b'x', 0)  # the kernel then asks for the attributes again
for name, code in requests.items():
    with open(sys.argv[1] + '/../switch', 'w') as switch:
        switch.write(name)
    try:
        exec(code)
        print(name, 'answered')
    except OSError as error:
        print(name, error.errno)
    with open(sys.argv[1] + '/../switch', 'w') as switch:
        pass
"""


@both_ways
def test_bug_in_any_handler_is_eio_and_a_traceback(daemon: Daemon) -> None:
    requests = REQUESTS | MORE_REQUESTS[daemon.lane]
    daemon.unmount()
    daemon.switch.touch()
    daemon.start()
    worker = subprocess.run(
        [sys.executable, "-c", CLIENT_PREAMBLE + BUGGY_CLIENT, str(daemon.mount)],
        input=repr(requests) + "\n",
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert worker.returncode == 0, worker.stderr
    answers = dict(line.split() for line in worker.stdout.splitlines())
    assert answers.keys() == requests.keys()
    assert {name: answer for name, answer in answers.items() if answer != str(errno.EIO)} == {}
    log = daemon.log.read_text()
    assert [name for name in requests if f"InjectedBugError: {name}\n" not in log] == []
    assert log.count("Traceback") >= len(requests)
    assert client(daemon, "print(open('dir/file').read(), os.path.exists('victim'))") == "lower True"
    daemon.unmount()


@pytest.mark.long
def test_daemon_killed_for_want_of_memory_can_be_replaced(daemon: Daemon) -> None:
    """The kernel's own SIGKILL: a memory cgroup too small for what the client makes the daemon remember."""
    with memory_cgroup(daemon) as limit, load(daemon) as worker:
        limit.write_text(str(4 << 20))
        assert daemon.ended() == -signal.SIGKILL
        last = last_synced(worker)
    daemon.start()
    assert_synced_files_are_there(daemon, last)
    daemon.unmount()


@contextmanager
def memory_cgroup(daemon: Daemon) -> Iterator[Path]:
    """Put the daemon into a group of its own; yields the file to write its limit in bytes to.  Stops it at the end."""
    version_1 = Path("/sys/fs/cgroup/memory")
    parent, limit = (version_1, "memory.limit_in_bytes") if version_1.is_dir() else (version_1.parent, "memory.max")
    group = parent / f"overlayfs-crash-{daemon.pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(daemon.pid))
        yield group / limit
    finally:
        daemon.stop()
        group.rmdir()
