"""`overlayfs check`: traces of a crash or of tampering in an upper, printed as text or JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.output import Cell, Lines, plain, print_json, printable
from overlayfs.overlay.check import check
from overlayfs.overlay.findings import Finding, Severity
from overlayfs.tree import marks

_BY_HAND = "left to you: no repair can know what is right"
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


def show_findings(upper: str, work: str, repair: bool, as_json: bool, *, user_xattr: bool = False) -> bool:
    """Check, and repair if asked to; False if something is left to repair."""
    directories = [os.fsencode(path) for path in (upper, work)]
    for path in directories:
        if not os.path.isdir(path):
            raise CommandError(f"{printable(path)}: not a directory")
    findings = check(directories[0], directories[1], repair, marks.USER if user_xattr else None)
    if as_json:
        print_json([_document(finding, directories) for finding in findings])
    else:
        _show(findings, directories)
    return all(finding.repaired for finding in findings)


def _place(finding: Finding, directories: Sequence[bytes]) -> bytes:
    return os.path.join(directories[finding.in_workdir], finding.path)


def _show(findings: Sequence[Finding], directories: Sequence[bytes]) -> None:
    lines = Lines()
    for finding in findings:
        problem = finding.problem
        word = "mended" if finding.repaired else problem.severity.value
        style = "green" if finding.repaired else _STYLES[problem.severity]
        detail = f" ({printable(os.fsencode(finding.detail))})" if finding.detail else ""
        place = printable(_place(finding, directories))
        lines.print(Cell(f"{word:7} ", style), Cell(place, "bold"), Cell(f": {problem.meaning}{detail}"))
        if not finding.repaired:
            remedy = f"--repair would {problem.remedy}" if problem.remedy else _BY_HAND
            lines.print(Cell(" " * 8 + remedy, "dim"))
    lines.print(*_sum(findings))


def _sum(findings: Sequence[Finding]) -> list[Cell]:
    if not findings:
        return [Cell("nothing to mend", "green")]
    mended = sum(finding.repaired for finding in findings)
    left = len(findings) - mended
    return [Cell(f"{mended} mended, {left} left", "yellow" if left else "green")]


def _document(finding: Finding, directories: Sequence[bytes]) -> dict[str, Any]:
    return {
        "problem": finding.problem.value,
        "severity": finding.problem.severity.value,
        "place": "work" if finding.in_workdir else "upper",
        "path": plain(finding.path),
        "file": plain(_place(finding, directories)),
        "meaning": finding.problem.meaning,
        "detail": finding.detail,
        "remedy": finding.problem.remedy or None,
        "repaired": finding.repaired,
    }
