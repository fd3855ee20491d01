"""A question to the user at the terminal."""

from __future__ import annotations

import sys

from overlayfs.cli.mounts.live import CommandError


def confirm(question: str, *, unattended: str, refused: str) -> None:
    """Return if the user says yes. CommandError otherwise: `unattended` is said if there is no terminal."""
    if not sys.stdin.isatty():
        raise CommandError(unattended)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError(refused)
