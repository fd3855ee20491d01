"""Which commands, arguments and options are there? Declarations only; the work is imported when a command is called."""

from __future__ import annotations

from importlib import import_module
from typing import Final

MODULES: Final = {
    "build": ("build",),
    "change": ("append", "commit", "squash"),
    "container": ("containers", "create", "ps", "reset", "rm", "run"),
    "host": ("doctor", "setup", "share"),
    "inspect": ("cat", "cp", "report", "tree", "waste"),
    "keeping": ("container", "healthcheck", "volume"),
    "lifecycle": (
        *("attach", "exec", "kill", "logs", "pause", "port", "rename", "restart", "start", "stop", "top", "unpause"),
        "wait",
    ),
    "mounts": (
        *("check", "diff", "fork", "layers", "mount", "mounts", "rollback", "snapshot", "snapshots", "stats", "umount"),
        "which",
    ),
    "registry": ("login", "logout", "pull", "push", "search-tags"),
    "store": ("export", "history", "images", "import", "inspect", "load", "prune", "rmi", "save", "tag", "verify"),
}
"""The module that declares a command, as importing all of them takes longer than most commands run."""


def declare(command: str | None) -> None:
    """Have the command declared; all of them if no module is known to have it, as for the help."""
    home = [module for module, names in MODULES.items() if command in names]
    for module in home or MODULES:
        import_module(f"{__name__}.{module}")
