"""Which volumes with names are in the store, and what is mounted in a container?

A named volume is a directory `volumes/NAME` with its record and its `data`, which outlives containers. It appears and
disappears by one rename, both under a lock on `volumes`, taken after that of a container; and a container is recorded
before its volumes are made: so no volume is removed that a container has. The files that the image has at its place are
copied to it when it is first mounted, while it is empty, as docker does.
"""

from __future__ import annotations

import fcntl
import os
import posixpath
import re
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..image.oci.errors import ImageError, InUseError, InvalidError, NotFoundError
from ..image.store import records
from ..image.store.staging import remove_tree, sync_all, write_synced
from ..image.store.store import Store
from .containers import Container, Containers
from .mountpoints import Volume, check_distinct, is_kept
from .root_paths import Inside
from .spec.parts import Tmpfs, tmpfs_of
from .spec.settings import Settings

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_DATA: Final = "data"
_RECORD: Final = "volume.json"
_KEYS: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}


class NamedVolume(Struct, frozen=True, omit_defaults=True):
    """A volume as its record has it."""

    name: str
    created: str
    labels: dict[str, str] = {}


class ReadableVolumes(Struct, frozen=True):
    """The volumes that can be read, and what is wrong with the records of the others."""

    volumes: list[NamedVolume]
    damaged: list[InvalidError]

    def check(self) -> None:
        """Raises InvalidError for the first of the damaged records."""
        for error in self.damaged:
            raise error


class Volumes:
    """The named volumes of one open store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._directory = store.path / "volumes"

    def data(self, name: str) -> Path:
        return self._directory / name / _DATA

    def readable(self) -> ReadableVolumes:
        """The volumes whose records are not damaged, by name: a damaged one holds no other up."""
        found, damaged = [], []
        for name in sorted(filter(_NAME.fullmatch, self._names())):
            try:
                volume = self._read(name)
            except InvalidError as error:
                damaged.append(error)
                continue
            if volume is not None:
                found.append(volume)
        return ReadableVolumes(found, damaged)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._directory)
        except FileNotFoundError:
            return []

    def find(self, name: str) -> NamedVolume:
        """Raises NotFoundError."""
        found = self._read(name) if _NAME.fullmatch(name) else None
        if found is None:
            raise NotFoundError(f"no volume {name[:128]!r}: see overlayfs volume ls")
        return found

    def create(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a volume, unless it is there; one that has lost its record gets a new one. Raises InvalidError for a
        bad name."""
        _check_name(name)
        with self._locked():
            if self._read(name) is None:
                self._make(name, labels)

    def _make(self, name: str, labels: Mapping[str, str]) -> None:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        record = records.dump(NamedVolume(name, created, dict(labels)))
        with self._store.staging() as staged:
            write_synced(staged / _RECORD, record)
            if self.data(name).is_dir():
                (staged / _RECORD).rename(self._directory / name / _RECORD)
                return
            (staged / _DATA).mkdir()
            (staged / _DATA).chmod(0o755)
            staged.rename(self._directory / name)

    def remove(self, name: str, besides: Container | None = None) -> None:
        """Remove a volume with all it holds. Raises NotFoundError, InUseError if a container has it, but for one."""
        with self._locked():
            self.find(name)
            others = [one for one in Containers(self._store).listed() if besides is None or one.id != besides.id]
            if users := users_of(name, others):
                raise InUseError(f"the volume {name} belongs to {', '.join(users)}: remove these containers first")
            away = self._store.stage.new_name()
            (self._directory / name).rename(away)
        remove_tree(away)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """A block in which nobody else makes or removes volumes."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _read(self, name: str) -> NamedVolume | None:
        remedy = f"remove this file, and `overlayfs volume create {name}` makes another for what the volume holds"
        return records.read(self._directory / name / _RECORD, NamedVolume, remedy)


def users_of(volume: str, containers: Sequence[Container]) -> list[str]:
    """The names of those of the containers that have this volume."""
    return [one.name for one in containers if volume in places_in(one.settings).values()]


class Mounts(Struct, frozen=True):
    """What is mounted in a container; `named` are the names of volumes by target."""

    volumes: tuple[Volume, ...]
    tmpfs: tuple[Tmpfs, ...]
    named: Mapping[str, str]


def places_in(settings: Settings) -> dict[str, str]:
    """The places in a container where something is mounted, and the names of the volumes there, empty for others."""
    found = {text.partition(":")[0]: "" for text in settings.tmpfs}
    for text in settings.volumes:
        source, _, rest = text.partition(":")
        found[rest.partition(":")[0]] = source if _is_named(text) else ""
    for options in map(options_of, settings.mounts):
        found[options["target"]] = options["source"] if options["type"] == "volume" else ""
    return {posixpath.normpath("/" + place.lstrip("/")): name for place, name in found.items()}


def random_name() -> str:
    """The name of a volume that nobody has named."""
    return os.urandom(32).hex()


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidError(f"{name[:128]!r} is no name for a volume: letters, digits, _ . and -")


def _is_named(text: str) -> bool:
    source = text.partition(":")[0]
    return "/" not in source and source not in (".", "..", "") and ":" in text


def mounts_of(settings: Settings, volumes: Volumes) -> Mounts:
    """The mounts that the options describe; named volumes may be missing. Raises ImageError."""
    named: dict[str, str] = {}
    found: list[Volume] = []
    tmpfs = [tmpfs_of(text) for text in settings.tmpfs]
    for text in settings.volumes:
        if _is_named(text):
            name = text.partition(":")[0]
            found.append(Volume.parse(text, data=volumes.data(name)))
            named[found[-1].target] = name
        else:
            found.append(Volume.parse(text))
    for text in settings.mounts:
        options = options_of(text)
        if options["type"] == "tmpfs":
            tmpfs.append(_tmpfs_of(options))
            continue
        is_volume = options["type"] == "volume"
        source = volumes.data(options["source"]) if is_volume else Path(options["source"])
        is_read_only = "readonly" in options
        found.append(Volume.at(source, options["target"], text, is_read_only=is_read_only, is_to_be_made=is_volume))
        if is_volume:
            named[found[-1].target] = options["source"]
    for one in tmpfs:
        if is_kept(posixpath.normpath("/" + one.target.lstrip("/"))):
            raise InvalidError(f"no tmpfs can be at {one.target}: / /dev /proc and /sys are the container's own")
    check_distinct([*(volume.target for volume in found), *(one.target for one in tmpfs)])
    for name in named.values():
        _check_name(name)
    found.sort(key=lambda volume: volume.target.count("/"))  # one within the target of another comes after it
    return Mounts(tuple(found), tuple(tmpfs), named)


def made_mounts(settings: Settings, volumes: Volumes) -> Mounts:
    """The mounts that the options describe; named volumes that are missing are made. Raises ImageError."""
    mounts = mounts_of(settings, volumes)
    for name in mounts.named.values():
        volumes.create(name, {})
    return mounts


def options_of(text: str) -> dict[str, str]:
    """The members of `--mount type=bind,source=/a,target=/b,readonly`; the source of a volume may be empty.

    Raises InvalidError.
    """
    options = {"type": "volume"}
    for word in text.split(","):
        name, _, value = word.partition("=")
        options[_KEYS.get(name, name)] = value
    kind = options["type"]
    known = {"type", "target", "readonly"} | ({"tmpfs-size", "tmpfs-mode"} if kind == "tmpfs" else {"source"})
    if kind != "tmpfs":
        options.setdefault("source", "")
    if options.get("readonly") in ("false", "0"):
        del options["readonly"]
    if kind not in ("bind", "volume", "tmpfs") or set(options) - known or not options.get("target", "").startswith("/"):
        raise InvalidError(f"{text[:120]!r} is no mount: type=bind|volume|tmpfs, source=, target=/PATH, readonly")
    if kind == "bind" and not options["source"].startswith("/"):
        raise InvalidError(f"{text[:120]!r}: the source of a bind mount is an absolute path")
    return options


def _tmpfs_of(options: Mapping[str, str]) -> Tmpfs:
    words = [f"size={options['tmpfs-size']}"] if "tmpfs-size" in options else []
    words += [f"mode={options['tmpfs-mode']}"] if "tmpfs-mode" in options else []
    words += ["ro"] if "readonly" in options else []
    return tmpfs_of(f"{options['target']}:{','.join(words)}")


def inherited(settings: Settings, containers: Containers) -> Settings:
    """The options with the mounts of the containers of --volumes-from in them. At one place the options' own mount
    counts, then that of the last container, as with docker. Raises ImageError."""
    if not settings.volumes_from:
        return settings
    volumes, mounts, anonymous = list(settings.volumes), list(settings.mounts), list(settings.anonymous)
    taken = set(places_in(settings))
    for text in reversed(settings.volumes_from):
        name, _, mode = text.partition(":")
        if mode not in ("", "rw", "ro"):
            raise InvalidError(f"--volumes-from {text[:80]!r}: NAME, NAME:ro or NAME:rw")
        other = containers.find(name).settings
        free = {place: name for place, name in places_in(other).items() if place not in taken}
        own_volumes = [one for one in other.volumes if _is_at(Settings(volumes=[one]), free)]
        own_mounts = [one for one in other.mounts if _is_at(Settings(mounts=[one]), free)]
        volumes += [_made_read_only(one) if mode == "ro" else one for one in own_volumes]
        mounts += [f"{one},readonly" if mode == "ro" else one for one in own_mounts]
        anonymous += [name for name in other.anonymous if name in free.values()]
        taken |= set(free)
    return replace(settings, volumes=volumes, mounts=mounts, anonymous=anonymous, volumes_from=[])


def _is_at(settings: Settings, places: Mapping[str, str]) -> bool:
    return all(place in places for place in places_in(settings))


def _made_read_only(text: str) -> str:
    source, target, *words = text.split(":")
    options = [word for word in (words[0].split(",") if words else []) if word not in ("rw", "ro")]
    return f"{source}:{target}:{','.join([*options, 'ro'])}"


def fill(data: Path, inside: Inside, target: str) -> None:
    """Copy what the image has at `target` to an empty volume, owners and modes included.

    The copy is made beside the volume and then moved into it, as live containers may have mounted this very directory;
    the next run finishes a move that was killed. Raises ImageError.
    """
    lock_fd = os.open(data.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        whole = data.with_name("filled")
        if whole.exists():
            _pour(whole, data)
            return
        if any(data.iterdir()):
            return
        staged = data.with_name("filling")
        if staged.exists():  # of a run that was killed
            remove_tree(staged)
        with inside.directory(os.fsencode(target)) as fd:
            source = f"/proc/self/fd/{fd}/."
            words = ["cp", "--archive", "--no-target-directory", "--", source, str(staged)]
            passed = [fd, lock_fd]  # cp has the lock, too, in case this process is killed meanwhile
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, pass_fds=passed, check=False
            )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["cp does not say why"]
            raise ImageError(f"the volume for {target} could not be filled: {said[-1]}")
        if any(staged.iterdir()):
            sync_all(staged)  # no later run fills it again
        staged.rename(whole)
        _pour(whole, data)
    finally:
        os.close(lock_fd)


def _pour(whole: Path, data: Path) -> None:
    found = whole.stat()
    for entry in list(whole.iterdir()):
        entry.rename(data / entry.name)
    os.chown(data, found.st_uid, found.st_gid)
    data.chmod(stat.S_IMODE(found.st_mode))
    whole.rmdir()
