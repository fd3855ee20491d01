"""How are the results shown: a table for people, JSON for programs.

Neighbours: measure.py makes the cells. No state.
"""

from .measure import Cells
from .peers import KERNEL, Peer
from .rows import Row

Line = tuple[Row, Cells]


def ratio(cells: Cells, name: str) -> float | None:
    """A peer's median as a multiple of the kernel's."""
    own, kernel = cells[name].median, cells[KERNEL].median if KERNEL in cells else None
    return None if own is None or not kernel else own / kernel


def shown(value: float | None, unit: str) -> str:
    """Three digits that matter, or `-`."""
    if value is None:
        return "-"
    if unit == "MiB":
        return f"{value:.1f}"
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def heading(peers: list[Peer]) -> list[str]:
    columns = ["workload", "unit"]
    for peer in peers:
        columns += [peer.name] if peer.name == KERNEL else [peer.name, "x"]
    return [*columns, "target"]


def table_line(row: Row, cells: Cells, peers: list[Peer]) -> list[str]:
    """One row's texts; `!` marks a multiple of ours above the target."""
    texts = [row.title, row.unit]
    for peer in peers:
        texts.append(shown(cells[peer.name].median, row.unit))
        if peer.name == KERNEL:
            continue
        multiple = ratio(cells, peer.name)
        missed = (
            peer.name.startswith("ours") and row.target is not None and multiple is not None and multiple > row.target
        )
        texts.append("-" if multiple is None else f"{multiple:.2f}" + ("!" if missed else ""))
    return [*texts, "" if row.target is None else f"{row.target:.1f}"]


def headline(facts: dict[str, object]) -> str:
    """What the table must not be read without."""
    place = f"Linux {facts['kernel']}, {facts['processors']} x {facts['model']}, on {facts['filesystem']}"
    kind = "quick sizes, not to be quoted" if facts["quick"] else "full sizes"
    tree = f"a tree of {facts['files']} files" if "files" in facts else "no tree"
    return f"{place}; {tree}; {kind}; medians of {facts['runs']}; x: multiple of the kernel's; !: over the target"


def reasons(lines: list[Line]) -> list[str]:
    """Why figures are missing, each reason once."""
    rows_of: dict[tuple[str, str], list[str]] = {}
    for row, cells in lines:
        for name, cell in cells.items():
            if cell.failure is not None:
                rows_of.setdefault((name, cell.failure), []).append(row.name)
    return [f"-  {name}: {', '.join(rows)}: {failure}" for (name, failure), rows in rows_of.items()]


def table(lines: list[Line], peers: list[Peer]) -> str:
    """Aligned text: medians, and multiples of the kernel's; below it, why a figure is missing."""
    texts = [heading(peers), *(table_line(row, cells, peers) for row, cells in lines)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(texts[0]))]
    shown_lines = [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in texts
    ]
    shown_lines.insert(1, "-" * len(shown_lines[0]))
    return "\n".join(line.rstrip() for line in (*shown_lines, *reasons(lines)))


def cell_document(cells: Cells, name: str) -> dict[str, object]:
    cell = cells[name]
    return {
        "median": cell.median,
        "ratio": ratio(cells, name),
        "samples": cell.samples,
        "failure": cell.failure,
    }


def document(lines: list[Line], peers: list[Peer], facts: dict[str, object]) -> dict[str, object]:
    """Everything measured. `ratio` is to the kernel's median; `failure` says why there is no median."""
    return {
        "machine": facts,
        "peers": {
            peer.name: {"version": None if peer.missing() else peer.version(), "options": list(peer.extra)}
            for peer in peers
        },
        "rows": [
            {
                "name": row.name,
                "title": row.title,
                "unit": row.unit,
                "start": row.start.value,
                "target": row.target,
                "results": {name: cell_document(cells, name) for name in cells},
            }
            for row, cells in lines
        ],
    }
