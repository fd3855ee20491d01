"""`overlayfs waste`: the bytes of an image that later layers hide."""

from __future__ import annotations

from pathlib import Path

from overlayfs.cli.inspect.looking import open_image
from overlayfs.cli.output import Cell, Lines, format_size, plain, print_json, print_table, printable
from overlayfs.image.inspect.waste import Hidden, Reason, Waste, find_waste

_STYLES = {Reason.DELETED: "red", Reason.REPLACED: "yellow", Reason.REWRITTEN: "magenta"}


def show_waste(name: str, most: int, as_json: bool, store: Path | None) -> float:
    """Show the `most` largest hidden files and directories; the efficiency, 1 at best."""
    with open_image(name, store) as looked:
        waste = find_waste(looked.indexes, looked.trees)
    if as_json:
        print_json(_document(waste, most))
    else:
        _show(waste, most)
    return waste.efficiency


def _show(waste: Waste, most: int) -> None:
    shown = waste.hidden[:most]
    if shown:
        print_table(("SIZE", "LAYER", "HIDDEN BY", "HOW", "FILES", "PATH"), [_row(item) for item in shown])
    if len(waste.hidden) > most:
        print(f"… and {len(waste.hidden) - most:,} more")
    wasted = f"{format_size(waste.wasted)} of {format_size(waste.total)} wasted in {waste.count:,} files"
    Lines().print(Cell(f"{wasted}; efficiency {waste.efficiency:.1%}", "bold"))


def _row(item: Hidden) -> list[Cell]:
    return [
        Cell(format_size(item.size)),
        Cell(_layers(item), "dim"),
        Cell(str(item.hidden_by + 1), "dim"),
        Cell(item.reason.value, _STYLES[item.reason]),
        Cell(f"{item.count:,}"),
        Cell(printable(b"/" + item.path)),
    ]


def _layers(item: Hidden) -> str:
    first, last = item.layers[0] + 1, item.layers[-1] + 1
    return str(first) if first == last else f"{first}-{last}"


def _document(waste: Waste, most: int) -> dict[str, object]:
    return {
        "efficiency": waste.efficiency,
        "dive_score": waste.dive_score,
        "wasted": waste.wasted,
        "total": waste.total,
        "count": waste.count,
        "hidden": [
            {
                "path": plain(b"/" + item.path),
                "size": item.size,
                "count": item.count,
                "layers": [layer + 1 for layer in item.layers],
                "hidden_by": item.hidden_by + 1,
                "how": item.reason.name.lower(),
            }
            for item in waste.hidden[:most]
        ],
    }
