"""How is a configuration file replaced: at once, with its mode and owner, and with a copy of what was there before?"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from overlayfs.cli.mounts.live import CommandError
from overlayfs.image.store.staging import sync_directory


def read(path: Path) -> str | None:
    """The text of a file, None where there is no such file."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise CommandError(f"{path}: it is not UTF-8; mend it first") from None


def replace(path: Path, text: str, *, like: Path | None = None) -> None:
    """Write the whole file or leave it as it is. A symlink stays one: the file that it leads to is replaced.

    Its mode and owner are those of `like`, by default of the file that is there.
    """
    place = path.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    staged = place.with_name(f".{place.name}.{os.urandom(8).hex()}")
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            _make_like(like or place, fd)
            file.write(text.encode())
            file.flush()
            os.fsync(fd)
        staged.rename(place)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_directory(place.parent)


def _make_like(path: Path, fd: int) -> None:
    try:
        found = path.stat()
    except FileNotFoundError:
        os.fchmod(fd, 0o644)
        return
    os.fchown(fd, found.st_uid, found.st_gid)
    os.fchmod(fd, found.st_mode & 0o7777)


def delete(path: Path) -> None:
    """Remove the file, if it is there."""
    path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        sync_directory(path.parent)
