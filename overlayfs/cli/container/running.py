"""How does a process of ours run the program of a container that it has claimed?

It gets a mount namespace (an ordinary user also a user namespace), a child serves the container's tree, and a runtime
runs the program on it. However this process ends, the kernel ends the child and the mount; a janitor process, which
outlives it, cleans up. The same steps serve `run` in the foreground and the keeper of a detached container.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import Struct
from msgspec.structs import replace

from overlayfs.cli.background import leave_behind
from overlayfs.container import anonymous
from overlayfs.container.child_mount import ChildMount
from overlayfs.container.containers import BUNDLE, ROOT, Container, Containers
from overlayfs.container.foreign_mounts import Needed
from overlayfs.container.live import names
from overlayfs.container.mountpoints import Mountpoints
from overlayfs.container.namespaces import enter_mount_namespace, enter_user_namespace
from overlayfs.container.process import Overrides, Process, failure_status, process_of
from overlayfs.container.root_paths import Inside
from overlayfs.container.runtime import SYSTEM, Bind, Kind, Launch, Network
from overlayfs.container.spec.fields import may_limit
from overlayfs.container.spec.parts import Port, exposed_ports, ports_of
from overlayfs.container.spec.settings import NONE, OF_CONTAINER, PRIVATE, Settings
from overlayfs.container.supervise import stop
from overlayfs.container.users import root_alone, with_groups
from overlayfs.container.volumes import Mounts, Volumes, fill, made_mounts
from overlayfs.fuse.session import MountOptions
from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.oci.errors import ImageError, InvalidError, NotFoundError
from overlayfs.image.store.staging import remove_tree
from overlayfs.image.store.store import Store
from overlayfs.overlay.options import FsyncPolicy, MountError, OverlayOptions
from overlayfs.tree.syscalls import mount, unmount

LOG: Final = "log"
STATUS: Final = "status"
"""A file of the container with the exit status of its last run, which those who wait hold open."""
Launcher = Callable[[Launch, Path], int | None]


class Running(Struct, frozen=True):
    """One run of a container that this process has claimed."""

    container: Container
    store: Path
    kind: Kind
    program: str
    keeps_terminal: bool = False

    @property
    def root(self) -> Path:
        return self.store / "containers" / self.container.place / ROOT

    @property
    def bundle(self) -> Path:
        """A directory for files of the runtime, outside of the container's tree."""
        return self.root.parent / BUNDLE

    @property
    def log(self) -> Path:
        return self.root.parent / LOG

    @property
    def _mount_options(self) -> MountOptions:
        return MountOptions(os.fsencode(self.root), fuse_options=("allow_other",))

    @property
    def settings(self) -> Settings:
        return self.container.settings

    def run(self, config: RunConfig, launch: Launcher) -> int | None:
        """Run the program; its exit status, None if it cannot be known. The container is free afterwards."""
        try:
            status = self._run(config, launch)
        except (ImageError, MountError, OSError) as error:
            self.end(failure_status(error))
            raise
        except BaseException:
            self.end(None)
            raise
        self.end(status)
        return status

    def _run(self, config: RunConfig, launch: Launcher) -> int | None:
        mounts = self._mounts()
        options = self._overlay()
        (self.root.parent / STATUS).write_text("")
        self.bundle.mkdir(mode=0o700, exist_ok=True)
        joined = self._joined()
        other = self._network_of(joined) if joined else ""
        known_as = self._known_as(joined)
        cgroup = f"/overlayfs-{self.container.id}" if may_limit("pids") else ""
        has_users = self._enter(
            Needed.of([self.store, self.program, "/etc"], [volume.source for volume in mounts.volumes])
        )
        self._leave_janitor()
        with ExitStack() as stack:
            stack.enter_context(ChildMount(options, self._mount_options))
            inside = stack.enter_context(Inside(os.fsencode(self.root)))
            process = self._process(config, inside, mounts, known_as.hostname, has_users=has_users)
            plan = Launch(
                self.root,
                self.container.place,
                known_as.hostname,
                process,
                (),
                Network.NONE if self.settings.network_kind == NONE else Network.HOST,
                self.settings.is_read_only,
                keeps_terminal=self.keeps_terminal,
                settings=self.settings,
                network_path=other or self._make_network(stack, config),
                cgroup=cgroup,
            )
            with self._places(inside) as places:
                plan = self._with_mounts(plan, places, inside, mounts, known_as, stack)
                self._note(command=list(process.arguments), scaffold=_scaffold(places))
                return launch(plan, self.bundle)

    def _mounts(self) -> Mounts:
        with Store.open(self.store) as store:
            return made_mounts(self.settings, Volumes(store))

    def _overlay(self) -> OverlayOptions:
        with Store.open(self.store) as store:
            containers = Containers(store)
            return OverlayOptions(
                lowers=tuple(os.fsencode(path) for path in containers.lowers(self.container)),
                upper=os.fsencode(containers.upper(self.container)),
                work=os.fsencode(containers.work(self.container)),
                # a throw-away container need not survive a power cut
                fsync=FsyncPolicy.VOLATILE if self.container.is_ephemeral else FsyncPolicy.AUTO,
            )

    def _enter(self, needed: Needed) -> bool:
        """Enter the namespaces; whether users other than root exist in them."""
        if os.geteuid() == 0:
            enter_mount_namespace(needed)
            return True
        return enter_user_namespace(needed)

    def _process(self, config: RunConfig, inside: Inside, mounts: Mounts, hostname: str, *, has_users: bool) -> Process:
        sources = {volume.target: volume.source for volume in mounts.volumes}
        process = process_of(config, overrides_of(self.settings), inside, hostname, os.environ, sources)
        user = with_groups(inside, process.user, self.settings.groups)
        return replace(process, user=user if has_users else root_alone(user))

    def show(self, host: Sequence[str], work: Callable[[str], None]) -> None:
        """Mount the tree of a visited container, and do `work` on its path. `host` are paths that `work` needs
        besides."""
        try:
            options = self._overlay()
            self._enter(Needed.of([self.store, self.program], host))
            with ChildMount(options, self._mount_options):
                work(str(self.root))
        finally:
            self._note(process=None)

    # the network

    def _joined(self) -> Container | None:
        """The container whose network namespace is to be shared."""
        kind = self.settings.network_kind
        if not kind.startswith(OF_CONTAINER):
            return None
        if os.geteuid() != 0:
            raise InvalidError(f"--network {kind} needs root: an ordinary user's containers share no namespaces")
        with Store.open(self.store) as store:
            return Containers(store).find(kind.removeprefix(OF_CONTAINER))

    def _network_of(self, joined: Container) -> str:
        """The path of its network namespace; found before ours are entered."""
        from overlayfs.container.live.signals import program_of

        if not joined.is_active:
            raise InvalidError(f"the container {joined.name} is not running: its network is gone until it is started")
        pid = program_of(joined, self.store / "containers" / joined.place / BUNDLE)
        if pid is None:
            raise InvalidError(f"the container {joined.name} does not run under runc, so its network cannot be shared")
        return f"/proc/{pid}/ns/net"

    def _known_as(self, joined: Container | None) -> Settings:
        """The options with what the container is called and whom it knows: where it has the network of another one, as
        that one, and besides as its own options say."""
        own = self.settings
        if joined is None:
            return replace(own, network=own.network_kind, hostname=_hostname_of(self.container))
        joined = self._first_with_network_of(joined)
        others = joined.settings
        return replace(
            own,
            network=others.network_kind,
            hostname=own.hostname or _hostname_of(joined),
            hosts=[*others.hosts, *own.hosts],
            dns=own.dns or others.dns,
        )

    def _first_with_network_of(self, joined: Container) -> Container:
        """The container that has brought the network: the joined one may have it of another one in its turn."""
        seen: set[str] = set()
        with Store.open(self.store) as store, suppress(NotFoundError):  # it may be gone, and the network stays
            while joined.settings.network_kind.startswith(OF_CONTAINER) and joined.id not in seen:
                seen.add(joined.id)
                joined = Containers(store).find(joined.settings.network_kind.removeprefix(OF_CONTAINER))
        return joined

    def _make_network(self, stack: ExitStack, config: RunConfig) -> str:
        if self.settings.network_kind != PRIVATE:
            return ""
        from overlayfs.container.live.network import PrivateNetwork, find_slirp

        network = stack.enter_context(PrivateNetwork(find_slirp(), self.bundle, _ports(self.settings, config)))
        self._note(ports=[str(port) for port in network.ports])
        return network.path

    # mountpoints

    @contextmanager
    def _places(self, inside: Inside) -> Iterator[Mountpoints]:
        """The mountpoints of this run; those that are empty at the end are removed."""
        places = Mountpoints(inside, [b"/" + os.fsencode(path) for path in self.container.scaffold])
        try:
            yield places
        finally:
            places.remove()
            self._note(scaffold=_scaffold(places))

    def _with_mounts(
        self, plan: Launch, places: Mountpoints, inside: Inside, mounts: Mounts, known_as: Settings, stack: ExitStack
    ) -> Launch:
        """Make the mountpoints and the working directory, and fill volumes that are new."""
        for path in SYSTEM:
            places.own(path)
        places.directory(plan.process.directory)
        binds = [*self._name_files(known_as, places, {volume.target for volume in mounts.volumes})]
        for volume in mounts.volumes:
            target = places.for_volume(volume)
            if volume.target in mounts.named:
                fill(volume.source, inside, target)
            binds.append(Bind(str(volume.source), target, is_read_only=volume.is_read_only))
        for number, tmpfs in enumerate(mounts.tmpfs):
            # mounted here, as runc gives a tmpfs the mode of the directory below it
            source = self.bundle / f"tmpfs{number}"
            source.mkdir()
            mount(b"tmpfs", os.fsencode(source), b"tmpfs", tmpfs.flags, tmpfs.data.encode())
            stack.callback(unmount, os.fsencode(source), lazy=True)
            binds.append(Bind(str(source), places.directory(tmpfs.target)))
        binds.sort(key=lambda bind: bind.target.count("/"))
        return replace(plan, binds=binds)

    def _name_files(self, known_as: Settings, places: Mountpoints, given: set[str]) -> Iterator[Bind]:
        texts = names.made_files(known_as.network_kind, known_as.hostname, known_as.hosts, known_as.dns)
        wanted = {name: text for name, text in texts.items() if f"/etc/{name}" not in given}
        return names.binds(self.bundle, wanted, places)

    # the record

    def _note(self, **members: object) -> None:
        with Store.open(self.store) as store:
            Containers(store).change(self.container, **members)

    def _leave_janitor(self) -> None:
        """Leave a process behind that cleans up after this one has ended, in case it is killed."""
        leave_behind(self._clean_up, after=os.pidfd_open(os.getpid()))

    def _clean_up(self) -> None:
        if not self.root.exists():
            return
        with suppress(NotFoundError), Store.open(self.store) as store:
            with Containers(store).left(self.container) as is_left:
                if is_left:  # otherwise it ended normally
                    stop(self.kind, self.program, self.bundle, self.container.place)
                    self._forget(None)
            anonymous.sweep(store, [self.container])

    def _forget(self, status: int | None) -> None:
        with suppress(FileNotFoundError):
            (self.root.parent / STATUS).write_text("" if status is None else str(status))
        remove_tree(self.bundle)

    def end(self, status: int | None) -> None:
        """Give the container up."""
        self._forget(status)
        with Store.open(self.store) as store:
            anonymous.release(store, self.container, status)


def _hostname_of(container: Container) -> str:
    return container.settings.hostname or container.name


def open_status(containers: Containers, container: Container) -> BinaryIO:
    """The file with the exit status of the present run, made if that is still to begin. Held open it can be read after
    an ephemeral container has disappeared. Raises NotFoundError."""
    try:
        fd = os.open(containers.directory(container) / STATUS, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        containers.again(container)
        raise
    return open(fd, "rb", buffering=0)


def overrides_of(settings: Settings) -> Overrides:
    return Overrides(
        tuple(settings.command),
        settings.entrypoint,
        tuple(settings.environment),
        settings.working_directory,
        settings.user,
    )


def _ports(settings: Settings, config: RunConfig) -> list[Port]:
    given = [port for text in settings.ports for port in ports_of(text)]
    if not settings.publishes_all:
        return given
    named = {(port.container, port.protocol) for port in given}
    exposed = (port for text in config.exposed_ports for port in exposed_ports(text))
    return given + [port for port in exposed if (port.container, port.protocol) not in named]


def _scaffold(places: Mountpoints) -> list[str]:
    return [os.fsdecode(path.lstrip(b"/")) for path in places.made]
