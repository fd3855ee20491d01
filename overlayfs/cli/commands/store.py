"""The commands that keep images: load, save, import, export, images, inspect, history, tag, rmi, prune, verify."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import typer

from overlayfs.cli.app import FINDINGS, AsJson, InspectTemplate, Template, app, store_directory

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Names = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="A name, or the start of an ID.")]
NoTrunc = Annotated[bool, typer.Option("--no-trunc", help="Do not shorten columns.")]
Output = Annotated[
    str | None, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE, not to standard output.")
]


class ArchiveFormat(StrEnum):
    """The formats of `save`."""

    OCI = "oci-archive"
    DOCKER = "docker-archive"
    DIRECTORY = "oci-dir"


class Compression(StrEnum):
    """The compression of a whole archive."""

    GZIP = "gzip"
    ZSTD = "zstd"


@app.command(short_help="Load images from an archive.")
def load(
    source: Annotated[
        str, typer.Option("--input", "-i", metavar="FILE|DIR", help="An archive or OCI layout; else standard input.")
    ] = "-",
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="For one image, instead of its name in the archive.")
    ] = None,
    no_unpack: Annotated[bool, typer.Option("--no-unpack", help="Unpack layers only when they are used.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Load images from an archive of docker, podman or skopeo (docker-archive, oci-archive), also compressed by gzip or
    zstd, or from an OCI layout directory.

    Exit status: 0 all are loaded, 1 an error; then no image of the archive was named.
    """
    from overlayfs.cli.store.archives import load_images

    load_images(source, name, unpack=not no_unpack, quiet=quiet, as_json=as_json)


@app.command(short_help="Save images to an archive.")
def save(
    names: Names,
    output: Output = None,
    kind: Annotated[
        ArchiveFormat, typer.Option("--format", help="oci-archive is read by docker and podman too; it keeps digests.")
    ] = ArchiveFormat.OCI,
    compression: Annotated[
        Compression | None, typer.Option("--compress", help="Compress the archive; layers mostly are already.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Save images to one archive; the same images give the same bytes.

    Exit status: 0 saved, 1 an error; then no file is left.
    """
    from overlayfs.cli.store.archives import save_images

    save_images(names, output, kind.value, compression.value if compression else None, quiet)


@app.command("import", short_help="Make an image of a root filesystem.")
def import_(
    source: Annotated[
        str, typer.Argument(metavar="FILE|DIR|-", help="A tar, which may be compressed, or a directory.")
    ],
    name: Annotated[str | None, typer.Argument(metavar="[NAME[:TAG]]", help="The name of the new image.")] = None,
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="A message for the image's history.")
    ] = "",
    change: Annotated[
        list[str] | None,
        typer.Option("--change", "-c", metavar="LINE", help='As in a Dockerfile: "ENV A=b", "CMD [...]"; repeat.'),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an image of one layer from a tar (`-`: standard input) or a directory. Prints its ID.

    Exit status: 0 the image is there, 1 an error.
    """
    from overlayfs.cli.store.commit import Request
    from overlayfs.cli.store.rootfs import import_image

    import_image(source, Request(name, message, "", tuple(change or ()), "gzip", as_json))


@app.command(short_help="Write all files of a container or image as a tar.")
def export(
    name: Annotated[
        str, typer.Argument(metavar="NAME|IMAGE", help="A container or an image; a container of that name precedes.")
    ],
    output: Output = None,
    compression: Annotated[Compression | None, typer.Option("--compress", help="Compress the tar.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write the root file system of a container, with its changes, or of an image as one tar.

    Exit status: 0 written, 1 an error; then no file is left.
    """
    from overlayfs.cli.store.rootfs import export_filesystem

    export_filesystem(name, output, compression.value if compression else None, quiet)


@app.command(short_help="List images.")
def images(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="List only this repository or name.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only IDs.")] = False,
    no_trunc: NoTrunc = False,
    digests: Annotated[bool, typer.Option("--digests", help="Show the digests of manifests.")] = False,
    engine: Annotated[
        str | None, typer.Option("--from", metavar="ENGINE", help="Those of podman, docker or containerd.")
    ] = None,
    template: Template = "",
    as_json: AsJson = False,
) -> None:
    """List the images of the store. SIZE is that of the unpacked layers; `packed` means that they are not unpacked."""
    if engine is not None:
        from overlayfs.cli.mounts.of_engines import show_images_of

        if name is not None or quiet or no_trunc or digests or template:
            raise typer.BadParameter("--from goes with --json alone")
        show_images_of(engine, as_json)
        return
    from overlayfs.cli.store.images import show_images

    show_images(name, quiet=quiet, whole=no_trunc, digests=digests, as_json=as_json, template=template)


@app.command(short_help="Show images or containers.")
def inspect(
    names: Names,
    kind: Annotated[
        Literal["container", "image"] | None,
        typer.Option("--type", help="What the names are those of; containers come first."),
    ] = None,
    template: InspectTemplate = "",
    as_json: AsJson = False,
) -> None:
    """Show an image: configuration, layers, sizes, digests; --json in the format of docker. Or containers, as JSON.

    A template may have {{.State.Status}}, {{json .Config}} and {{index .RepoTags 0}}, as with docker.

    Exit status: 0 shown, 1 there is no such image or container.
    """
    from overlayfs.cli.container.describing import inspect as show_containers
    from overlayfs.cli.container.describing import inspect_any, is_a_container_among
    from overlayfs.cli.store.inspect import show_image

    if kind == "container":
        show_containers(store_directory(), names, template)
    elif kind is None and is_a_container_among(store_directory(), names):
        inspect_any(store_directory(), names, template)
    else:
        show_image(names, as_json=as_json, template=template)


@app.command(short_help="Show how an image was made.")
def history(
    name: Annotated[str, typer.Argument(metavar="IMAGE")], no_trunc: NoTrunc = False, as_json: AsJson = False
) -> None:
    """Show the steps that made an image, newest first, each with the size of its layer."""
    from overlayfs.cli.store.inspect import show_history

    show_history(name, whole=no_trunc, as_json=as_json)


@app.command(short_help="Give an image another name.")
def tag(
    name: Annotated[str, typer.Argument(metavar="IMAGE")], new: Annotated[str, typer.Argument(metavar="NAME[:TAG]")]
) -> None:
    """Give an image another name; an image that had the name is kept without it."""
    from overlayfs.cli.store.keeping import add_name

    add_name(name, new)


@app.command(short_help="Remove images.")
def rmi(
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="Remove all names of an ID, and images in use.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove names, and images with their last name; layers that a container or mount needs stay until it ends.

    Exit status: 0 all are removed, 1 one does not exist or is in use.
    """
    from overlayfs.cli.store.keeping import remove_images

    if not remove_images(names, force, as_json):
        raise typer.Exit(1)


@app.command(short_help="Remove unused blobs, layers and images.")
def prune(
    named: Annotated[
        bool, typer.Option("--all", "-a", help="Remove named images too, unless a container uses them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask for confirmation.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only list what would be removed.")] = False,
    build: Annotated[
        bool, typer.Option("--build", help="Remove all cached steps of builds, and the caches of RUN --mount.")
    ] = False,
    share: Annotated[
        Literal["reflink", "hardlink"] | None,
        typer.Option("--share", help="Make equal files of the remaining layers share disk space."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove images without a name, blobs and layers that no image needs, and leftovers of interrupted work. Images in
    use by a mount or container stay. A step of a build stays cached as long as an image has its layers.

    --share hardlink is for file systems without reflinks: files with equal content and attributes become one, so a
    later change of one by hand changes all.

    Exit status: 0 done, 1 an error, or others work in the store.
    """
    from overlayfs.build.caches import remove_caches
    from overlayfs.cli.store.keeping import prune_store

    if share and dry_run:
        raise typer.BadParameter("--share and --dry-run exclude each other")
    prune_store(named, force, dry_run, share, remove_caches if build else None, as_json)


@app.command(short_help="Find damaged images and layers.")
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Verify only these images.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove damaged objects; load, pull or unpack them again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare all blobs with their digests and all unpacked layers with their indexes.

    Exit status: 0 nothing is damaged, or all damage is removed; 1 an error, 3 something is damaged.
    """
    from overlayfs.cli.store.keeping import show_damage

    if not show_damage(names or (), repair, as_json):
        raise typer.Exit(FINDINGS)
