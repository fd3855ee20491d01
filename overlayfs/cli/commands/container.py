"""The commands for containers: run, ps, containers, rm, reset."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from overlayfs.cli.app import AsJson, app, store_directory

Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Containers: names, or the start of IDs.")]


@app.command(
    short_help="Run a program in an image.",
    context_settings={
        "allow_interspersed_args": False,
        "ignore_unknown_options": False,
        "help_option_names": ["--help"],  # -h is the host name, as docker's
    },
)
def run(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A name or ID.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[CMD]...", help="The command to run; the image's own by default.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The name of the container; an existing one is used again."),
    ] = None,
    remove: Annotated[bool, typer.Option("--rm", help="Remove the container at the end.")] = False,
    environment: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="Set a variable, or pass yours on.")
    ] = None,
    volumes: Annotated[
        list[str] | None,
        typer.Option("--volume", "-v", metavar="SOURCE:TARGET[:ro]", help="Show a file or directory in it."),
    ] = None,
    working_directory: Annotated[
        str, typer.Option("--workdir", "-w", metavar="DIR", help="The working directory.")
    ] = "",
    user: Annotated[
        str,
        typer.Option(
            "--user", "-u", metavar="USER[:GROUP]", help="The user to run as: a name of the image, or a number."
        ),
    ] = "",
    hostname: Annotated[
        str, typer.Option("--hostname", "-h", metavar="NAME", help="The host name; the container's name by default.")
    ] = "",
    entrypoint: Annotated[
        str | None, typer.Option("--entrypoint", metavar="PROGRAM", help="Replaces the image's; empty for none.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Only volumes are writable.")] = False,
    network: Annotated[
        Literal["host", "none"], typer.Option("--network", help="The network of the container.")
    ] = "host",
    runtime: Annotated[
        Literal["bwrap", "runc"] | None,
        typer.Option("--runtime", help="The runtime; by default the first that is installed."),
    ] = None,
    interactive: Annotated[  # noqa: ARG001 - it always has our standard input
        bool, typer.Option("--interactive", "-i", hidden=True)
    ] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", hidden=True)] = False,  # noqa: ARG001 - and our terminal
) -> None:
    """Run a program in a container: a writable layer on IMAGE that is kept, unless --rm is given.

    The program has this terminal and gets the signals sent to `overlayfs run`. An ordinary user is root in it.

    Exit status: that of the program; 125 it could not be run, 126 it is not executable, 127 it is not in the image.
    """
    from overlayfs.cli.container.run import RunRequest
    from overlayfs.cli.container.run import run as start
    from overlayfs.container.process import Overrides
    from overlayfs.container.runtime import Kind, Network

    overrides = Overrides(tuple(command or ()), entrypoint, tuple(environment or ()), working_directory, user)
    request = RunRequest(
        image,
        overrides,
        name,
        remove,
        tuple(volumes or ()),
        read_only,
        Network(network),
        None if runtime is None else Kind(runtime),
        hostname,
    )
    raise typer.Exit(start(request, store_directory()))


@app.command(short_help="List the containers in use.")
def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="All containers.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only names.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the containers that are running or mounted."""
    from overlayfs.cli.container.containers import show_containers

    show_containers(store_directory(), everything=everything, quiet=quiet, as_json=as_json)


@app.command(short_help="List all containers.")
def containers(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only names.")] = False, as_json: AsJson = False
) -> None:
    """List all containers, unused ones included."""
    from overlayfs.cli.container.containers import show_containers

    show_containers(store_directory(), everything=True, quiet=quiet, as_json=as_json)


@app.command(short_help="Remove containers.")
def rm(
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="End their programs and unmount them.")] = False,
) -> None:
    """Remove containers with all their changes; their images stay.

    Exit status: 0 all are gone, 1 one could not be removed.
    """
    from overlayfs.cli.container.containers import remove

    if not remove(store_directory(), names, force):
        raise typer.Exit(1)


@app.command(short_help="Discard the changes of containers.")
def reset(names: Names) -> None:
    """Discard all changes of containers, at once; the files are deleted in the background.

    Exit status: 0 done, 1 one is in use or not there.
    """
    from overlayfs.cli.container.containers import reset as start_anew

    if not start_anew(store_directory(), names):
        raise typer.Exit(1)
