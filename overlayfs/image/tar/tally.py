"""Does a layer or archive stay within the limits, and is there disk space for it? Everything is counted beforehand.

Readers and writers count by the same rules, so no layer is written that a reader would refuse.
"""

from __future__ import annotations

import os
from typing import Final

from ..oci.errors import LimitError, named
from ..oci.limits import VARIABLE, Limits

_LOOK_EVERY: Final = 64 << 20
_KEPT_FREE: Final = 256 << 20  # four layers are unpacked at once; each writes this much between two checks
_KEPT_FREE_PART: Final = 16  # the part of a small disk to leave free


class Tally:
    """Counts the members of one tar, and their bytes including holes and zeros."""

    def __init__(self, limits: Limits, what: str) -> None:
        self._limits, self._what = limits, what
        self._members = self._size = 0

    def add(self, member: bytes, size: int) -> None:
        """Count a member; its name is for the error message. Raises LimitError."""
        self._members += 1
        self._size += size
        if self._members > self._limits.members:
            raise LimitError(
                f"{self._what} has more than {self._limits.members} members, the limit ({VARIABLE} raises it)"
            )
        if self._size > self._limits.full_size:
            raise LimitError(
                f"{self._what}: {named(member)} makes it larger than {self._limits.full_size} bytes, "
                f"the limit ({VARIABLE} raises it)"
            )


class Room:
    """Counts the data bytes of one layer or archive; with `directory` also checks the free space of that disk."""

    def __init__(self, limits: Limits, what: str, directory: int | None = None) -> None:
        self._limit, self._what, self._directory = limits.disk_size, what, directory
        self._taken, self._next_look = 0, _LOOK_EVERY

    def take(self, size: int, member: bytes) -> None:
        """Count bytes before they are written. Raises LimitError."""
        self._taken += size
        if self._taken > self._limit:
            raise LimitError(
                f"{self._what}: {named(member)} makes it take more than {self._limit} bytes of disk, "
                f"the limit ({VARIABLE} raises it)"
            )
        if self._taken >= self._next_look:
            self._next_look = self._taken + _LOOK_EVERY
            self._check_disk(member)

    def _check_disk(self, member: bytes) -> None:
        """A layer within its limit must not fill the disk for all other users."""
        if self._directory is None:
            return
        disk = os.fstatvfs(self._directory)
        free = disk.f_bavail * disk.f_frsize
        if free < min(_KEPT_FREE, disk.f_blocks * disk.f_frsize // _KEPT_FREE_PART):
            raise LimitError(f"{self._what}: {named(member)} does not fit on the disk, which has {free} bytes left")
