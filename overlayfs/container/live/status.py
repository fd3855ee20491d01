"""What does a container do now? In docker's word; `mounted` is our own."""

from __future__ import annotations

from pathlib import Path

from ..containers import Container
from .freezer import is_paused
from .signals import program_of


def status_of(container: Container, bundle: Path) -> str:
    """created, running, paused, mounted or exited."""
    if not container.is_active:
        return "exited" if container.started or container.exit_status is not None else "created"
    if container.mountpoint:
        return "mounted"
    program = program_of(container, bundle)
    return "paused" if program is not None and is_paused(program) else "running"


def exit_code_of(container: Container) -> int:
    """Docker's number: 0 while a container has not ended, 137 if it was killed with what knows its status."""
    if container.is_active:
        return 0
    return 137 if container.exit_status is None and container.started else container.exit_status or 0
