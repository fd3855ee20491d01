"""The commands that look into images: tree, cat, cp, waste, report."""

from __future__ import annotations

from typing import Annotated

import typer

from overlayfs.cli.app import FINDINGS, AsJson, app, store_directory

ImageName = Annotated[str, typer.Argument(metavar="IMAGE", help="A name or an ID.")]


@app.command(short_help="Show the files of an image.")
def tree(
    image: ImageName,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="Show only this path.")] = "/",
    layer: Annotated[
        int | None, typer.Option("--layer", metavar="N", help="Show only the changes of layer N (1 is the bottom).")
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", "-d", metavar="N", min=0, help="Only N levels of directories.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the files of an image as a tree: mode, owner, size, and the layer of each file.

    Exit status: 0 shown, 1 no such image, layer or path.
    """
    from overlayfs.cli.inspect.tree import show_tree

    show_tree(image, path, layer, depth, as_json, store_directory())


@app.command(short_help="Write files of images to standard output.")
def cat(
    files: Annotated[list[str], typer.Argument(metavar="IMAGE:/PATH", help="Symlinks are followed in the image.")],
) -> None:
    """Write files of images to standard output, one after the other.

    Exit status: 0 written, 1 an error.
    """
    from overlayfs.cli.inspect.copying import show_files

    show_files(files, store_directory())


@app.command(short_help="Copy files out of an image, or out of or into a container.")
def cp(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="IMAGE:/PATH, CONTAINER:/PATH or a path here.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A path here, - for a tar, or CONTAINER:/PATH.")],
    archive: Annotated[
        bool, typer.Option("--archive", "-a", help="Keep owners, set-id bits, xattrs and devices.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow-link", "-L", help="Copy what a symlink leads to.")] = False,
) -> None:
    """Copy a file or directory out of an image or container, or into a container, with modes, times and links.

    With /. at the end the contents of a directory are copied. Nothing is written outside DEST, whatever the image or
    the container contains. A container need not run; while it does, its mounts are seen too.

    Exit status: 0 copied, 1 an error.
    """
    from overlayfs.cli.container.copying import copy, copy_of
    from overlayfs.cli.inspect.copying import copy_from_image

    wanted = copy_of(source, destination, store_directory(), archive=archive, follow=follow)
    if wanted is not None:
        copy(wanted)
        return
    copy_from_image(source, destination, follow=follow, archive=archive, store=store_directory())


@app.command(short_help="Find bytes that later layers hide.")
def waste(
    image: ImageName,
    most: Annotated[int, typer.Option("--number", "-n", metavar="N", min=0, help="List so many.")] = 20,
    least: Annotated[
        float,
        typer.Option("--min-efficiency", metavar="X", min=0, max=1, help="The exit status is 3 below this efficiency."),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """List the files and directories that later layers delete or replace, the largest first.

    The efficiency is the share of visible bytes. With --json the score of dive is shown too, which does not count
    deleted directories.

    Exit status: 0 shown, 1 an error, 3 the efficiency is below --min-efficiency.
    """
    from overlayfs.cli.inspect.waste import show_waste

    if show_waste(image, most, as_json, store_directory()) < least:
        raise typer.Exit(FINDINGS)


@app.command(short_help="Write an HTML page about an image.")
def report(
    image: ImageName,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The file to write; - is standard output.")
    ],
) -> None:
    """Write one HTML page about an image: its layers, its large and wasted files, and all its files.

    The page needs no network, and suits a phone too.

    Exit status: 0 written, 1 an error.
    """
    from overlayfs.cli.inspect.report import write_report

    write_report(image, output, store_directory())
