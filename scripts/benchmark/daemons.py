"""What the daemon costs, whatever it is asked: its start and its memory.

Neighbours: rows.py puts these runs into the table, trial.py starts the daemons.
"""

import os
import time

from . import machine
from .commands import TrialFailed
from .layers import MIB
from .trial import Trial

STABLE_S = 0.3


def run_mount(trial: Trial) -> float:
    """The mount program's own time to its exit and then `ls`, whoever answers it."""
    seconds = trial.mount() + trial.command("ls", "-A", str(trial.root))
    trial.expect("names", tuple(sorted(trial.output_text().splitlines())), trial.expected.top)
    return seconds


def visit_all(trial: Trial) -> tuple[int, float]:
    """(the daemon's memory before, inodes in hundreds of thousands) of asking for every file's attributes."""
    if not trial.daemons:
        raise TrialFailed("no daemon: its memory is the kernel's own")
    before = machine.resident_bytes(trial.daemons)
    trial.command("find", str(trial.root), "-printf", "%s %p\n")
    found = trial.output_text().count("\n") - 1 - len(os.listdir(trial.plan.lowers[0]))
    trial.expect("files", found, trial.sizes.many_files)
    return before, found / 100_000


def run_memory(trial: Trial) -> float:
    before, inodes = visit_all(trial)
    return (machine.resident_bytes(trial.daemons) - before) / MIB / inodes


def run_memory_given_back(trial: Trial) -> float:
    """FORGETs come in their own time: the figure is the one at which the daemon comes to rest."""
    before, inodes = visit_all(trial)
    machine.drop_caches(2)
    now, last = machine.resident_bytes(trial.daemons), -1
    while now != last and trial.clock.left_s() > 0:
        time.sleep(STABLE_S)
        now, last = machine.resident_bytes(trial.daemons), now
    return (now - before) / MIB / inodes
