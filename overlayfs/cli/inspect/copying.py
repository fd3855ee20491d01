"""`overlayfs cat` and `overlayfs cp`: write files of an image to standard output or copy them into a directory."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from overlayfs.cli.inspect.looking import look_at, open_image, split_image_path
from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.output import Cell, Lines, format_size, is_terminal, printable
from overlayfs.cli.progress import shown_progress
from overlayfs.image.inspect.browse import Node, resolve
from overlayfs.image.inspect.copy_out import Copied, copy_out
from overlayfs.image.inspect.layer_files import Content
from overlayfs.image.inspect.tar_out import write_tar
from overlayfs.image.store.store import Store


def show_files(names: Sequence[str], store: Path | None) -> None:
    """Write files, each named IMAGE:/PATH, to standard output one after the other."""
    sys.stdout.flush()
    with Store.open(store) as opened:
        for name in names:
            image, path = split_image_path(name)
            looked = look_at(image, opened)
            with looked.content() as content, os.fdopen(content.open(resolve(looked.tree, path)), "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)


def copy_from_image(name: str, destination: str, *, follow: bool, archive: bool, store: Path | None) -> None:
    """Copy IMAGE:/PATH as docker's `cp` does: into an existing directory, or else to exactly `destination`.

    `-` is standard output, as a tar.
    """
    image, path = split_image_path(name)
    with open_image(image, store) as looked, looked.content() as content:
        node = resolve(looked.tree, path, follow=follow)
        contents_only = path.endswith(b"/.") or not node.path
        if destination == "-":
            _write_tar(node, content, b"" if contents_only and node.is_directory else node.name)
            return
        into, made = _destination(node, os.fsencode(destination), contents_only)
        try:
            with shown_progress() as progress:
                copied = copy_out(node, content, into, made, archive=archive, progress=progress)
        finally:
            os.close(into)
    _say(copied)


def _write_tar(node: Node, content: Content, name: bytes) -> None:
    if sys.stdout.isatty():
        raise CommandError("a tar is not written to a terminal: redirect it to a file or a program")
    sys.stdout.flush()
    write_tar(node, content, name, sys.stdout.buffer)


def _destination(node: Node, destination: bytes, contents_only: bool) -> tuple[int, bytes]:
    """A descriptor of the directory to write into, which the caller owns, and the name to make (b"": entries only)."""
    if os.path.isdir(destination):
        name = b"" if contents_only and node.is_directory else node.name
        return _open_directory(destination), name
    above, name = os.path.split(destination.rstrip(b"/"))
    if node.is_directory and os.path.lexists(destination):
        raise CommandError(f"{printable(destination)}: not a directory, so a directory cannot be copied to it")
    if destination.endswith(b"/") and not node.is_directory:
        raise OSError(errno.ENOENT, "No such directory", destination)
    if name in (b"", b".", b".."):
        raise CommandError(f"{printable(destination)}: name a new file or directory, or one that is there")
    return _open_directory(above or b"."), name


def _open_directory(path: bytes) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _say(copied: Copied) -> None:
    for what, count in sorted(copied.left_out.items()):
        times = f" ({count} times)" if count > 1 else ""
        hint = " (for root --archive keeps it)" if what == "device" else ""
        print(f"overlayfs: {printable(os.fsencode(what))} not kept{times}{hint}", file=sys.stderr)
    if is_terminal():
        Lines().print(Cell(f"{copied.paths:,} paths, {format_size(copied.size)}"))
