"""`overlayfs run`: run a program in a container, from the image's name to the program's exit status.

As in docker, 125 means that overlayfs failed, 126 that the program cannot be executed, 127 that it does not exist.
Steps: the container is made or claimed while the store is open; this process then gets a mount namespace (an ordinary
user also a user namespace), a child serves the container's tree, and the runtime runs the program on it. However this
process ends, the kernel ends the child and the mount; a janitor process, which outlives it, cleans up.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from overlayfs.cli.background import leave_behind
from overlayfs.cli.output import explain
from overlayfs.container.child_mount import ChildMount
from overlayfs.container.containers import ROOT, Container, Containers
from overlayfs.container.foreign_mounts import Needed
from overlayfs.container.mountpoints import Mountpoints, Volume, check_distinct
from overlayfs.container.namespaces import enter_mount_namespace, enter_user_namespace
from overlayfs.container.process import CannotRunError, NotThereError, Overrides, Process, check_hostname, process_of
from overlayfs.container.root_paths import Inside
from overlayfs.container.runtime import SYSTEM, Bind, Kind, Launch, Network, find_runtime
from overlayfs.container.supervise import launch, stop
from overlayfs.container.users import User
from overlayfs.fuse.session import MountOptions
from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.oci.errors import ImageError, InUseError, InvalidError, NotFoundError
from overlayfs.image.store.lowers import lower_keys
from overlayfs.image.store.staging import remove_tree
from overlayfs.image.store.store import Image, Store
from overlayfs.overlay.options import FsyncPolicy, MountError, OverlayOptions

FAILED, CANNOT_RUN, NOT_THERE = 125, 126, 127
_NAMES_OF_HOSTS: Final = {Path(path): path for path in ("/etc/resolv.conf", "/etc/hosts")}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The command line of `overlayfs run`; `overrides` replace values of the image's configuration."""

    image: str
    overrides: Overrides
    name: str | None = None
    removes: bool = False
    volumes: tuple[str, ...] = ()
    is_read_only: bool = False
    network: Network = Network.HOST
    runtime: Kind | None = None
    hostname: str = ""


def run(request: RunRequest, store_directory: Path | None) -> int:
    """Run the program until it ends; the exit status. Failures of overlayfs are reported on standard error."""
    try:
        return _run(request, store_directory)
    except NotThereError as error:
        return _fail(str(error), NOT_THERE)
    except CannotRunError as error:
        return _fail(str(error), CANNOT_RUN)
    except (ImageError, MountError) as error:
        return _fail(str(error), FAILED)
    except OSError as error:
        return _fail(explain(error), FAILED)


def _fail(message: str, status: int) -> int:
    print(f"overlayfs: {message}", file=sys.stderr)
    return status


def _run(request: RunRequest, store_directory: Path | None) -> int:
    if request.hostname:
        check_hostname(request.hostname)
    volumes = [Volume.parse(text) for text in request.volumes]
    # a volume within the target of another must be mounted after it
    volumes.sort(key=lambda volume: volume.target.count("/"))
    check_distinct([volume.target for volume in volumes])
    kind, program = find_runtime(request.runtime, has_terminal=_has_terminal())
    with Store.open(store_directory) as store:
        image = store.find(request.image)
        container = _make_or_claim(store, image, request)
        config = image.config.config
    # closed: a program may run for days, and the container's record keeps what it needs from being pruned
    running = _Running(container, store.path, kind, program)
    try:
        status = running.run(config, request, volumes)
    except BaseException:
        running.end(None)
        raise
    running.end(status)
    return status


def _make_or_claim(store: Store, image: Image, request: RunRequest) -> Container:
    containers = Containers(store)
    containers.sweep()
    layers = lower_keys(store, image)
    if request.name is not None and containers.directory(request.name).exists():
        if request.removes:
            raise InUseError(f"the container {request.name} exists already: leave out --rm to run in it again")
        return containers.claim(request.name, image)
    return containers.create(request.name, image, layers, is_ephemeral=request.removes)


@dataclass(frozen=True, slots=True)
class _Running:
    """One run of a container that this process has claimed."""

    container: Container
    store: Path
    kind: Kind
    program: str

    @property
    def root(self) -> Path:
        return self.store / "containers" / self.container.name / ROOT

    @property
    def bundle(self) -> Path:
        """A directory for files of the runtime, outside of the container's tree."""
        return self.root.parent / "bundle"

    def run(self, config: RunConfig, request: RunRequest, volumes: list[Volume]) -> int:
        options = self._overlay()
        self.bundle.mkdir(mode=0o700, exist_ok=True)
        has_users = self._enter(Needed.of([self.store, self.program, *_NAMES_OF_HOSTS], [v.source for v in volumes]))
        self._leave_janitor()
        mount = MountOptions(os.fsencode(self.root), fuse_options=("allow_other",))
        with ChildMount(options, mount), Inside(os.fsencode(self.root)) as inside:
            sources = {volume.target: volume.source for volume in volumes}
            process = process_of(config, request.overrides, inside, self._hostname(request), os.environ, sources)
            if not has_users:
                process = replace(process, user=_root_alone(process.user))
            places = Mountpoints(inside, [b"/" + os.fsencode(path) for path in self.container.scaffold])
            try:
                binds = _prepare(places, process.directory, volumes, request.network)
                self._note(command=list(process.arguments), scaffold=_scaffold(places))
                return launch(self.kind, self.program, self._plan(request, process, binds), self.bundle)
            finally:
                places.remove()
                self._note(scaffold=_scaffold(places))

    def _overlay(self) -> OverlayOptions:
        with Store.open(self.store) as store:
            containers = Containers(store)
            return OverlayOptions(
                lowers=tuple(os.fsencode(path) for path in containers.lowers(self.container)),
                upper=os.fsencode(containers.upper(self.container.name)),
                work=os.fsencode(containers.work(self.container.name)),
                # a throw-away container need not survive a power cut
                fsync=FsyncPolicy.VOLATILE if self.container.is_ephemeral else FsyncPolicy.AUTO,
            )

    def _enter(self, needed: Needed) -> bool:
        """Enter the namespaces; whether users other than root exist in them."""
        if os.geteuid() == 0:
            enter_mount_namespace(needed)
            return True
        return enter_user_namespace(needed)

    def _plan(self, request: RunRequest, process: Process, binds: list[Bind]) -> Launch:
        return Launch(
            self.root,
            self.container.name,
            self._hostname(request),
            process,
            binds,
            request.network,
            request.is_read_only,
            keeps_terminal=_has_terminal(),
        )

    def _hostname(self, request: RunRequest) -> str:
        return request.hostname or self.container.name

    def _note(self, **members: object) -> None:
        with Store.open(self.store) as store:
            Containers(store).change(self.container.name, **members)

    def _leave_janitor(self) -> None:
        """Leave a process behind that cleans up after this one has ended, in case it is killed."""
        leave_behind(self._clean_up, after=os.pidfd_open(os.getpid()))

    def _clean_up(self) -> None:
        if not self.root.exists():
            return
        with Store.open(self.store) as store:
            left = Containers(store).find(self.container.name)
        if left.process == self.container.process:  # otherwise it ended normally
            stop(self.kind, self.program, self.bundle, self.container.name)
            self.end(None)

    def end(self, status: int | None) -> None:
        """Give the container up."""
        remove_tree(self.bundle)
        with Store.open(self.store) as store:
            Containers(store).release(self.container.name, status)


def _has_terminal() -> bool:
    """Whether standard input and output of the program are a terminal."""
    return os.isatty(0) and os.isatty(1)


def _root_alone(user: User) -> User:
    """Root without supplementary groups, in a namespace with no other user. Raises NotFoundError for other users."""
    if user.uid or user.gid:
        raise NotFoundError(
            f"user {user.uid}:{user.gid} cannot be here: /etc/subuid and /etc/subgid give you no ids (see usermod(8))"
        )
    return replace(user, groups=())


def _scaffold(places: Mountpoints) -> list[str]:
    return [os.fsdecode(path.lstrip(b"/")) for path in places.made]


def _prepare(places: Mountpoints, directory: str, volumes: list[Volume], network: Network) -> list[Bind]:
    """Make the mountpoints for files of the host, and the working directory."""
    for path in SYSTEM:
        places.own(path)
    places.directory(directory)
    binds = []
    if network is Network.HOST:
        given = {volume.target for volume in volumes}
        for source, target in _NAMES_OF_HOSTS.items():
            if target not in given and source.is_file():
                with suppress(InvalidError):  # the image has an unexpected file there, which is left alone
                    binds.append(Bind(str(source.resolve()), places.file(target), is_read_only=True))
    binds += [
        Bind(str(volume.source), places.for_volume(volume), is_read_only=volume.is_read_only) for volume in volumes
    ]
    return binds
