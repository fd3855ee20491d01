"""In which order is everything measured, and what must be known first.

Neighbours: rows.py and peers.py are the two axes; report.py shows the results. Single-threaded.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from . import machine
from .commands import TrialFailed
from .figures import Cell, Cells, Figure, Start
from .peers import KERNEL, Peer, known_peers
from .reads import NEEDLE, TAR_COUNT, long_listing, matches, walk
from .rows import Row
from .trial import Bench, Expected, Trial
from .workloads import entries

SMALL_LIMIT = 16384
SMALL_PATHS = 2_000


def small_files(root: Path) -> list[tuple[str, int]]:
    """(path below root, size) of small files spread over the whole tree."""
    found = []
    for entry in entries(str(root)):
        size = entry.stat(follow_symlinks=False).st_size
        if entry.is_file(follow_symlinks=False) and 0 < size <= SMALL_LIMIT:
            found.append((os.path.relpath(entry.path, root), size))
    found.sort()
    return found[:: max(1, len(found) // SMALL_PATHS)]


def learn(bench: Bench) -> Expected:
    """Ask the kernel's overlayfs what the tree is, and archive it for the rows that unpack it."""
    with Trial(bench, known_peers("")[KERNEL], bench.stacks.tree) as trial:
        trial.mount()
        root = str(trial.root)
        trial.command("tar", "-C", root, "-cf", str(bench.archive), ".")
        trial.command("find", root)
        lines = trial.output_text().count("\n")
        trial.command("ls", "-lR", root)
        listing = long_listing(trial.output_text())
        trial.command("bash", "-o", "pipefail", "-c", TAR_COUNT, "bash", root)
        archive_bytes = int(trial.output_text())
        trial.command("grep", "-rF", NEEDLE, root)
        found = matches(trial.output_text())
        _, _, capable = walk(trial)
        files, digest = trial.ask("digest", root=root)
        small = small_files(trial.root)
        usr_entries, _ = trial.ask("modes_without", root=trial.path("usr"), bits=0)
        return Expected(
            entries=lines,
            top=tuple(sorted(path.name for path in trial.root.iterdir())),
            long_listing=listing,
            archive_bytes=archive_bytes,
            contents=(files, digest),
            capable=capable,
            matches=found,
            small_paths=tuple(path for path, _ in small),
            small_bytes=sum(small[number % len(small)][1] for number in range(bench.sizes.openings)),
            usr_entries=usr_entries,
        )


def measure(bench: Bench, peer: Peer, row: Row) -> float:
    """One figure of one row, from a mount of its own. Raises TrialFailed."""
    with Trial(bench, peer, getattr(bench.stacks, row.stack)) as trial:
        if row.figure.start is not Start.UNMOUNTED:
            trial.mount()
        row.prepare(trial)
        if row.figure.start is Start.WARM:
            row.run(trial)
        if row.figure.start is Start.COLD:
            machine.drop_caches(3 if bench.on_disk else 2)
            for program in row.programs:  # the program is warm, only the tree is cold
                trial.command(program, "--version")
        elif bench.on_disk:  # what earlier trials wrote must not be written back now
            os.sync()
        figure = row.run(trial)
        row.check(trial)
        trial.unmount()
        row.check_upper(trial)
    return figure


def try_cell(bench: Bench, peer: Peer, row: Row, cell: Cell) -> None:
    """Add one figure, or the reason why there is none."""
    if cell.failure is not None:
        return
    cell.failure = peer.missing()
    if cell.failure is not None:
        return
    try:
        cell.samples.append(measure(bench, peer, row))
    except (TrialFailed, OSError, ValueError) as error:
        cell.failure = str(error)


def measure_all(
    bench: Bench, peers: list[Peer], rows: list[Row], runs: int, tell: Callable[[str], None]
) -> Iterator[tuple[Figure, Cells]]:
    """Each row with its cells as it is finished; within a row the peers take turns: A B C D, A B C D, …"""
    for row in rows:
        cells = {peer.name: Cell() for peer in peers}
        for run in range(runs):
            for peer in peers:
                tell(f"{row.figure.title}: run {run + 1} of {runs}: {peer.name}")
                try_cell(bench, peer, row, cells[peer.name])
        yield row.figure, cells
