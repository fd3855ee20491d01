"""How large may a layer, archive or document be? Limits against decompression bombs, which the user can raise."""

from __future__ import annotations

import os
import re
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from .errors import InvalidError

VARIABLE: Final = "OVERLAYFS_LAYER_LIMIT"
"""The environment variable that raises or lowers the limits of a layer: a size such as `200G`."""

_SIZE: Final = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_HEADERS: Final = 64 << 10  # of one member; larger headers hold xattrs that no common file system can store
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class Limits(Struct, frozen=True):
    """Sizes in bytes. Exceeding one raises a LimitError that names it.

    `disk_size` bounds the disk space of a layer's files, in which holes and blocks of zeros take no space. `full_size`
    bounds the size of the files with those: they cost only reading time, which must be bounded too.
    """

    disk_size: int = 64 << 30
    full_size: int = 1 << 40
    members: int = 1_000_000
    header_size: int = 1 << 20  # one extended header: pax, or a GNU long name; the bound of Go, and so of most tools
    sparse_extents: int = 1 << 18
    path_length: int = 4095  # PATH_MAX without the NUL: nobody could open a longer one
    name_length: int = 255
    window_size: int = 128 << 20  # of zstd: what its own program allows

    def with_disk_size(self, size: int) -> Limits:
        """These limits with another `disk_size`; limits that grow with the size of a layer are scaled in proportion."""
        full_size, members = (max(1, limit * size // self.disk_size) for limit in (self.full_size, self.members))
        return replace(self, disk_size=size, full_size=full_size, members=members)

    @property
    def stream_size(self) -> int:
        """The largest size of the tar of a layer, headers included."""
        return self.full_size + self.members * _HEADERS

    @property
    def of_archive(self) -> Limits:
        """Limits for an image archive: few files, each of which may be an uncompressed layer."""
        return replace(self, disk_size=self.full_size, full_size=4 * self.full_size, members=20_000)


DEFAULT_LIMITS: Final = Limits()
_ANY: Final = 1 << 63
UNLIMITED: Final = Limits(disk_size=_ANY, full_size=_ANY, members=_ANY, header_size=_ANY, path_length=_ANY)
"""For layers that are written here and read by other tools."""


def limits_of_environment() -> Limits:
    """The limits set by the environment. Raises InvalidError for a variable that is not a size."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return DEFAULT_LIMITS
    match = _SIZE.fullmatch(text)
    size = int(match[1]) << _UNITS[match[2].upper()] if match else 0
    if not size:
        raise InvalidError(f"{VARIABLE} is {text!r}, which is no size: write it as 200G")
    return DEFAULT_LIMITS.with_disk_size(size)
