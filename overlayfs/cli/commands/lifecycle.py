"""The commands for containers that were made: start, stop, kill, restart, wait, exec, logs and others."""

from __future__ import annotations

from typing import Annotated

import typer

from overlayfs.cli.app import app, store_directory

Name = Annotated[str, typer.Argument(metavar="NAME", help="A container: its name, or the start of its ID.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Containers: names, or the start of IDs.")]
Patience = Annotated[
    int | None,
    typer.Option("--time", "-t", metavar="SECONDS", help="Kill it after so long; 10 by default, -1 never."),
]
_FOR_PROGRAMS = {"allow_interspersed_args": False, "ignore_unknown_options": False}


def _end(done: bool) -> None:
    if not done:
        raise typer.Exit(1)


@app.command(short_help="Start containers again.")
def start(
    names: Names,
    attach: Annotated[bool, typer.Option("--attach", "-a", help="Show the output until the program ends.")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Attach our input too.")] = False,
) -> None:
    """Start containers that were made or have ended, detached, with the options that they were made with.

    Exit status: 0 all run, 1 one does not; with --attach that of the program.
    """
    from overlayfs.cli.container.lifecycle import start as start_all

    raise typer.Exit(start_all(store_directory(), names, attach=attach, interactive=interactive))


@app.command(short_help="End the programs of containers.")
def stop(names: Names, timeout_s: Patience = None) -> None:
    """Send the programs their stop signal, all at once, and SIGKILL to those that do not end in time.

    Exit status: 0 all have ended, 1 one is not there or cannot be ended.
    """
    from overlayfs.cli.container.lifecycle import stop as stop_all

    _end(stop_all(store_directory(), names, timeout_s))


@app.command(short_help="Send a signal to containers.")
def kill(
    names: Names,
    signal: Annotated[str, typer.Option("--signal", "-s", metavar="SIGNAL", help="A name or a number.")] = "KILL",
) -> None:
    """Send a signal to the programs of containers."""
    from overlayfs.cli.container.lifecycle import kill as kill_all

    _end(kill_all(store_directory(), names, signal))


@app.command(short_help="Stop and start containers.")
def restart(names: Names, timeout_s: Patience = None) -> None:
    """Stop containers, if they run, and start them again."""
    from overlayfs.cli.container.lifecycle import restart as restart_all

    _end(restart_all(store_directory(), names, timeout_s))


@app.command(short_help="Wait until containers have ended.")
def wait(names: Names) -> None:
    """Wait until the programs of containers have ended, and print their exit statuses."""
    from overlayfs.cli.container.lifecycle import wait as wait_for_all

    _end(wait_for_all(store_directory(), names))


@app.command(short_help="Freeze containers.")
def pause(names: Names) -> None:
    """Freeze all processes of containers; it takes root, as cgroups do it."""
    from overlayfs.cli.container.lifecycle import pause as freeze

    _end(freeze(store_directory(), names, is_paused=True))


@app.command(short_help="Let frozen containers go on.")
def unpause(names: Names) -> None:
    """Let the processes of containers go on that `pause` froze."""
    from overlayfs.cli.container.lifecycle import pause as freeze

    _end(freeze(store_directory(), names, is_paused=False))


@app.command(name="exec", short_help="Run one more program in a container.", context_settings=_FOR_PROGRAMS)
def execute(
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="CMD...", help="The program and its arguments.")],
    environment: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="Set a variable.")
    ] = None,
    working_directory: Annotated[
        str, typer.Option("--workdir", "-w", metavar="DIR", help="The working directory.")
    ] = "",
    user: Annotated[str, typer.Option("--user", "-u", metavar="USER[:GROUP]", help="The user to run as.")] = "",
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for it.")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="It reads our input.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="It has a terminal.")] = False,
) -> None:
    """Run one more program in a running container, with its user, variables and limits unless others are given.

    Exit status: that of the program; 125 it could not be run, 126 it is not executable, 127 it is not there.
    """
    from overlayfs.cli.container.executing import ExecRequest
    from overlayfs.cli.container.executing import execute as become
    from overlayfs.cli.container.run import in_dockers_terms

    request = ExecRequest(
        name, tuple(command), tuple(environment or ()), working_directory, user, tty, interactive, detach
    )
    raise typer.Exit(in_dockers_terms(lambda: become(store_directory(), request)))


@app.command(short_help="Attach to a container.")
def attach(
    name: Name,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Do not pass our input on.")] = False,
) -> None:
    """Show the output of a detached container until it ends, and pass our input on if it was made with -i.

    Ctrl-P Ctrl-Q leaves a container that has a terminal, which runs on.

    Exit status: that of the program; 0 if it was left.
    """
    from overlayfs.cli.container.attaching import attach as follow

    raise typer.Exit(follow(store_directory(), name, without_input=no_stdin))


@app.command(short_help="Show what a container has written.")
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    tail: Annotated[str, typer.Option("--tail", "-n", metavar="N", help="The last so many lines.")] = "all",
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="From a time on, or for 10m, 1h30m.")] = "",
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="With the time of each line.")] = False,
) -> None:
    """Show what the program of a container has written: standard output and error on ours."""
    from overlayfs.cli.container.attaching import LogRequest, show_logs

    if tail != "all" and not (tail.isascii() and tail.isdigit()):
        raise typer.BadParameter(f"--tail takes a number or all, not {tail}")
    show_logs(store_directory(), LogRequest(name, follow, -1 if tail == "all" else int(tail), since, timestamps))


@app.command(short_help="Show the processes of a container.", context_settings=_FOR_PROGRAMS)
def top(
    name: Name,
    options: Annotated[list[str] | None, typer.Argument(metavar="[PS-OPTION]...", help="Options of ps(1).")] = None,
) -> None:
    """Show what ps(1) says about the processes of a container."""
    from overlayfs.cli.container.describing import show_processes

    show_processes(store_directory(), name, options or [])


@app.command(short_help="Show the published ports of a container.")
def port(
    name: Name,
    wanted: Annotated[str, typer.Argument(metavar="[PORT[/udp]]", help="Only where this one is.")] = "",
) -> None:
    """Show where the ports of a running container are published."""
    from overlayfs.cli.container.describing import show_ports

    show_ports(store_directory(), name, wanted)


@app.command(short_help="Give a container another name.")
def rename(name: Name, new: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")]) -> None:
    """Give a container another name; it must not be running."""
    from overlayfs.cli.container.containers import rename as give

    give(store_directory(), name, new)
