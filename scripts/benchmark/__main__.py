"""The command line: what the user asked for, set up, measured, shown, and taken away again on any exit."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

from . import machine, report
from .commands import TrialFailed
from .layers import FULL, MIB, QUICK, Sizes, build
from .measure import learn, measure_all
from .peers import Peer, choose_peers, known_peers
from .reads import build_walker
from .rows import ROWS, Row
from .trial import Bench

CLONE = Path(__file__).resolve().parents[2]
TMPFS = Path("/dev/shm")
TREE_BYTES = 1024 * MIB
"""What two copies of the real tree, its archive and one unpacked copy take."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Times overlayfs-mount beside other overlay filesystems on one real tree.",
    )
    parser.add_argument(
        "--on", default="tmpfs", metavar="tmpfs|DIR", help="where layers and upper live (default: tmpfs)"
    )
    parser.add_argument("--runs", type=int, help="figures behind each median (default: 5, quick: 1)")
    parser.add_argument("--rows", type=names, metavar="A,B", help="only these rows (see --list)")
    parser.add_argument(
        "--peers",
        type=names,
        metavar="A,B",
        help="only these filesystems; NAME+OPTION adds a mount option to one",
    )
    parser.add_argument("--quick", action="store_true", help="small files and few runs: to try it, not to quote it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--ours", default=str(CLONE / ".venv/bin/overlayfs-mount"), help="the mount program under test")
    parser.add_argument("--layers", metavar="A:B:C", help="layer directories, top first (default: scripts/make-layers)")
    parser.add_argument("--list", action="store_true", help="show the rows and filesystems, and stop")
    return parser.parse_args(argv)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def fail(message: str) -> SystemExit:
    return SystemExit(f"bench: {message}")


def chosen_rows(wanted: list[str] | None) -> list[Row]:
    known = {row.figure.name: row for row in ROWS}
    if unknown := set(wanted or ()) - set(known):
        raise fail(f"no such row: {', '.join(sorted(unknown))} (there are: {', '.join(known)})")
    return list(ROWS) if wanted is None else [known[name] for name in wanted]


def chosen_peers(wanted: list[str] | None, ours: str) -> list[Peer]:
    known = known_peers(ours)
    try:
        return choose_peers(wanted or list(known), ours)
    except KeyError as unknown:
        raise fail(f"no such filesystem: {unknown.args[0]} (there are: {', '.join(known)})") from None


def real_layers(given: str | None) -> list[Path]:
    """The layers of a real tree, top first; made and kept by scripts/make-layers where none are given."""
    if given is not None:
        return [Path(name).resolve() for name in given.split(":")]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "overlayfs-demo", "layers")
    subprocess.run([CLONE / "scripts/make-layers", cache], check=True, stdout=sys.stderr)
    return sorted((path for path in cache.iterdir() if path.is_dir()), reverse=True)


def place_for(on: str, sizes: Sizes) -> Path:
    """The directory to work in, with room enough."""
    place = TMPFS if on == "tmpfs" else Path(on).resolve()
    if on == "tmpfs" and machine.filesystem_type(place) != "tmpfs":
        raise fail(f"{place} is not a tmpfs here: use --on DIR")
    needed = TREE_BYTES + 2 * max(sizes.big, sizes.sequential_write)
    if (free := shutil.disk_usage(place).free) < needed:
        raise fail(f"{place} has {free // MIB} MiB free, {needed // MIB} MiB are needed: use --on DIR or --quick")
    return place


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


def prepare(resources: ExitStack, place: Path, layers: list[Path], sizes: Sizes) -> Bench:
    """Layers below `place`, and what the kernel shows of them; programs' output goes to tmpfs in any case."""
    directory = resources.enter_context(temporary_directory(place))
    scratch = resources.enter_context(temporary_directory(TMPFS if TMPFS.is_dir() else place))
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


def run(options: argparse.Namespace) -> None:
    sizes = QUICK if options.quick else FULL
    runs = options.runs or (1 if options.quick else 5)
    rows, peers = chosen_rows(options.rows), chosen_peers(options.peers, options.ours)
    place = place_for(options.on, sizes)
    layers = real_layers(options.layers)
    facts = machine.facts() | {
        "filesystem": machine.filesystem_type(place),
        "quick": options.quick,
        "runs": runs,
        "sizes": asdict(sizes),
    }
    lines: list[report.Line] = []
    with ExitStack() as resources:
        resources.callback(end_descendants)
        resources.callback(lambda: print(f"{report.headline(facts)}\n\n{report.table(lines, peers)}"))
        resources.callback(tell, "")
        bench = prepare(resources, place, layers, sizes)
        assert bench.expected is not None
        facts |= {"entries": bench.expected.entries, "files": bench.expected.contents[0]}
        for line in measure_all(bench, peers, rows, runs, tell):
            lines.append(line)
            if options.json is not None:
                options.json.write_text(json.dumps(report.document(lines, peers, facts), indent=1) + "\n")


def main() -> None:
    options = arguments()
    if options.list:
        print(
            "\n".join(
                ["rows:", *(f"  {row.figure.name:16} {row.figure.title} ({row.figure.start.value})" for row in ROWS)]
            )
        )
        print("\n".join(["filesystems:", *(f"  {name}" for name in known_peers(options.ours))]))
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
