"""The commands that make and list containers: run, create, ps, containers, rm, reset.

As in `container_options`, annotations are not postponed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from overlayfs.cli.app import AsJson, Template, app, store_directory
from overlayfs.cli.commands.container_options import taking_settings

if TYPE_CHECKING:
    from overlayfs.container.spec.settings import Settings
else:  # typer evaluates the annotations; msgspec is for the commands that need it
    Settings = Any

Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Containers: names, or the start of IDs.")]


Image = Annotated[str, typer.Argument(metavar="IMAGE", help="A name or ID.")]
Command = Annotated[
    list[str] | None, typer.Argument(metavar="[CMD]...", help="The command to run; the image's own by default.")
]
NewName = Annotated[str | None, typer.Option("--name", metavar="NAME", help="The name of the container.")]
Remove = Annotated[bool, typer.Option("--rm", help="Remove the container at the end.")]
Pull = Annotated[
    Literal["missing", "always", "never"], typer.Option("--pull", help="When to fetch the image from its registry.")
]
_AS_DOCKER = {
    "allow_interspersed_args": False,
    "ignore_unknown_options": False,
    "help_option_names": ["--help"],  # -h is the host name, as docker's
}


@app.command(short_help="Run a program in an image.", context_settings=_AS_DOCKER)
@taking_settings
def run(
    settings: Callable[[], Settings],
    image: Image,
    command: Command = None,
    name: NewName = None,
    remove: Remove = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return at once, and print the ID.")] = False,
    pull: Pull = "missing",
) -> None:
    """Run a program in a container: a writable layer on IMAGE that is kept, unless --rm is given.

    The program has this terminal and gets the signals sent to `overlayfs run`. An ordinary user is root in it. With the
    name of a container that does not run, the program runs in that one.

    Exit status: that of the program; 125 it could not be run, 126 it is not executable, 127 it is not in the image.
    """
    from msgspec.structs import replace

    from overlayfs.cli.container.run import RunRequest, in_dockers_terms
    from overlayfs.cli.container.run import run as start

    def work() -> int:
        kept = replace(settings(), command=command or [])
        return start(RunRequest(image, kept, name, remove, detach, pull), store_directory())

    raise typer.Exit(in_dockers_terms(work))


@app.command(short_help="Make a container without starting it.", context_settings=_AS_DOCKER)
@taking_settings
def create(
    settings: Callable[[], Settings],
    image: Image,
    command: Command = None,
    name: NewName = None,
    remove: Remove = False,
    pull: Pull = "missing",
) -> None:
    """Make a container that `start` starts, and print its ID. The options are those of `run`.

    Exit status: 0 it is made, 125 it is not.
    """
    from msgspec.structs import replace

    from overlayfs.cli.container.run import RunRequest, in_dockers_terms
    from overlayfs.cli.container.run import create as make

    def work() -> int:
        kept = replace(settings(), command=command or [])
        return make(RunRequest(image, kept, name, remove, pull=pull), store_directory())

    raise typer.Exit(in_dockers_terms(work))


@app.command(short_help="List the containers in use.")
def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="All containers.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only names.")] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            "-f",
            metavar="KEY=VALUE",
            help="By ancestor, before, exited, health, id, label, name, network, since, status, until, volume.",
        ),
    ] = None,
    template: Template = "",
    as_json: AsJson = False,
) -> None:
    """List the containers that are running or mounted; with a filter of the status, all that have it."""
    from overlayfs.cli.container.containers import show_containers

    show_containers(
        store_directory(), everything=everything, quiet=quiet, as_json=as_json, filters=filters or [], template=template
    )


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
    volumes: Annotated[bool, typer.Option("--volumes", "-v", help="Their anonymous volumes too.")] = False,
) -> None:
    """Remove containers with all their changes; their images and named volumes stay.

    Exit status: 0 all are gone, 1 one could not be removed.
    """
    from overlayfs.cli.container.containers import remove

    if not remove(store_directory(), names, force=force, with_volumes=volumes):
        raise typer.Exit(1)


@app.command(short_help="Discard the changes of containers and mounts.")
def reset(names: Names) -> None:
    """Discard all changes of containers, at once; the files are deleted in the background.

    A container may be running: its program goes on, and its volumes and other mounts stay. NAME may be a mountpoint,
    too: a mount, also one of a container, stays mounted, and drops its snapshots. Who has a file open there sees it as
    it was without changes; a new one behaves as a deleted one.

    Exit status: 0 done, 1 one is not there, or has something mounted in a directory that was moved, and that one has
    not changed.
    """
    from overlayfs.cli.container.containers import reset as start_anew

    if not start_anew(store_directory(), names):
        raise typer.Exit(1)
