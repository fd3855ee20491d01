"""How are the results shown: a table for people, JSON for programs.

Neighbours: measure.py makes the cells. No state.
"""

import itertools

from .figures import Cells, Figure, ratio
from .peers import FUSE_OVERLAYFS, KERNEL, OURS, Peer

Line = tuple[Figure, Cells]
MULTIPLES = {KERNEL: "x", FUSE_OVERLAYFS: "/fo"}
"""Whose figures the others' are shown as multiples of, and the headings of these columns."""


def shown(value: float | None, unit: str) -> str:
    """Three digits that matter, or `-`."""
    if value is None:
        return "-"
    if unit != "s":
        return f"{value:.1f}"
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def compared(peer: Peer, peers: list[Peer]) -> list[str]:
    """Whose multiples are shown beside this peer's figures."""
    names = {other.name for other in peers}
    return [of for of in MULTIPLES if of in names and peer.name not in (of, KERNEL)]


def heading(peers: list[Peer]) -> list[str]:
    columns = ["workload", "unit"]
    for peer in peers:
        columns += [peer.name, *(MULTIPLES[of] for of in compared(peer, peers))]
    return [*columns, "target"]


def target_text(figure: Figure) -> str:
    if figure.target is None:
        return ""
    if figure.target.of is None:
        return f"{figure.target.limit:g} {figure.unit}"
    return f"{figure.target.limit:g} {MULTIPLES[figure.target.of]}"


def table_line(figure: Figure, cells: Cells, peers: list[Peer]) -> list[str]:
    """One row's texts; `!` marks a figure or a multiple of ours above the target."""
    texts = [figure.title, figure.unit]
    for peer in peers:
        missed = peer.base == OURS and figure.target is not None and figure.target.is_missed(cells, peer.name)
        of = figure.target.of if missed and figure.target is not None else ""
        texts.append(shown(cells[peer.name].median, figure.unit) + ("!" if of is None else ""))
        for name in compared(peer, peers):
            multiple = ratio(cells, peer.name, name)
            texts.append("-" if multiple is None else f"{multiple:.2f}" + ("!" if of == name else ""))
    return [*texts, target_text(figure)]


def headline(facts: dict[str, object]) -> str:
    """What the table must not be read without."""
    place = f"Linux {facts['kernel']}, {facts['processors']} x {facts['model']}, on {facts['filesystem']}"
    kind = "quick sizes, not to be quoted" if facts["quick"] else "full sizes"
    tree = f"a tree of {facts['entries']} entries" if "entries" in facts else "no tree"
    marks = "x: multiple of the kernel's; /fo: of fuse-overlayfs's; !: over the target"
    return f"{place}; {tree}; {kind}; medians of {facts['runs']}; {marks}"


def reasons(lines: list[Line]) -> list[str]:
    """Why figures are missing, each reason once."""
    rows_of: dict[tuple[str, str], list[str]] = {}
    for figure, cells in lines:
        for name, cell in cells.items():
            if cell.failure is not None:
                rows_of.setdefault((name, cell.failure), []).append(figure.name)
    return [f"-  {name}: {', '.join(rows)}: {failure}" for (name, failure), rows in rows_of.items()]


def slower(lines: list[Line], peers: list[Peer]) -> list[str]:
    """In which rows ours is above another daemon."""
    ours = [peer.name for peer in peers if peer.base == OURS]
    others = [peer.name for peer in peers if peer.base not in (OURS, KERNEL)]
    found = []
    for own, other in itertools.product(ours, others):
        multiples = [(figure.name, ratio(cells, own, other)) for figure, cells in lines]
        if above := [name for name, multiple in multiples if multiple is not None and multiple > 1]:
            found.append(f"-  {own} is above {other}: {', '.join(above)}")
    return found


def table(lines: list[Line], peers: list[Peer]) -> str:
    """Aligned text: medians and multiples; below it, where ours is above another, and why a figure is missing."""
    texts = [heading(peers), *(table_line(figure, cells, peers) for figure, cells in lines)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(texts[0]))]
    shown_lines = [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in texts
    ]
    shown_lines.insert(1, "-" * len(shown_lines[0]))
    return "\n".join(line.rstrip() for line in (*shown_lines, *slower(lines, peers), *reasons(lines)))


def cell_document(cells: Cells, name: str) -> dict[str, object]:
    cell = cells[name]
    return {
        "median": cell.median,
        "ratio": ratio(cells, name, KERNEL),
        "fuse_overlayfs_ratio": ratio(cells, name, FUSE_OVERLAYFS),
        "samples": cell.samples,
        "failure": cell.failure,
    }


def document(lines: list[Line], peers: list[Peer], facts: dict[str, object]) -> dict[str, object]:
    """Everything measured. Ratios are to the medians of the kernel and fuse-overlayfs; `failure`: why there is none."""
    return {
        "machine": facts,
        "peers": {
            peer.name: {"version": None if peer.missing() else peer.version(), "options": list(peer.extra)}
            for peer in peers
        },
        "rows": [
            {
                "name": figure.name,
                "title": figure.title,
                "unit": figure.unit,
                "start": figure.start.value,
                "target": None if figure.target is None else {"limit": figure.target.limit, "of": figure.target.of},
                "results": {name: cell_document(cells, name) for name in cells},
            }
            for figure, cells in lines
        ],
    }
