"""The groups of commands `overlayfs volume` and `overlayfs container`."""

from __future__ import annotations

from typing import Annotated

import typer

from overlayfs.cli.app import AsJson, InspectTemplate, app, store_directory

volume = typer.Typer(name="volume", help="Named volumes, which outlive containers.", no_args_is_help=True)
container = typer.Typer(name="container", help="All containers at once.", no_args_is_help=True)
healthcheck = typer.Typer(name="healthcheck", help="Checks of containers' health.", no_args_is_help=True)
app.add_typer(volume)
app.add_typer(healthcheck)
app.add_typer(container)

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Volumes.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Without asking, as always here.")]


@volume.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Its name; a random one by default.")] = "",
    labels: Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="A label.")] = None,
) -> None:
    """Make an empty volume; the first container that mounts it fills it from its image."""
    from overlayfs.cli.container.keeping import create_volume

    create_volume(store_directory(), name, labels or [])


@volume.command("ls")
def ls(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only names.")] = False, as_json: AsJson = False
) -> None:
    """List volumes and the containers that have them."""
    from overlayfs.cli.container.keeping import list_volumes

    list_volumes(store_directory(), quiet=quiet, as_json=as_json)


@volume.command("inspect")
def inspect(names: Names, template: InspectTemplate = "") -> None:
    """Show volumes as JSON, in the format of docker."""
    from overlayfs.cli.container.keeping import inspect_volumes

    inspect_volumes(store_directory(), names, template)


@volume.command("rm")
def rm(
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="It is no error that one is missing.")] = False,
) -> None:
    """Remove volumes with all that is in them, unless a container has them."""
    from overlayfs.cli.container.keeping import remove_volumes

    if not remove_volumes(store_directory(), names, force=force):
        raise typer.Exit(1)


@volume.command("prune")
def prune(force: Force = False) -> None:  # noqa: ARG001 - nothing asks
    """Remove the volumes that no container has, and print their names."""
    from overlayfs.cli.container.keeping import prune_volumes

    prune_volumes(store_directory())


@container.command("prune")
def prune_containers(
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="KEY=VALUE", help="Only some: label, label!, until, or as those of ps."),
    ] = None,
    force: Force = False,  # noqa: ARG001 - nothing asks
) -> None:
    """Remove the containers that are not in use, with their changes, and print their IDs."""
    from overlayfs.cli.container.keeping import prune_containers as remove_all

    remove_all(store_directory(), filters or [])


@healthcheck.command("run")
def run_healthcheck(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A container: its name, or the start of its ID.")],
) -> None:
    """Check the health of a running container now, by the command of --health-cmd or of its image.

    Containers that run detached are checked at intervals besides; `ps` and `inspect` show the last results.

    Exit status: 0 it passed, 1 it failed, which prints what the container is now; 125 it could not be checked.
    """
    from overlayfs.cli.container.checking import run_check
    from overlayfs.cli.container.run import in_dockers_terms

    raise typer.Exit(in_dockers_terms(lambda: run_check(store_directory(), name)))


@container.command("stats")
def stats(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="All that run by default.")] = None,
    as_json: AsJson = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Once, as always here.")] = False,  # noqa: ARG001
) -> None:
    """Show the processor time, memory and processes of running containers, once; it takes root, as cgroups count."""
    from overlayfs.cli.container.describing import show_usage

    show_usage(store_directory(), names or [], as_json=as_json)
