"""What the user asked for (options.py) is set up, measured, shown, and taken away again on any exit."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

from . import machine, report
from .commands import TrialFailed
from .engines.material import make_material
from .engines.steps import Step
from .engines.turns import Turns
from .layers import FULL, MIB, QUICK, Sizes, build
from .measure import learn, measure_all
from .options import CLONE, arguments, chosen_peers, chosen_rows, chosen_steps, fail, listing
from .peers import Peer
from .reads import build_walker
from .rows import Row
from .trial import Bench

TMPFS = Path("/dev/shm")
DISK = Path("/var/tmp")
EXT4_BYTES = 8 * 1024 * MIB
TREE_BYTES = 1024 * MIB
"""What two copies of the real tree, its archive and one unpacked copy take."""
ENGINE_BYTES = 3 * 1024 * MIB
"""What one turn of an engine takes: the tree as archive and image, in a container, committed, and built with."""


def real_layers(given: str | None) -> list[Path]:
    """The layers of a real tree, top first; made and kept by scripts/make-layers where none are given."""
    if given is not None:
        return [Path(name).resolve() for name in given.split(":")]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "overlayfs-demo", "layers")
    subprocess.run([CLONE / "scripts/make-layers", cache], check=True, stdout=sys.stderr)
    return sorted((path for path in cache.iterdir() if path.is_dir()), reverse=True)


@contextmanager
def place_for(on: str, needed: int) -> Iterator[Path]:
    """The directory to work in, with room enough for `needed` bytes."""
    if on == "tmpfs" and machine.filesystem_type(TMPFS) != "tmpfs":
        raise fail(f"{TMPFS} is not a tmpfs here: use --on DIR")
    with fresh_ext4() if on == "ext4" else nullcontext(TMPFS if on == "tmpfs" else Path(on).resolve()) as place:
        if (free := shutil.disk_usage(place).free) < needed:
            raise fail(f"{place} has {free // MIB} MiB free, {needed // MIB} MiB are needed: use --on DIR or --quick")
        yield place


@contextmanager
def fresh_ext4() -> Iterator[Path]:
    """A new ext4 with its journal, in a sparse file on the disk: what others do on that disk's own filesystem, and what
    they have deleted there, has no part in the figures."""
    with temporary_directory(DISK) as directory:
        image, place = directory / "image", directory / "ext4"
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(EXT4_BYTES)
        for command in (("mkfs.ext4", "-q", image), ("mount", "-o", "loop", image, place)):
            subprocess.run(command, check=True)
        yield place


@contextmanager
def temporary_directory(place: Path) -> Iterator[Path]:
    """A directory that is deleted on any exit, and unmounted first; a second Ctrl-C changes nothing."""
    directory = Path(tempfile.mkdtemp(prefix="overlayfs-bench.", dir=place))
    try:
        yield directory
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        machine.delete_tree(directory)


def stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def end_descendants() -> None:
    """Daemons that an interrupted trial could not wait for; all below this process was started by it."""
    for pid in machine.descendants():
        machine.end_process(pid, 5)


def tell(text: str) -> None:
    """What is going on now, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def prepare(directory: Path, scratch: Path, layers: list[Path], sizes: Sizes) -> Bench:
    """Layers below `directory`, and what the kernel shows of them; programs' output goes to tmpfs in any case."""
    (scratch / "trial").mkdir()
    (directory / "layers").mkdir()
    tell("preparing layers")
    bench = Bench(
        place=directory,
        scratch=scratch / "trial",
        sizes=sizes,
        stacks=build(directory / "layers", layers, sizes),
        archive=scratch / "tree.tar",
        walker=scratch / "walk",
        on_disk=machine.filesystem_type(directory) != "tmpfs",
    )
    build_walker(bench.walker)
    tell("asking the kernel's overlayfs what the tree is")
    return replace(bench, expected=learn(bench))


@dataclass(frozen=True, slots=True)
class Session:
    """What both kinds of measuring share; `facts` grows until the report is made."""

    peers: list[Peer]
    runs: int
    sizes: Sizes
    layers: list[Path]
    directory: Path
    scratch: Path
    facts: dict[str, object]


def measured_rows(rows: list[Row], session: Session) -> Iterator[report.Line]:
    bench = prepare(session.directory, session.scratch, session.layers, session.sizes)
    assert bench.expected is not None
    session.facts["entries"] = bench.expected.entries
    return measure_all(bench, session.peers, rows, session.runs, tell)


def measured_engines(steps: list[Step], session: Session) -> Iterator[report.Line]:
    tell("asking the kernel's overlayfs what the engines must make of the tree")
    material = make_material(session.directory / "material", session.layers, session.scratch / "output")
    kinds = {step.engine for step in steps if step.engine.missing() is None}
    session.facts["entries"] = len(material.names)
    session.facts["engines"] = {kind.name: kind.versions() for kind in kinds}
    return Turns(session.directory, session.scratch, material, tell).measure(session.peers, steps, session.runs)


def run(options: argparse.Namespace) -> None:
    sizes = QUICK if options.quick else FULL
    runs = options.runs or (1 if options.quick else 5)
    peers = chosen_peers(options)
    if options.engines:
        room, measured = ENGINE_BYTES, partial(measured_engines, chosen_steps(options.rows))
    else:
        room = TREE_BYTES + 2 * max(sizes.big, sizes.sequential_write)
        measured = partial(measured_rows, chosen_rows(options.rows))
    layers = real_layers(options.layers)
    lines: list[report.Line] = []
    with ExitStack() as resources:
        place = resources.enter_context(place_for(options.on, room))
        facts = machine.facts() | {
            "filesystem": machine.filesystem_type(place),
            "quick": options.quick,
            "runs": runs,
            "sizes": asdict(sizes),
        }
        resources.callback(end_descendants)
        resources.callback(lambda: print(f"{report.headline(facts)}\n\n{report.table(lines, peers)}"))
        resources.callback(tell, "")
        directory = resources.enter_context(temporary_directory(place))
        scratch = resources.enter_context(temporary_directory(TMPFS if TMPFS.is_dir() else place))
        for line in measured(Session(peers, runs, sizes, layers, directory, scratch, facts)):
            lines.append(line)
            if options.json is not None:
                options.json.write_text(json.dumps(report.document(lines, peers, facts), indent=1) + "\n")


def main() -> None:
    options = arguments()
    if options.list:
        print(listing(options.ours))
        return
    if os.geteuid() != 0:
        raise fail("needs root, for the kernel's overlayfs and to drop caches")
    machine.become_subreaper()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        run(options)
    except TrialFailed as error:
        raise fail(f"could not prepare: {error}") from error


if __name__ == "__main__":
    main()
