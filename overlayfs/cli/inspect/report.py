"""`overlayfs report`: an image as one HTML page."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from overlayfs.cli.inspect.looking import open_image
from overlayfs.cli.output import format_size, is_terminal, printable
from overlayfs.image.inspect.report import report_page


def write_report(name: str, output: str, store: Path | None) -> None:
    """Write the page to the file `output`, at once or not at all; `-` is standard output."""
    with open_image(name, store) as looked:
        page = report_page(looked.image, looked.indexes, printable)
    if output == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(page)
        return
    _replace(Path(output), page)
    if is_terminal():
        print(f"{printable(os.fsencode(output))}: {format_size(len(page))}")


def _replace(path: Path, data: bytes) -> None:
    if path.exists() and not path.is_file():  # a device or pipe is written to
        path.write_bytes(data)
        return
    try:
        fd, draft = tempfile.mkstemp(prefix=".overlayfs-", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(file.fileno(), 0o666 & ~umask)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        raise
