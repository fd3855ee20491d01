"""The command that makes images from a Dockerfile: build."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from overlayfs.cli.app import app, store_directory

Texts = list[str] | None


@app.command(short_help="Build an image from a Dockerfile.")
def build(
    context: Annotated[
        str, typer.Argument(metavar="CONTEXT", help="A directory, a tar, a git repository, or - for standard input.")
    ],
    tags: Annotated[Texts, typer.Option("--tag", "-t", metavar="NAME", help="A name of the image; repeat.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="FILE", help="The Dockerfile; - for standard input.")
    ] = None,
    arguments: Annotated[
        Texts, typer.Option("--build-arg", metavar="NAME[=VALUE]", help="Set an ARG, or pass your variable on.")
    ] = None,
    target: Annotated[str, typer.Option("--target", metavar="STAGE", help="Stop at this stage.")] = "",
    platform: Annotated[str | None, typer.Option("--platform", metavar="OS/ARCH", help="Of the images to use.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step anew.")] = False,
    pull: Annotated[bool, typer.Option("--pull", help="Pull base images, even if they are there.")] = False,
    labels: Annotated[Texts, typer.Option("--label", metavar="NAME=VALUE", help="A label of the image.")] = None,
    secrets: Annotated[
        Texts, typer.Option("--secret", metavar="id=ID,src=FILE", help="A file (or env=NAME) for RUN --mount.")
    ] = None,
    ssh: Annotated[Texts, typer.Option("--ssh", metavar="default|ID[=SOCKET]", help="Agents for RUN --mount.")] = None,
    squash: Annotated[bool, typer.Option("--squash", help="Make an image of one layer.")] = False,
    pids_limit: Annotated[
        int | None, typer.Option("--pids-limit", metavar="COUNT", min=1, help="Processes of a RUN at once.")
    ] = None,
    network: Annotated[
        Literal["default", "host", "none"], typer.Option("--network", help="Of RUN without a --network of its own.")
    ] = "default",
    hosts: Annotated[
        Texts, typer.Option("--add-host", metavar="NAME:IP", help="A line of /etc/hosts of each RUN.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the container of a RUN that fails.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR|TAR", help="Write the tree there too, as export does.")
    ] = None,
    iidfile: Annotated[
        str | None, typer.Option("--iidfile", metavar="FILE", help="Write the image's ID there.")
    ] = None,
    progress: Annotated[
        Literal["auto", "plain", "tty", "quiet"], typer.Option("--progress", help="What to show of the steps.")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="As --progress quiet.")] = False,
    compression: Annotated[
        str, typer.Option("--compression", metavar="KIND", help="The compression of layers: gzip, zstd or none.")
    ] = "gzip",
) -> None:
    """Build an image from the Containerfile or Dockerfile of CONTEXT, and print its ID.

    Unchanged steps come from a cache, in which times of files do not count; `prune` empties it. With SOURCE_DATE_EPOCH
    in the environment (seconds) no time is later than that, and the same input gives the same image.

    Exit status: 0 the image is there, 1 an error.
    """
    from overlayfs.cli.container.build import Words, build_image

    words = Words(
        context,
        file,
        tuple(tags or ()),
        tuple(arguments or ()),
        tuple(labels or ()),
        tuple(secrets or ()),
        tuple(ssh or ()),
        target,
        platform,
        iidfile,
        output,
        compression,
        uses_cache=not no_cache,
        pulls=pull,
        squashes=squash,
        process_limit=pids_limit,
        network=network,
        hosts=tuple(hosts or ()),
        keeps_failed=keep,
        progress="quiet" if quiet else progress,
    )
    build_image(store_directory(), words)
