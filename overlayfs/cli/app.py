"""What do all commands share? The typer application, common options, exit statuses, and the groups of the help.

The modules in `commands` register the commands; the work of a command is in a module of another room, which is imported
when the command is called.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.models import CommandInfo, TyperInfo

from overlayfs._version import __version__
from overlayfs.cli.commands import declare

OK, ERROR, USAGE, FINDINGS = 0, 1, 2, 3
"""The exit statuses."""

HELP: Final = "Mount stacks of layers and images, see what is in them, keep what changed."
EPILOG: Final = "Exit status: 0 success, 1 error, 2 usage; COMMAND --help says more."

GROUPS: Final = {
    "Mounts": ("mount", "umount", "mounts", "stats", "which", "check", "doctor", "setup", "share"),
    "Snapshots": ("snapshot", "snapshots", "rollback"),
    "In and out": ("load", "save", "import", "export", "pull", "push", "login", "logout"),
    "Looking": (
        *("images", "inspect", "history", "layers", "tree", "diff", "cat", "cp", "waste", "report"),
        "search-tags",
    ),
    "Containers": (
        *("run", "create", "start", "stop", "kill", "restart", "wait", "exec", "attach", "logs", "ps", "containers"),
        *("top", "port", "pause", "unpause", "rename", "rm", "reset", "volume", "container", "healthcheck"),
    ),
    "Making": ("build", "commit", "append", "squash", "tag", "rmi", "prune", "verify"),
}


class GroupedCommands(TyperGroup):
    """Lists the commands in groups, so that the help fits a screen.

    The arguments are click's, which typer brings under a private name since 0.27.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        ordered = [name for names in GROUPS.values() for name in names]
        return [*(name for name in ordered if name in self.commands), *sorted(self.commands.keys() - set(ordered))]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(title, ", ".join(name for name in names if name in self.commands)) for title, names in GROUPS.items()]
        with formatter.section("Commands"):
            formatter.write_dl([row for row in rows if row[1]])


app = typer.Typer(
    name="overlayfs",
    help=HELP,
    epilog=EPILOG,
    cls=GroupedCommands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def program_for(arguments: list[str]) -> Callable[..., Any]:
    """The program with only the command that the arguments call, as building all of them takes longer than most run.

    It has all commands if the arguments call none, as for the help, a completion or an unknown command.
    """
    called = _called_command(arguments)
    declare(called)
    program = copy(app)
    program.registered_commands = [
        info for info in app.registered_commands if _name_of(info) == called
    ] or app.registered_commands
    program.registered_groups = [info for info in app.registered_groups if _group_name(info) == called]
    if program.registered_groups:
        program.registered_commands = []
    elif program.registered_commands is app.registered_commands:
        program.registered_groups = app.registered_groups
    return typer.main.get_command(program)


def with_help(arguments: list[str]) -> list[str]:
    """The arguments, and `--help` where they end before a command: with the program, or with a group of commands."""
    called = _called_command(arguments)
    declare(called)
    groups = {_group_name(info) for info in app.registered_groups}
    return [*arguments, "--help"] if not arguments or (arguments[-1] == called and called in groups) else arguments


def _called_command(arguments: list[str]) -> str | None:
    rest = iter(arguments)
    for word in rest:
        if word == "--store":
            next(rest, None)
        elif not word.startswith("--store="):
            return word
    return None


def _group_name(info: TyperInfo) -> str | None:
    return info.typer_instance.info.name if info.typer_instance else None


def _name_of(info: CommandInfo) -> str | None:
    return info.name or getattr(info.callback, "__name__", "").replace("_", "-")


AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]
_TEMPLATE_HELP: Final = "json, or a text with fields such as {{.ID}}."
Template = Annotated[str, typer.Option("--format", metavar="TEMPLATE", help=_TEMPLATE_HELP)]
InspectTemplate = Annotated[str, typer.Option("--format", "-f", metavar="TEMPLATE", help=_TEMPLATE_HELP)]
"""Where `-f` is no filter."""
UserXattr = Annotated[bool, typer.Option("--userxattr", help="The UPPER has user.overlay.* marks; see below.")]


class _Chosen:
    """The options before the command."""

    store: Path | None = None


_chosen = _Chosen()


def _show_version(asked: bool) -> None:
    if asked:
        print(f"overlayfs {__version__}")
        raise typer.Exit


@app.callback()
def overlayfs(
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", metavar="DIR", envvar="OVERLAYFS_STORE", show_envvar=False, help="Keeps images and containers."
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback does all
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    _chosen.store = store


def store_directory() -> Path | None:
    """The directory of `--store`; None means the user's own store."""
    return _chosen.store
