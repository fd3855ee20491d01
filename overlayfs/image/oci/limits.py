"""How much may a layer, archive or document ask of us? Guards against bombs; each can be raised by who trusts it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Final

from .errors import InvalidError

VARIABLE: Final = "OVERLAYFS_LAYER_LIMIT"
"""The environment variable that raises or lowers the limits of a layer: a size such as `200G`."""

_SIZE: Final = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_HEADERS: Final = 64 << 10  # of one member; with more than that, they have xattrs that no common file system takes
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes. Whatever exceeds one is refused with a LimitError that names it.

    `disk_size` is what the files of a layer may take on the disk, where holes and blocks of zeros take nothing.
    `full_size` is how large the layer may be with them: they cost only the time to read them, which must end too.
    """

    disk_size: int = 64 << 30
    full_size: int = 1 << 40
    members: int = 1_000_000
    header_size: int = 1 << 20  # one extended header: pax, or a GNU long name; Go's and so most tools' bound
    sparse_extents: int = 1 << 18
    path_length: int = 4095  # PATH_MAX without the NUL: nobody could open a longer one
    name_length: int = 255
    window_size: int = 128 << 20  # of zstd: what its own program allows

    def with_disk_size(self, size: int) -> Limits:
        """These limits with another `disk_size`, and in proportion all that a larger layer has more of."""
        full_size, members = (max(1, limit * size // self.disk_size) for limit in (self.full_size, self.members))
        return replace(self, disk_size=size, full_size=full_size, members=members)

    @property
    def stream_size(self) -> int:
        """How long the tar of a layer may be, with its headers."""
        return self.full_size + self.members * _HEADERS

    @property
    def of_archive(self) -> Limits:
        """Those of an image archive: few files, of which each may be a layer that is not compressed."""
        return replace(self, disk_size=self.full_size, full_size=4 * self.full_size, members=20_000)


DEFAULT_LIMITS: Final = Limits()
_ANY: Final = 1 << 63
UNLIMITED: Final = Limits(disk_size=_ANY, full_size=_ANY, members=_ANY, header_size=_ANY, path_length=_ANY)
"""For what is written to be read by others."""


def limits_of_environment() -> Limits:
    """The limits that this process is told to apply. Raises InvalidError for a variable that is no size."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return DEFAULT_LIMITS
    match = _SIZE.fullmatch(text)
    size = int(match[1]) << _UNITS[match[2].upper()] if match else 0
    if not size:
        raise InvalidError(f"{VARIABLE} is {text!r}, which is no size: write it as 200G")
    return DEFAULT_LIMITS.with_disk_size(size)
