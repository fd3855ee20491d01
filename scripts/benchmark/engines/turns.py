"""In which order do the engines work: each run gives each peer one turn, on a storage that it begins empty.

Neighbours: steps.py has the steps of a turn, figures.py the cells. Single-threaded.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from ..commands import TrialFailed
from ..figures import Cell, Cells, Figure
from ..peers import Peer
from .engine import Engine
from .material import Material
from .steps import Step, load

Table = list[tuple[Step, Cells]]


class Turns:
    """Takes turns below `place`, with sockets and locks below `scratch`."""

    def __init__(self, place: Path, scratch: Path, material: Material, tell: Callable[[str], None]) -> None:
        self._place = place
        self._scratch = scratch
        self._material = material
        self._tell = tell

    def measure(self, peers: list[Peer], steps: list[Step], runs: int) -> Iterator[tuple[Figure, Cells]]:
        """The rows of each engine when its last run is over; within a run the peers take turns."""
        for kind in dict.fromkeys(step.engine for step in steps):
            table = [(step, {peer.name: Cell() for peer in peers}) for step in steps if step.engine is kind]
            for run in range(runs):
                for peer in peers:
                    self._tell(f"{kind.name}: run {run + 1} of {runs}: {peer.name}")
                    self._turn(kind, peer, table)
            for step, cells in table:
                yield step.figure, cells

    def _turn(self, kind: type[Engine], peer: Peer, table: Table) -> None:
        """One figure more for each cell of this peer, or the reason why there is none."""
        if all(cells[peer.name].failure is not None for _, cells in table):
            return
        try:
            if reason := kind.missing() or peer.missing():
                raise TrialFailed(reason)
            with kind(peer, self._place / "engine", self._scratch / "engine") as engine:
                load(engine, self._material)
                for step, cells in table:
                    self._try_step(engine, step, cells[peer.name])
        except (TrialFailed, OSError, ValueError) as error:
            for _, cells in table:
                cells[peer.name].failure = cells[peer.name].failure or str(error)

    def _try_step(self, engine: Engine, step: Step, cell: Cell) -> None:
        """Also when an earlier run of it failed: the steps after it go on with its work."""
        self._tell(f"{step.figure.title}: {engine.peer.name}")
        try:
            cell.samples.append(step.run(engine, self._material))
        except (TrialFailed, OSError, ValueError) as error:
            cell.failure = cell.failure or str(error)
