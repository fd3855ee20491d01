"""What did the user ask for: the command line, checked against the rows and filesystems that there are.

Neighbours: __main__.py does it.
"""

import argparse
from pathlib import Path

from .engines.steps import ENGINE_STEPS, Step, with_needed
from .peers import FUSE_OVERLAYFS, KERNEL, OURS, Peer, choose_peers, known_peers
from .rows import ROWS, Row

CLONE = Path(__file__).resolve().parents[2]
MOUNT_PROGRAMS = (OURS, FUSE_OVERLAYFS, KERNEL)
"""What an engine can work on: the others understand no layers as engines make them."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Times overlayfs-mount beside other overlay filesystems on one real tree.",
    )
    parser.add_argument(
        "--on",
        default="tmpfs",
        metavar="tmpfs|ext4|DIR",
        help="where layers and upper live; ext4: a fresh one on a loop device (default: tmpfs)",
    )
    parser.add_argument("--engines", action="store_true", help="time podman and dockerd on them instead")
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


def check_names(wanted: list[str], known: list[str]) -> None:
    if unknown := set(wanted) - set(known):
        raise fail(f"no such row: {', '.join(sorted(unknown))} (there are: {', '.join(known)})")


def chosen_rows(wanted: list[str] | None) -> list[Row]:
    known = {row.figure.name: row for row in ROWS}
    check_names(wanted or [], list(known))
    return list(ROWS) if wanted is None else [known[name] for name in wanted]


def chosen_steps(wanted: list[str] | None) -> list[Step]:
    known = [step.figure.name for step in ENGINE_STEPS]
    check_names(wanted or [], known)
    steps = with_needed(known if wanted is None else wanted)
    reasons = {step.engine.name: step.engine.missing() for step in steps}
    if None not in reasons.values():
        raise fail("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    return steps


def chosen_peers(options: argparse.Namespace) -> list[Peer]:
    usable = list(known_peers(options.ours))
    if options.engines:
        usable = [name for name in usable if name in MOUNT_PROGRAMS]
    try:
        chosen = choose_peers(options.peers or usable, options.ours)
    except KeyError as unknown:
        raise fail(f"no such filesystem: {unknown.args[0]} (there are: {', '.join(usable)})") from None
    if unfit := [peer.name for peer in chosen if peer.base not in usable]:
        raise fail(f"no engine works on {', '.join(unfit)} (choose from: {', '.join(usable)})")
    return chosen


def listing(ours: str) -> str:
    figures = [row.figure for row in ROWS]
    of_engines = [step.figure for step in ENGINE_STEPS]
    lines = ["rows:", *(f"  {figure.name:16} {figure.title} ({figure.start.value})" for figure in figures)]
    lines += ["rows of --engines:", *(f"  {figure.name:16} {figure.title}" for figure in of_engines)]
    return "\n".join([*lines, "filesystems:", *(f"  {name}" for name in known_peers(ours))])
