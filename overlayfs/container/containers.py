"""Which containers are there? Writable layers on images, each with a name, in the store's `containers`.

A container is one directory: `container.json`, the `upper` that takes all changes, its `work`, and `root`, on which a
run mounts the tree. It appears and disappears by one rename, and `reset` replaces its content by one rename. One
process at a time uses a container and is named in its record; when that process has ended, the container is free again.
Records are changed under a lock on the container's directory.

The record alone says what a container is called. Its directory, the `place`, stays where it was made, as programs that
run know it by its path: `rename` writes the record, and works while the container runs. Names are given under a lock on
`containers`, taken after that of a container.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from ..image.oci.digest import Digest
from ..image.oci.documents import HealthConfig
from ..image.oci.errors import ImageError, InUseError, InvalidError, NotFoundError
from ..image.store import records
from ..image.store.layers import LayerStore, topmost_of_equals
from ..image.store.staging import remove_leftovers, remove_tree, write_synced
from ..image.store.store import Image, Store
from ..image.store.uses import Process
from ..tree import syscalls
from .health import Health, Probe
from .naming import free_name
from .spec.settings import NO_SETTINGS, Settings

if TYPE_CHECKING:
    from ..overlay.changes import Comparison

RECORD: Final = "container.json"
UPPER: Final = "upper"
WORK: Final = "work"
BUNDLE: Final = "bundle"
"""Files of the runtime: there while a program runs, or may still do so because its run was killed."""
_PATIENCE_S: Final = 1.0
ROOT: Final = "root"
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", re.ASCII)
_PLACE: Final = re.compile(rf"{_NAME.pattern}|[0-9a-f]{{64}}", re.ASCII)
_ID: Final = re.compile(r"[0-9a-f]{4,64}", re.ASCII)


class Container(Struct, frozen=True, omit_defaults=True):
    """One container as its record has it; `layers` are keys, bottom first.

    `place` is the name of its directory: its first name, or its ID where that directory was taken. The record does not
    have it. `command` is what it runs, or is to run first. `process` uses it, or used it last. `mountpoint` is
    where it is mounted, unless for a run. An ephemeral container is removed when its process has ended. `scaffold`
    are the mountpoints for files of the host that runs made in it and have not removed (yet). `settings` are its
    options, of which `ports` are published now; a detached container is supervised by conmon, and `process` is its
    keeper. A container that never ran was `started` at 0. `health` is what the checks of this run have found.
    """

    name: str
    id: str
    image: str
    manifest: Digest
    layers: list[Digest]
    created: str
    command: list[str] = []
    is_ephemeral: bool = False
    process: Process | None = None
    mountpoint: str = ""
    started: float = 0.0
    ended: float = 0.0
    exit_status: int | None = None
    scaffold: list[str] = []
    settings: Settings = Settings()
    ports: list[str] = []
    is_detached: bool = False
    health: Health | None = None
    place: str = ""

    @property
    def is_in_use(self) -> bool:
        return self.process is not None and self.process.is_alive()

    @property
    def is_visited(self) -> bool:
        """Whether its process is a `cp`, which runs nothing in it and leaves what the record says of the last run. One
        that runs has been started and has not ended."""
        return self.process is not None and not self.mountpoint and (not self.started or self.ended > 0)

    @property
    def is_active(self) -> bool:
        """Whether it is run or mounted."""
        return self.is_in_use and not self.is_visited


Step = Callable[[Container], None]


class Readable(Struct, frozen=True):
    """The containers that can be read, and by place what is wrong with the records of the others."""

    containers: list[Container]
    damaged: Mapping[str, InvalidError]

    def check(self) -> None:
        """Raises InvalidError for the first of the damaged records."""
        for place in sorted(self.damaged):
            raise self.damaged[place]


class Containers:
    """The containers of one open store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._directory = store.path / "containers"

    def directory(self, container: Container) -> Path:
        return self._directory / container.place

    def upper(self, container: Container) -> Path:
        return self.directory(container) / UPPER

    def work(self, container: Container) -> Path:
        return self.directory(container) / WORK

    def root(self, container: Container) -> Path:
        """The directory on which a run mounts the tree."""
        return self.directory(container) / ROOT

    def lowers(self, container: Container) -> list[Path]:
        """The directories of its image's layers, top first. Raises NotFoundError if one is not unpacked any more."""
        found = [LayerStore(self._store).path(key) for key in topmost_of_equals(container.layers)]
        for path in found:
            if not path.is_dir():
                raise NotFoundError(f"{path} is missing, and {container.name} needs it: mount its image once")
        return found

    def compare(self, container: Container, since: str | None = None, until: str | None = None) -> Comparison:
        """The changes of a container to its image, or those after one snapshot of it and up to another; the caller
        closes the result. MountError for a snapshot that is not there."""
        from ..overlay.changes import Comparison  # a mount need not wait for it

        lowers = [os.fsencode(path) for path in self.lowers(container)]
        upper, work = os.fsencode(self.upper(container)), os.fsencode(self.work(container))
        scaffold = [os.fsencode(path) for path in container.scaffold]
        return Comparison.open(upper, lowers, work=work, scaffold=scaffold, since=since, until=until)

    def still_there(self, container: Container) -> Callable[[], None]:
        """To be called after the files of a container were read: raises NotFoundError or InUseError if it has been
        removed or reset since, so that they may not have been all. Raises NotFoundError."""
        before = self._stat(container)

        def check() -> None:
            if not os.path.samestat(before, self._stat(container)):
                raise InUseError(f"the container {container.name} was reset meanwhile: try again")

        return check

    def _stat(self, container: Container) -> os.stat_result:
        self.again(container)
        try:
            return os.stat(self.directory(container))
        except FileNotFoundError:
            raise _is_gone(container) from None

    # found

    def listed(self) -> list[Container]:
        """All containers, oldest first. Raises InvalidError for a damaged record."""
        readable = self.readable()
        readable.check()
        return readable.containers

    def readable(self) -> Readable:
        """The containers whose records are not damaged, oldest first: a damaged one holds no other up."""
        found, damaged = [], {}
        for place in filter(_PLACE.fullmatch, os.listdir(self._directory)):
            try:
                container = self._read_if_there(place)
            except InvalidError as error:
                damaged[place] = error
                continue
            if container is not None:
                found.append(container)
        return Readable(sorted(found, key=lambda container: (container.created, container.name)), damaged)

    def find(self, text: str) -> Container:
        """Find by name or by the start of an ID. Raises NotFoundError; InvalidError if several IDs start so, or where
        none does and a damaged record may have it."""
        if (named := self.named(text)) is not None:
            return named
        by_id = []
        if _ID.fullmatch(text):
            readable = self.readable()
            by_id = [container for container in readable.containers if container.id.startswith(text)]
            if not by_id:
                readable.check()
        if len(by_id) > 1:
            raise InvalidError(f"{text} matches the IDs of several containers: {', '.join(c.name for c in by_id)}")
        if not by_id:
            raise NotFoundError(f"no container {text!r}: see overlayfs containers")
        return by_id[0]

    def find_if_there(self, text: str) -> Container | None:
        """As `find`, for a text that may also mean something else: None if no container has it. Raises InvalidError
        for a damaged record at the place of that name."""
        try:
            return self.find(text)
        except NotFoundError:
            return None
        except InvalidError:  # nothing says that it means the ID of a container
            return self.named(text)

    def named(self, name: str) -> Container | None:
        """The container of this name. Raises InvalidError for a damaged record at the place of that name."""
        if not _NAME.fullmatch(name):
            return None
        with suppress(InvalidError):
            container = self._read_if_there(name)  # where it is unless it was renamed
            if container is not None and container.name == name:
                return container
        readable = self.readable()
        found = next((one for one in readable.containers if one.name == name), None)
        if found is None and name in readable.damaged:
            raise readable.damaged[name]
        return found

    def again(self, container: Container) -> Container:
        """The same one as its record has it now, whatever others there are. Raises InvalidError, NotFoundError."""
        found = self._read_if_there(container.place)
        if found is None:
            raise _is_gone(container)
        if found.id != container.id:
            raise NotFoundError(f"the container {container.name} is another one now")
        return found

    def _read_if_there(self, place: str) -> Container | None:
        path = self._directory / place / RECORD
        container = records.read(path, Container)
        if container is None:
            return None
        try:
            _check_name(container.name)
        except InvalidError as error:
            raise records.damaged(path, error) from None
        return replace(container, place=place)

    # made

    def create(
        self,
        name: str | None,
        image: Image,
        layers: list[Digest],
        *,
        is_ephemeral: bool = False,
        settings: Settings = NO_SETTINGS,
        command: Sequence[str] = (),
    ) -> Container:
        """Make a container, used by this process. Raises InvalidError for a bad name, InUseError for a taken one."""
        if name is not None:
            _check_name(name)
        with self._naming() as taken:
            name = name or free_name(taken)
            if name in taken:
                raise _is_taken(name)
            container = Container(
                name=name,
                id=os.urandom(32).hex(),
                image=image.name,
                manifest=image.descriptor.digest,
                layers=layers,
                created=datetime.now(UTC).isoformat(timespec="microseconds"),
                command=list(command),
                is_ephemeral=is_ephemeral,
                settings=settings,
                process=Process.of(os.getpid()),
                started=time.time(),
            )
            staged = self._make(container)
            try:
                place = _put(staged, self._directory, container.name)
            except FileExistsError:
                place = _put(staged, self._directory, container.id)
        return replace(container, place=place)

    def _make(self, container: Container) -> Path:
        """Stage the directory of a container without changes; its root has the metadata of the image's root."""
        from ..overlay.empty_upper import be_like  # few commands make one

        path = self._store.stage.new_name()
        path.mkdir(0o700)
        for name in (UPPER, WORK, ROOT):
            (path / name).mkdir()
            (path / name).chmod(0o755)  # whatever the umask
        be_like(os.fsencode(self.lowers(container)[0]), os.fsencode(path / UPPER))
        write_synced(path / RECORD, _record(container))
        return path

    # used

    def claim(self, container: Container, image: Image | None, settings: Settings | None = None) -> Container:
        """Make this process the user of a container, which must be on this image (None for any), with new options.

        Raises InUseError, NotFoundError.
        """
        with self._locked(container) as found:
            _check_is_free(found)
            is_other = image is not None and found.manifest != image.descriptor.digest
            if image is not None and is_other and not self.is_on(found, image):
                raise InUseError(
                    f"the container {found.name} is on another image, {found.image}: remove it, or use another name"
                )
            claimed = replace(
                found,
                process=Process.of(os.getpid()),
                started=time.time(),
                ended=0.0,
                mountpoint="",
                exit_status=None,
                ports=[],
                is_detached=False,
                health=None,
                settings=settings or found.settings,
            )
            self._write(claimed)
        return claimed

    def visit(self, container: Container) -> Container:
        """Make this process the user of a container, in which it runs nothing. Raises InUseError, NotFoundError."""
        with self._locked(container) as found:
            _check_is_free(found)
            ended = found.ended or (time.time() if found.started else 0.0)  # the last run may have been killed
            visited = replace(found, process=Process.of(os.getpid()), ended=ended, mountpoint="", is_detached=False)
            self._write(visited)
        return visited

    def is_on(self, container: Container, image: Image) -> bool:
        """Whether the image of the container is this one, even by a manifest with layers compressed otherwise."""
        try:
            return self._store.load_by_manifest(container.manifest).id == image.id
        except ImageError:
            return False

    def change(self, container: Container, **members: object) -> Container:
        """Change members of the record; only for the process that uses the container, or takes it over from the one
        that does. Raises InUseError, NotFoundError."""
        with self._locked(container) as found:
            if found.process != container.process:  # it was taken for dead, or its command was killed before it began
                raise InUseError(f"another process uses the container {found.name} now")
            changed = replace(found, **members)
            self._write(changed)
        return changed

    def note_probe(self, container: Container, probe: Probe, check: HealthConfig) -> Health:
        """Add a check to the health of this run of a container. Raises InvalidError if the run has ended."""
        with self._locked(container) as found:
            if found.process != container.process:
                raise InvalidError(f"the container {container.name} has ended")
            health = (found.health or Health()).after(probe, check, found.started)
            self._write(replace(found, health=health))
        return health

    def release(self, container: Container, exit_status: int | None = None, first: Step | None = None) -> None:
        """Free the container, unless it is another process's by now; an ephemeral one is removed, as by `take_away`."""
        with suppress(NotFoundError, InUseError):
            released = self.change(
                container, process=None, mountpoint="", ended=time.time(), exit_status=exit_status, ports=[]
            )
            if released.is_ephemeral:
                with suppress(InUseError):  # it has forks: `sweep` removes it after them
                    remove_tree(self.take_away(released, first))

    @contextmanager
    def left(self, container: Container) -> Iterator[bool]:
        """A block to clean up after a process that was killed, before anybody uses or removes the container; False
        where somebody has done so since. The container is free at its end. Raises NotFoundError."""
        with self._locked(container) as found:
            is_left = found.process == container.process
            yield is_left
            if is_left:
                self._write(replace(found, process=None, ended=found.ended or time.time(), ports=[]))

    def reset(self, container: Container) -> Path:
        """Discard its changes atomically; the directory with them, for the caller to remove. Raises InUseError."""
        with self._locked(container) as found, self._without_forks(found):
            _check_is_free(found)
            anew = replace(
                found, process=None, exit_status=None, started=0.0, ended=0.0, command=[], scaffold=[], health=None
            )
            fresh = self._make(anew)
            _exchange(fresh, self.directory(container))
        return fresh

    def take_away(self, container: Container, first: Step | None = None) -> Path:
        """Remove a container atomically; its renamed directory, for the caller to remove.

        `first` is done before it goes, once nobody can use it. Raises InUseError, NotFoundError.
        """
        with self._locked(container) as found, self._without_forks(found):
            _check_is_free(found)
            if first is not None:
                first(found)
            away = self._store.stage.new_name()
            self.directory(container).rename(away)
        return away

    def rename(self, container: Container, new: str) -> None:
        """Give a container another name, even if it is in use. It keeps its host name, as in docker. Raises InUseError
        for a taken name, InvalidError for a bad one."""
        _check_name(new)
        with self._locked(container) as found, self._naming() as taken:
            if new in taken:
                raise _is_taken(new)
            settings = replace(found.settings, hostname=found.settings.hostname or found.name)
            self._write(replace(found, name=new, settings=settings))

    def sweep(self, among: Sequence[Container] | None = None, first: Step | None = None) -> list[Container]:
        """Remove the ephemeral containers whose process was killed, as by `take_away`, and return them; those with a
        program that may still run stay, see `left`."""
        removed = []
        for container in self.readable().containers if among is None else among:
            is_over = container.is_ephemeral and container.started and not container.is_in_use
            if is_over and not (self.directory(container) / BUNDLE).exists():
                with suppress(NotFoundError, InUseError):  # somebody else does it
                    remove_leftovers([self.take_away(container, first)])
                    removed.append(container)
        return removed

    def _write(self, container: Container) -> None:
        staged = self._store.stage.new_name()
        write_synced(staged, _record(container))
        staged.rename(self.directory(container) / RECORD)

    @contextmanager
    def _naming(self) -> Iterator[set[str]]:
        """A block in which nobody else gives names; those that are taken. A damaged record keeps that of its place."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            readable = self.readable()
            yield {one.name for one in readable.containers} | readable.damaged.keys()
        finally:
            os.close(fd)

    @contextmanager
    def _locked(self, container: Container) -> Iterator[Container]:
        """What the record has now, locked against changes by others. Raises NotFoundError."""
        fd = self._lock(container)
        try:
            if fd is None:
                raise _is_gone(container)
            yield self.again(container)
        finally:
            if fd is not None:
                os.close(fd)

    @contextmanager
    def _without_forks(self, container: Container) -> Iterator[None]:
        """A block in which nobody forks the container's tree. Raises InUseError where somebody has."""
        from ..overlay import forks

        with ExitStack() as stack:
            work = self.work(container)
            lock = forks.alone(bytes(work), patience_s=_PATIENCE_S)  # one that has ended is being removed
            if work.is_dir() and not stack.enter_context(lock):
                raise InUseError(f"forks of the container {container.name} are mounted: unmount them first")
            yield

    def _lock(self, container: Container) -> int | None:
        """A descriptor of the container's directory, locked; None where there is none."""
        while True:
            try:
                fd = os.open(self.directory(container), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            fcntl.flock(fd, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(self.directory(container))):
                    return fd
            os.close(fd)  # it was removed or reset meanwhile


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidError(f"{name[:100]!r} is no name for a container: at most 63 letters, digits, _ . and -")


def _is_gone(container: Container) -> NotFoundError:
    return NotFoundError(f"no container {container.name!r}: see overlayfs containers")


def _is_taken(name: str) -> InUseError:
    return InUseError(f"the name {name} is taken: choose another, or remove that container")


def _put(staged: Path, directory: Path, place: str) -> str:
    """Move a new container to its place. Raises FileExistsError if something is there."""
    try:
        staged.rename(directory / place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place) from None
    return place


def _record(container: Container) -> bytes:
    return records.dump(replace(container, place=""))


def _check_is_free(container: Container) -> None:
    if container.is_in_use and container.process is not None and container.process != Process.of(os.getpid()):
        used = "being copied" if container.is_visited else "running"
        what = f"mounted on {container.mountpoint}" if container.mountpoint else used
        raise InUseError(f"the container {container.name} is {what} (process {container.process.pid}): end that first")


def _exchange(one: Path, other: Path) -> None:
    here = os.open(one.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    there = os.open(other.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.renameat2(here, os.fsencode(one.name), there, os.fsencode(other.name), syscalls.RENAME_EXCHANGE)
    finally:
        os.close(here)
        os.close(there)
