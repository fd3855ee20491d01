"""What does a container do now? In docker's word; `mounted` is our own."""

from __future__ import annotations

from pathlib import Path

from ..containers import Container
from .freezer import is_paused
from .signals import program_of


def status_of(container: Container, bundle: Path) -> str:
    """created, running, paused, mounted or exited."""
    if not container.is_in_use or container.is_visited:
        return "exited" if container.started or container.exit_status is not None else "created"
    if container.mountpoint:
        return "mounted"
    program = program_of(container, bundle)
    return "paused" if program is not None and is_paused(program) else "running"
