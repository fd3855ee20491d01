"""The commands that make images from other images: commit, squash, append."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from overlayfs.cli.app import AsJson, UserXattr, app, store_directory

Image = Annotated[str, typer.Argument(metavar="IMAGE", help="A name or ID.")]
NewName = Annotated[
    str | None, typer.Argument(metavar="[NEW]", help="The name of the new image; that of IMAGE by default.")
]
Message = Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="A message for the image's history.")]
Author = Annotated[str, typer.Option("--author", "-a", metavar="WHO", help='As "A B <a.b@example.org>".')]
Changes = Annotated[
    list[str] | None,
    typer.Option("--change", "-c", metavar="LINE", help='As in a Dockerfile: "ENV A=b", "CMD [...]"; repeat.'),
]
Compression = Annotated[
    str, typer.Option("--compression", metavar="KIND", help="The compression of the layer: gzip, zstd or none.")
]


@app.command(short_help="Save changes as a layer of a new image.")
def commit(
    source: Annotated[
        str, typer.Argument(metavar="NAME|MNT[@SNAPSHOT]|UPPER", help="A container, a mount, or an upper directory.")
    ],
    name: Annotated[str | None, typer.Argument(metavar="[IMAGE:TAG]", help="The name of the new image.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", "-b", metavar="IMAGE", help="The image below the upper, if it is not known.")
    ] = None,
    message: Message = "",
    author: Author = "",
    change: Changes = None,
    compression: Compression = "gzip",
    user_xattr: UserXattr = False,
    as_json: AsJson = False,
) -> None:
    """Save the changes of a container, mount or upper as a new image with one more layer.

    An upper is read as if you had mounted it: as root, give --userxattr for one of an ordinary user or one mounted
    with `-o userxattr`.

    With @SNAPSHOT the image has the state that the mount or container was in at that snapshot.

    Unchanged files are left out. With SOURCE_DATE_EPOCH in the environment (seconds) no time is later than that, and
    the same changes give the same image. Prints the ID of the new image.

    Exit status: 0 the image is there, 1 an error.
    """
    from overlayfs.cli.store.commit import Request, commit_changes

    request = Request(name, message, author, tuple(change or ()), compression, as_json)
    commit_changes(store_directory(), source, base, request, user_xattr=user_xattr)


@app.command(short_help="Merge all layers of an image into one.")
def squash(
    image: Image,
    new: NewName = None,
    message: Message = "",
    author: Author = "",
    change: Changes = None,
    compression: Compression = "gzip",
    as_json: AsJson = False,
) -> None:
    """Make an image with a single layer, without the files that upper layers hide.

    Exit status: 0 the image is there, 1 an error.
    """
    from overlayfs.cli.store.commit import Request, squash_image

    request = Request(new, message, author, tuple(change or ()), compression, as_json)
    squash_image(store_directory(), image, request)


@app.command(short_help="Add a directory to an image as a layer.")
def append(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A name or ID; `scratch` for an empty image.")],
    source: Annotated[Path, typer.Argument(metavar="DIR|TAR", help="Its contents become a layer.", exists=True)],
    new: NewName = None,
    chown: Annotated[
        str | None, typer.Option("--chown", metavar="UID:GID", help="The owner of all files of DIR.")
    ] = None,
    message: Message = "",
    author: Author = "",
    change: Changes = None,
    compression: Compression = "gzip",
    as_json: AsJson = False,
) -> None:
    """Make an image with one more layer: the contents of a directory, or an unchanged tar.

    Exit status: 0 the image is there, 1 an error.
    """
    from overlayfs.cli.store.commit import Request, append_to

    request = Request(new, message, author, tuple(change or ()), compression, as_json)
    append_to(store_directory(), image, source, chown, request)
