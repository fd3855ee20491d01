"""How much does a layer or archive ask for, and is it there? Whoever reads or writes one counts here, before the work.

Readers and writers count by the same rules, so that no layer is written that would be refused when it is read.
"""

from __future__ import annotations

import os
from typing import Final

from ..oci.errors import LimitError, named
from ..oci.limits import VARIABLE, Limits

_LOOK_EVERY: Final = 64 << 20
_KEPT_FREE: Final = 256 << 20  # four layers are unpacked at once, each of which writes so much between two looks
_KEPT_FREE_PART: Final = 16  # of a small disk this part


class Tally:
    """The members of one tar, and their bytes with holes and zeros."""

    def __init__(self, limits: Limits, what: str) -> None:
        self._limits, self._what = limits, what
        self._members = self._size = 0

    def add(self, member: bytes, size: int) -> None:
        """Count a member, whose name is for the error's line. Raises LimitError."""
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
    """The bytes of data in one layer or archive; where its `directory` is known, also the space on that disk."""

    def __init__(self, limits: Limits, what: str, directory: int | None = None) -> None:
        self._limit, self._what, self._directory = limits.disk_size, what, directory
        self._taken, self._next_look = 0, _LOOK_EVERY

    def take(self, size: int, member: bytes) -> None:
        """Count bytes that are going to be written. Raises LimitError."""
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
        """A bomb within the limit must not fill the disk for everybody else."""
        if self._directory is None:
            return
        disk = os.fstatvfs(self._directory)
        free = disk.f_bavail * disk.f_frsize
        if free < min(_KEPT_FREE, disk.f_blocks * disk.f_frsize // _KEPT_FREE_PART):
            raise LimitError(f"{self._what}: {named(member)} does not fit on the disk, which has {free} bytes left")
