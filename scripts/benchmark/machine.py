"""What does the benchmark ask of the machine: processes, mounts, caches, and facts for the report.

Neighbours: everything else here calls this module, and it calls none of them. Single-threaded.
"""

import ctypes
import os
import platform
import select
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_SCHEDULED = 2  # CPUCLOCK_SCHED: what a process has run, in nanoseconds
UMOUNT_LIMIT_S = 20
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@example.invalid",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@example.invalid",
}
"""The same for every program, whoever starts the benchmark."""


def become_subreaper() -> None:
    """Make daemons that detach themselves our children, so that each is known and can be waited for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def parents() -> dict[int, int]:
    """The parent of each living process (zombies do not count)."""
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text(errors="replace")
        except OSError:  # ended meanwhile
            continue
        state, parent = stat[stat.rindex(")") + 1 :].split()[:2]
        if state != "Z":
            found[int(entry)] = int(parent)
    return found


def descendants() -> set[int]:
    """Every living process below this one."""
    parent_of = parents()
    ours = {os.getpid()}
    while more := {pid for pid, parent in parent_of.items() if parent in ours and pid not in ours}:
        ours |= more
    return ours - {os.getpid()}


def command_line(pid: int) -> str:
    """Program and arguments, for messages; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def wait_for(pid: int, patience_s: float) -> bool:
    """Whether the process ended within `patience_s`; it is not reaped. Wakes at once, unlike polling."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], patience_s)[0])
    finally:
        os.close(handle)


def end_process(pid: int, patience_s: float) -> None:
    """Wait for a process of ours to end by itself, then ask it to, then kill it; reap it if it is a child."""
    for signal_number in (None, signal.SIGTERM, signal.SIGKILL):
        if signal_number is not None:
            try:
                os.kill(pid, signal_number)
            except ProcessLookupError:
                break
        if wait_for(pid, patience_s):
            break
    with suppress(ChildProcessError):  # the child of a daemon is reaped by that
        os.waitpid(pid, os.WNOHANG)


def resident_bytes(pids: set[int]) -> int:
    """VmRSS of the processes together (proc(5))."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


def processor_seconds(pids: set[int]) -> tuple[float, float]:
    """(user, system) time of the processes together, all their threads included (proc(5): utime and stime)."""
    fields = [Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split() for pid in pids]
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(int(of[11]) for of in fields) / ticks, sum(int(of[12]) for of in fields) / ticks


def processor_nanoseconds(pids: set[int]) -> int:
    """Time that the processes have run, threads that ended included: their clocks of clock_getcpuclockid(3)."""
    return sum(time.clock_gettime_ns(~pid << 3 | _SCHEDULED) for pid in pids)


def mounts_below(path: Path) -> list[Path]:
    """Mountpoints at or below `path`, innermost first (proc(5), mountinfo)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mountpoint = Path(line.split()[4].encode().decode("unicode_escape"))
        if mountpoint == path or path in mountpoint.parents:
            found.append(mountpoint)
    return found[::-1]


def unmount(mountpoint: Path) -> None:
    """Unmount at once if nothing uses it, lazily otherwise; a daemon that is stuck cannot hold us up."""
    for how in ([], ["-l"]):
        command = ["umount", *how, str(mountpoint)]
        with suppress(subprocess.TimeoutExpired, subprocess.CalledProcessError):
            subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True, timeout=UMOUNT_LIMIT_S)
            return


def delete_tree(path: Path) -> None:
    """Delete a directory of ours, never through a mount that could not be taken away."""
    for mountpoint in mounts_below(path):
        unmount(mountpoint)
    if left := mounts_below(path):
        raise OSError(f"still mounted, so not deleted: {', '.join(map(str, left))}")
    shutil.rmtree(path, ignore_errors=True)


def drop_caches(level: int) -> None:
    """Forget clean caches: 2 names and inodes, 3 file contents too (Documentation/admin-guide/sysctl/vm.rst).

    Twice, as an inode can go only after its names. Where it is not allowed, a fresh mount must do.
    """
    os.sync()
    for _ in range(2):
        try:
            Path("/proc/sys/vm/drop_caches").write_text(str(level))
        except OSError:
            return


def filesystem_type(path: Path) -> str:
    """The type of filesystem that holds `path`, as stat(1) spells it."""
    command = ["stat", "--file-system", "--format=%T", str(path)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()


def facts() -> dict[str, object]:
    """What a reader must know to compare two reports."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "model": models[0].partition(":")[2].strip() if models else platform.machine(),
        "memory_bytes": memory,
        "load_average": os.getloadavg()[0],
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
