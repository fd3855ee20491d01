"""What is in use now? Records of mounts and running programs, which protect layers and images from being pruned.

A record is written while the store's lock is held, and is valid while its process lives. Nobody needs to remove it:
`prune` does so after the process has ended.
"""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from msgspec import Struct

from ..oci.digest import Digest
from ..oci.errors import InvalidError
from . import records
from .staging import Staging

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class Process(Struct, frozen=True):
    """A process, identified by pid and start time (proc(5), `starttime` in /proc/pid/stat), as pids are reused."""

    pid: int
    started: int
    boot: str
    pid_namespace: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """The live process `pid` of this pid namespace. Raises ProcessLookupError or FileNotFoundError."""
        return cls(pid, _start_time(pid), _boot(), _pid_namespace())

    def is_alive(self) -> bool:
        """Whether the process may be alive; one of another pid namespace counts as alive until the next boot."""
        if self.boot != _boot():
            return False
        if not self.is_of_our_namespace:
            return True
        try:
            return _start_time(self.pid) == self.started
        except (FileNotFoundError, ProcessLookupError):
            return False

    @property
    def is_of_our_namespace(self) -> bool:
        """Whether its pid, and those of its children, mean the same processes to us."""
        return self.pid_namespace == _pid_namespace()

    def pidfd(self) -> int:
        """A new descriptor of the process, see pidfd_open(2). Raises ProcessLookupError where it has ended, and
        InvalidError for one of another pid namespace, as its pid is that of another process here."""
        if self.boot == _boot() and not self.is_of_our_namespace:
            raise InvalidError(f"the process {self.pid} is in another pid namespace: wait for it or end it there")
        fd = os.pidfd_open(self.pid)
        if not self.is_alive():  # otherwise it had the pid when that was opened
            os.close(fd)
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return fd


class Use(Struct, frozen=True, omit_defaults=True):
    """What a process uses of the store: keys of layers, an image, a mountpoint, the ID of a container."""

    process: Process
    layers: list[Digest]
    image: Digest | None = None
    mountpoint: str = ""
    container: str = ""


class Uses:
    """The records in one directory, one file each."""

    def __init__(self, directory: Path, staging: Staging) -> None:
        self._directory = directory
        self._staging = staging

    def record(self, use: Use) -> str:
        """Keep a record; its name. The store must have been open since before the layers were looked up."""
        name = os.urandom(8).hex()
        staged = self._staging.new_name()
        staged.write_bytes(records.dump(use))
        staged.rename(self._directory / f"{name}.json")
        return name

    def remove(self, name: str) -> None:
        (self._directory / f"{name}.json").unlink(missing_ok=True)

    def listed(self) -> dict[str, Use]:
        """The records of live processes, by name. Raises InvalidError for an unreadable record."""
        uses = {path.stem: _read(path) for path in self._directory.glob("*.json")}
        return {name: use for name, use in uses.items() if use is not None and use.process.is_alive()}

    def sweep(self) -> int:
        """Remove the records of ended processes; how many. Only while the store is held alone."""
        alive = self.listed()
        dead = [path for path in self._directory.glob("*.json") if path.stem not in alive]
        for path in dead:
            path.unlink(missing_ok=True)
        return len(dead)


def _read(path: Path) -> Use | None:
    """None for a record that is gone, and for one that a power loss left incomplete, as its process has ended."""
    try:
        return records.read(path, Use, "remove it if nothing is mounted from the store")
    except InvalidError:
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        with suppress(FileNotFoundError):  # somebody has removed it just now
            found = path.stat()
            if found.st_size and found.st_mtime > booted:
                raise
        return None


def digests_in(document: bytes) -> set[Digest]:
    """Every digest in a document, whatever its members are called."""
    return {Digest(found) for found in _DIGEST.findall(document.decode("utf-8", "replace"))}


def _start_time(pid: int) -> int:
    """Clock ticks after boot; a zombie has ended."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError
    return int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
