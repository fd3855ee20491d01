"""Where in a container are files of the host mounted, and how are the mountpoints made?

A runtime that follows symlinks of the image while the host's files are visible can be led out of the image. So the
places are resolved, and made if missing, before the runtime starts, which only gets paths without symlinks. Mountpoints
that were made and are still empty when the program has ended are removed, so that the container only holds the
program's own changes.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from ..image.oci.errors import InvalidError, NotFoundError
from .root_paths import Inside

_OPTIONS: Final = {"ro": True, "rw": False, "z": None, "Z": None}
_OWN_PLACES: Final = ("/", "/proc", "/dev", "/sys")


class Volume(Struct, frozen=True):
    """A file or directory of the host, and its place in the container."""

    source: Path
    target: str
    is_read_only: bool = False

    @classmethod
    def parse(cls, text: str, *, data: Path | None = None) -> Volume:
        """`SOURCE:TARGET[:ro|rw]`, as docker's -v; a source that is a name is that of the volume at `data`, which may
        be missing. Raises InvalidError; NotFoundError if another source is missing."""
        source, _, rest = text.partition(":")
        target, _, words = rest.partition(":")
        if not source or not target:
            raise _is_no_volume(text)
        if data is None and "/" not in source and source != ".":
            raise InvalidError(f"{text!r}: named volumes are not there: give a directory, as in ./{source}:{target}")
        options = [word for word in words.split(",") if word]
        unknown = [word for word in options if word not in _OPTIONS]
        if unknown:
            raise InvalidError(f"{text!r}: unknown volume option {unknown[0]!r}: ro or rw")
        path = data or Path(source).absolute()
        return cls.at(path, target, text, is_read_only="ro" in options, is_to_be_made=data is not None)

    @classmethod
    def at(cls, source: Path, target: str, text: str, *, is_read_only: bool, is_to_be_made: bool) -> Volume:
        """The volume that the option `text` describes. Raises InvalidError; NotFoundError if the source is missing and
        not `is_to_be_made`."""
        place = posixpath.normpath("/" + target.lstrip("/"))
        if not target.startswith("/") or is_kept(place):
            raise _is_no_volume(text)
        if not is_to_be_made and not source.exists():
            raise NotFoundError(f"the volume's source {source} does not exist")
        return cls(source, place, is_read_only)


def _is_no_volume(text: str) -> InvalidError:
    return InvalidError(f"{text!r} is no volume: SOURCE:/TARGET or SOURCE:/TARGET:ro, and not over / or /dev")


def is_kept(target: str) -> bool:
    """Whether nothing can be mounted at this plain path."""
    return target in _OWN_PLACES or target.startswith("/proc/")  # where nothing can be made


class Mountpoints:
    """The mountpoints of one run. `remove` removes those made for it, and those made `before` by a killed run."""

    def __init__(self, inside: Inside, before: Sequence[bytes] = ()) -> None:
        self._inside = inside
        self._made = list(before)

    def directory(self, path: str) -> str:
        """Make sure that a directory is at `path`; the path without symlinks. Raises InvalidError."""
        return os.fsdecode(self._place(os.fsencode(path), is_directory=True))

    def file(self, path: str) -> str:
        """As `directory`, for a file."""
        return os.fsdecode(self._place(os.fsencode(path), is_directory=False))

    def own(self, path: str) -> None:
        """Make sure that a directory is at `path`, through no symlink: for the mounts of every container."""
        if self.directory(path) != path:
            raise InvalidError(f"{path} in the image is a symlink, so nothing can be run in it")

    def for_volume(self, volume: Volume) -> str:
        return self.directory(volume.target) if volume.source.is_dir() else self.file(volume.target)

    @property
    def made(self) -> Sequence[bytes]:
        """The paths that were made, absolute; directories before their entries."""
        return tuple(self._made)

    def remove(self) -> None:
        """Remove the mountpoints that are still empty; `made` keeps those that could not be reached."""
        left = []
        for path in reversed(self._made):
            try:
                self._remove_if_empty(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                    left.append(path)
        self._made = left[::-1]

    def _remove_if_empty(self, path: bytes) -> None:
        above, name = posixpath.split(path)
        with self._inside.directory(above) as fd:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                os.rmdir(name, dir_fd=fd)
            elif found.st_size == 0:
                os.unlink(name, dir_fd=fd)

    def _place(self, path: bytes, *, is_directory: bool) -> bytes:
        path = posixpath.normpath(b"/" + path.lstrip(b"/"))
        try:
            resolved = self._inside.resolve(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise InvalidError(f"{os.fsdecode(path)} in the image is no place: {error.strerror}") from None
            return self._make(path, is_directory=is_directory)
        if stat.S_ISDIR(self._inside.stat(resolved).st_mode) != is_directory:
            wanted = "directory" if is_directory else "file"
            raise InvalidError(f"{os.fsdecode(path)} in the image is no {wanted}, so none can be mounted there")
        return resolved

    def _make(self, path: bytes, *, is_directory: bool) -> bytes:
        above, name = posixpath.split(path)
        resolved = self._place(above, is_directory=True)
        with self._inside.directory(resolved) as fd:
            try:
                if is_directory:
                    os.mkdir(name, 0o755, dir_fd=fd)
                else:
                    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=fd))
            except FileExistsError:
                text = os.fsdecode(path)
                raise InvalidError(
                    f"{text} in the image is a symlink that leads nowhere; nothing can be there"
                ) from None
        made = posixpath.join(resolved, name)
        self._made.append(made)
        return made


def check_distinct(targets: Sequence[str]) -> None:
    """Raises InvalidError if two volumes have the same place."""
    for target in targets:
        if targets.count(target) > 1:
            raise InvalidError(f"two volumes cannot both be at {target}")
