"""What does a file of `--env-file` set? A line is `NAME=VALUE`, or `NAME` for the caller's value, or a `#` comment."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from overlayfs.image.oci.errors import InvalidError, LimitError

_MOST: Final = 1 << 20


def variables_of(files: Iterable[Path]) -> list[str]:
    """The variables in order. Raises InvalidError with file and line."""
    return [text for path in files for text in _variables(path)]


def _variables(path: Path) -> list[str]:
    with path.open("rb") as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise LimitError(f"{path} has more than {_MOST} bytes")
    found = []
    # as docker: after a byte order mark, and no line ends but where a file's do
    lines = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape").split("\n")
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\r").lstrip()
        if not text or text.startswith("#"):
            continue
        name = text.partition("=")[0]
        if not name or any(char.isspace() for char in name):
            raise InvalidError(f"{path}:{number}: {name[:60]!r} is no name of a variable")
        found.append(text)
    return found
