"""The commands that talk to registries: pull, push, login, logout, search-tags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from overlayfs.cli.app import AsJson, app, store_directory

Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca", metavar="FILE", help="Trust this certificate authority too (PEM).", exists=True, dir_okay=False
    ),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Loopback only: plain HTTP, or an unverified certificate.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result; no progress.")]
RegistryName = Annotated[str, typer.Argument(metavar="[REGISTRY]", help="Host and port; docker.io by default.")]


@app.command(short_help="Fetch an image from a registry.")
def pull(
    name: Annotated[str, typer.Argument(metavar="IMAGE", help="Names as in docker: [HOST[:PORT]/]NAME[:TAG].")],
    platform: Annotated[
        str | None, typer.Option("--platform", metavar="OS/ARCH", help="linux/arm64/v8; this machine's by default.")
    ] = None,
    all_platforms: Annotated[
        bool, typer.Option("--all-platforms", help="The whole index, with the images of all platforms.")
    ] = False,
    no_unpack: Annotated[bool, typer.Option("--no-unpack", help="Unpack layers only when they are used.")] = False,
    ca: Ca = None,
    insecure: Insecure = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fetch an image into the store, from a mirror of registries.toml or from the registry itself.

    Blobs that the store has are not fetched again, and interrupted downloads are resumed.

    Exit status: 0 the image is in the store, 1 it could not be fetched.
    """
    from overlayfs.cli.store.transfer import Wanted, access, fetch

    if platform and all_platforms:
        raise typer.BadParameter("--platform and --all-platforms exclude each other")
    wanted = Wanted(name, platform, all_platforms, not no_unpack)
    fetch(store_directory(), wanted, access(ca, insecure), quiet=quiet, as_json=as_json)


@app.command(short_help="Send an image to a registry.")
def push(
    name: Annotated[str, typer.Argument(metavar="IMAGE", help="Images of the store, by name or ID.")],
    destination: Annotated[
        str | None, typer.Argument(metavar="[DESTINATION]", help="The name in the registry; its own by default.")
    ] = None,
    ca: Ca = None,
    insecure: Insecure = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Send an image of the store to the registry that its name, or DESTINATION, begins with.

    Blobs that the repository has are not sent; those in another repository there are mounted from it.

    Exit status: 0 the registry has the image, 1 it could not be sent.
    """
    from overlayfs.cli.store.transfer import access, send

    send(store_directory(), name, destination, access(ca, insecure), quiet=quiet, as_json=as_json)


@app.command(short_help="Keep a user name and password.")
def login(
    registry: RegistryName = "docker.io",
    username: Annotated[
        str | None, typer.Option("--username", "-u", metavar="NAME", help="Asked for if not given.")
    ] = None,
    from_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    ca: Ca = None,
    insecure: Insecure = False,
) -> None:
    """Check a user name and password with a registry, and keep them for later.

    Docker, podman and skopeo find them too: they are kept by a credential helper if docker's config.json names one,
    otherwise in $REGISTRY_AUTH_FILE or ~/.docker/config.json.

    Exit status: 0 the registry accepts them, 1 it does not.
    """
    from overlayfs.cli.store.transfer import access, log_in

    log_in(registry, username, access(ca, insecure), from_stdin=from_stdin)


@app.command(short_help="Forget a user name and password.")
def logout(
    registry: RegistryName = "docker.io",
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Forget those of all registries.")] = False,
) -> None:
    """Remove the credentials of a registry, wherever they are kept.

    Exit status: 0 no credentials are left, 1 an error.
    """
    from overlayfs.cli.store.transfer import log_out

    log_out(None if everywhere else registry)


@app.command(short_help="List the tags of a repository.")
def search_tags(
    name: Annotated[str, typer.Argument(metavar="REPOSITORY", help="The name of an image, without a tag.")],
    matching: Annotated[
        str | None, typer.Option("--filter", "-f", metavar="GLOB", help="Only tags like this: '1.*'.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Show at most so many.")] = None,
    ca: Ca = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """List the tags of a repository, in the order of the registry.

    Exit status: 0 listed, 1 the repository is not there, or an error.
    """
    from overlayfs.cli.store.transfer import access, show_tags

    show_tags(name, matching, limit, access(ca, insecure), as_json)
