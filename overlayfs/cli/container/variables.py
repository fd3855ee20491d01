"""What does a file of `--env-file` set? A line is `NAME=VALUE`, or `NAME` for the caller's value, or a `#` comment."""

from __future__ import annotations

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
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").splitlines(), 1):
        text = line.lstrip()
        if not text or text.startswith("#"):
            continue
        name = text.partition("=")[0]
        if not name or any(char.isspace() for char in name):
            raise InvalidError(f"{path}:{number}: {name[:60]!r} is no name of a variable")
        found.append(text)
    return found
