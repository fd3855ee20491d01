"""`overlayfs doctor`: what of this machine do mounts need, is it there, what does its absence cost, and what helps?"""

from __future__ import annotations

from dataclasses import asdict

from overlayfs.cli.host.checks import Check, State, all_checks
from overlayfs.cli.output import Cell, Lines, print_json

_MARKS = {
    State.OK: Cell("ok      ", "green"),
    State.LIMITED: Cell("limited ", "yellow"),
    State.BAD: Cell("missing ", "red"),
}


def examine(as_json: bool) -> bool:
    """Show all checks; whether a mount works, which the last of them has tried."""
    checks = all_checks()
    works = checks[-1].state is State.OK
    if as_json:
        print_json({"mount_works": works, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    return works


def _print(checks: list[Check]) -> None:
    lines = Lines()
    width = max(len(check.name) for check in checks)
    for check in checks:
        lines.print(_MARKS[check.state], Cell(f"{check.name:{width}}  ", "bold"), Cell(check.found))
        for label, text in (("costs", check.cost), ("do", check.advice)):
            if text:
                lines.print(Cell(f"{'':8}{'':{width}}  {label}: {text}", "dim"))
