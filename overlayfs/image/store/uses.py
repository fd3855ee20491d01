"""What is in use now? Records of mounts and running programs, which keep layers and images from being pruned.

A record is written while the store's lock is held, and is good for as long as its process lives: nobody needs to
remove it, `prune` does when the process has ended.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Final, Self

from msgspec import Struct

from ..oci.digest import Digest
from ..oci.errors import InvalidError
from . import records
from .staging import Staging

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class Process(Struct, frozen=True):
    """One process, told apart from a later one of the same number: proc(5), `starttime` in /proc/pid/stat."""

    pid: int
    started: int
    boot: str
    pid_namespace: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """A process that lives in our pid namespace. Raises ProcessLookupError or FileNotFoundError."""
        return cls(pid, _start_time(pid), _boot(), _pid_namespace())

    def is_alive(self) -> bool:
        """Whether it may be; of another pid namespace that cannot be told, and counts as alive until the next boot."""
        if self.boot != _boot():
            return False
        if self.pid_namespace != _pid_namespace():
            return True
        try:
            return _start_time(self.pid) == self.started
        except (FileNotFoundError, ProcessLookupError):
            return False


class Use(Struct, frozen=True, omit_defaults=True):
    """Something of the store that a process uses: the keys of layers, a mountpoint, a container's name."""

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
        """Keep a record; its name. The store must be open (its lock held) since before what it names was looked up."""
        name = secrets.token_hex(8)
        staged = self._staging.new_name()
        staged.write_bytes(records.dump(use))
        staged.rename(self._directory / f"{name}.json")
        return name

    def remove(self, name: str) -> None:
        (self._directory / f"{name}.json").unlink(missing_ok=True)

    def listed(self) -> dict[str, Use]:
        """The records of processes that live, by name. Raises InvalidError for one that cannot be read."""
        uses = {path.stem: _read(path) for path in self._directory.glob("*.json")}
        return {name: use for name, use in uses.items() if use is not None and use.process.is_alive()}

    def sweep(self) -> int:
        """Remove the records of processes that have ended; how many. Only while the store's lock is held alone."""
        alive = self.listed()
        dead = [path for path in self._directory.glob("*.json") if path.stem not in alive]
        for path in dead:
            path.unlink(missing_ok=True)
        return len(dead)


def _read(path: Path) -> Use | None:
    """None for a record that is gone, or empty: a crash of the machine came before its bytes were on the disk."""
    try:
        data = path.read_bytes()
        return records.load(data, Use) if data else None
    except FileNotFoundError:
        return None
    except records.DAMAGED as error:
        raise InvalidError(f"{path} is damaged: {error}; remove it if nothing is mounted from the store") from None


def digests_in(document: bytes) -> set[Digest]:
    """Every digest that a document names, whatever its members are called."""
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
