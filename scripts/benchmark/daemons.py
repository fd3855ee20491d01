"""What the daemon costs, whatever it is asked: its start, its memory, its processor time.

Neighbours: rows.py puts these runs into the table, trial.py starts the daemons.
"""

import os
import time
from collections.abc import Callable

from . import machine, writes
from .commands import TrialFailed
from .layers import MIB
from .trial import Trial

STABLE_S = 0.3
MOUNT_AND_LS = 'root=$1; shift; "$@" >/dev/null && exec ls -A "$root"'


def run_mount(trial: Trial) -> float:
    """From the start of the mount program to the end of an `ls` that follows at once.

    One shell runs both: a daemon whose program returned before it serves would win the time between two commands.
    """
    argv = trial.peer.mount_argv(trial.plan)
    seconds = trial.mount_by("sh", "-c", MOUNT_AND_LS, "sh", str(trial.root), *argv)
    trial.expect("names", tuple(sorted(trial.output_text().splitlines())), trial.expected.top)
    return seconds


def run_processor_time(kind: str) -> Callable[[Trial], float]:
    """Microseconds an entry that the daemon spends on an untar, `user` or `system`."""

    def run(trial: Trial) -> float:
        must_have_daemon(trial)
        before = machine.processor_seconds(trial.daemons)
        writes.run_untar(trial)
        after = machine.processor_seconds(trial.daemons)
        which = ("user", "system").index(kind)
        return (after[which] - before[which]) / trial.expected.entries * 1e6

    return run


def must_have_daemon(trial: Trial) -> None:
    if not trial.daemons:
        raise TrialFailed("no daemon: what it takes is the kernel's own")


def resident_at_rest(trial: Trial) -> int:
    """Resident bytes of the daemon once they no longer change."""
    now, last = machine.resident_bytes(trial.daemons), -1
    while now != last and trial.clock.left_s() > 0:
        time.sleep(STABLE_S)
        now, last = machine.resident_bytes(trial.daemons), now
    return now


def run_idle_memory(trial: Trial) -> float:
    """MiB after one `ls`, from when on a daemon serves."""
    must_have_daemon(trial)
    trial.command("ls", "-A", str(trial.root))
    trial.expect("names", tuple(sorted(trial.output_text().splitlines())), trial.expected.top)
    return resident_at_rest(trial) / MIB


def visit_all(trial: Trial) -> tuple[int, int]:
    """(the daemon's memory before, inodes) of asking for every file's attributes."""
    must_have_daemon(trial)
    before = machine.resident_bytes(trial.daemons)
    trial.command("find", str(trial.root), "-printf", "%s %p\n")
    found = trial.output_text().count("\n") - 1 - len(os.listdir(trial.plan.lowers[0]))
    trial.expect("files", found, trial.sizes.many_files)
    return before, found


def run_memory(trial: Trial) -> float:
    before, inodes = visit_all(trial)
    return (machine.resident_bytes(trial.daemons) - before) / inodes


def run_memory_given_back(trial: Trial) -> float:
    """FORGETs come in their own time: the figure is the one at which the daemon comes to rest."""
    before, inodes = visit_all(trial)
    machine.drop_caches(2)
    return (resident_at_rest(trial) - before) / inodes
