"""`overlayfs start`, `stop`, `kill`, `restart`, `wait`, `pause` and `unpause`: one container or many at once."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from overlayfs.cli.container.attaching import Attachment
from overlayfs.cli.container.detached import start_detached
from overlayfs.cli.container.leftovers import clean_up
from overlayfs.cli.container.run import in_dockers_terms, stop_signal_of
from overlayfs.cli.container.running import open_status
from overlayfs.cli.container.under_runc import bundle_of, call_runc, running_under_runc
from overlayfs.cli.mounts.live import CommandError
from overlayfs.container.containers import Container, Containers
from overlayfs.container.live.signals import Ends, after_kill, once_free, send
from overlayfs.container.live.status import exit_code_of, status_of
from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.oci.errors import ImageError, InUseError, InvalidError, NotFoundError
from overlayfs.image.oci.signals import signal_of
from overlayfs.image.store.store import Store

_PATIENCE_S = 10


def each(names: Sequence[str], work: Callable[[str], None]) -> bool:
    """Do `work` for each name, even if it fails for others; whether it succeeded for all. Prints names as docker."""
    done = True
    for name in names:
        try:
            work(name)
            print(name, flush=True)
        except (CommandError, ImageError) as error:
            print(f"overlayfs: {error}", file=sys.stderr)
            done = False
    return done


def start(store_directory: Path | None, names: Sequence[str], *, attach: bool, interactive: bool) -> int:
    """Start containers again; with `attach` pass output on, and return the exit status of the program."""
    if attach or interactive:
        if len(names) != 1:
            raise InvalidError("start --attach takes one container")
        return in_dockers_terms(lambda: _start_attached(store_directory, names[0], interactive=interactive))
    return 0 if each(names, lambda name: _start(store_directory, name)) else 1


def _start(store_directory: Path | None, name: str) -> None:
    with Store.open(store_directory) as store:
        containers = Containers(store)
        found = containers.find(name)
    try:
        container, config = _claimed(store, found)
    except InUseError:
        now = containers.again(found)
        if now.is_active and not now.mountpoint:
            return  # as docker
        raise
    start_detached(container, store.path, config)


def _claimed(closed: Store, found: Container) -> tuple[Container, RunConfig]:
    """A container for this process to run, and the configuration of its image. Raises ImageError."""

    def claim() -> Container:
        with Store.open(closed.path) as store:
            containers = Containers(store)
            clean_up(store, containers.again(found))
            return containers.claim(found, None)

    with Store.open(closed.path) as store:
        config = store.load_by_manifest(found.manifest).config.config
    return once_free(Containers(closed), found, claim), config


def _start_attached(store_directory: Path | None, name: str, *, interactive: bool) -> int:
    with Store.open(store_directory) as store:
        found = Containers(store).find(name)
    container, config = _claimed(store, found)
    attachment = Attachment(container, store.path, with_input=interactive)
    start_detached(container, store.path, config, attachment.open)
    return attachment.follow()


def stop(store_directory: Path | None, names: Sequence[str], timeout_s: int | None, *, is_quiet: bool = False) -> bool:
    """Ask the programs to end, all at once, and kill those that do not in time; whether all have ended."""
    with Store.open(store_directory) as store:
        containers = Containers(store)
        known, done = [], True
        for name in names:
            try:
                known.append(containers.find(name))
            except ImageError as error:
                print(f"overlayfs: {error}", file=sys.stderr)
                done = False
        deadlines = {one.id: time.monotonic() + _patience_s(one, timeout_s) for one in known}
        signals = {one.id: stop_signal_of(one, store) for one in known if one.is_in_use}
    ends = Ends(containers, [one for one in known if not one.is_visited])
    for one in known:
        # it has ended, or passes no such signal on: then it is killed
        with suppress(InvalidError, NotFoundError):
            send(containers.again(one), bundle_of(store.path, one), signals.get(one.id, signal.SIGTERM))
    for one in known:
        if not ends.wait(one, deadlines[one.id]):
            with suppress(InvalidError, NotFoundError):
                send(containers.again(one), bundle_of(store.path, one), signal.SIGKILL)
            done = ends.wait(one, after_kill()) and done
        if not is_quiet:
            print(one.name, flush=True)
    ends.close()
    return done


def _patience_s(container: Container, given_s: int | None) -> float:
    found = next((one for one in (given_s, container.settings.stop_timeout_s) if one is not None), _PATIENCE_S)
    return float("inf") if found < 0 else found


def restart(store_directory: Path | None, names: Sequence[str], timeout_s: int | None) -> bool:
    def one(name: str) -> None:
        with Store.open(store_directory) as store:
            container = Containers(store).find(name)
        if container.is_active:
            stop(store_directory, [container.id], timeout_s, is_quiet=True)
        _start(store_directory, name)

    return each(names, one)


def kill(store_directory: Path | None, names: Sequence[str], text: str) -> bool:
    """Send the programs a signal; SIGKILL is waited for."""
    number = signal_of(text)

    def one(name: str) -> None:
        with Store.open(store_directory) as store:
            containers = Containers(store)
            container = containers.find(name)
        ends = Ends(containers, [container])
        send(container, bundle_of(store.path, container), number)
        if number == signal.SIGKILL:
            ends.wait(container, after_kill())
        ends.close()

    return each(names, one)


def wait(store_directory: Path | None, names: Sequence[str]) -> bool:
    """Wait until the programs have ended, and print their exit statuses."""
    done = True
    for name in names:
        try:
            print(wait_for(store_directory, name), flush=True)
        except ImageError as error:
            print(f"overlayfs: {error}", file=sys.stderr)
            done = False
    return done


def wait_for(store_directory: Path | None, name: str) -> int:
    """The exit status of a container, whose last run is awaited; 137 if it was killed with its keeper."""
    with Store.open(store_directory) as store:
        containers = Containers(store)
        container = containers.find(name)
        if not container.is_active:  # its process may have ended since that was read, with a status or before the run
            container = containers.again(container)
        if not container.is_active:
            return exit_code_of(container)
        kept = open_status(containers, container)
    with kept:
        ends = Ends(containers, [container])
        ends.wait(container, None)
        ends.close()
        kept.seek(0)
        return int(kept.read() or b"137")


def pause(store_directory: Path | None, names: Sequence[str], *, is_paused: bool) -> bool:
    """Freeze or thaw all processes of containers, by their cgroup."""

    def one(name: str) -> None:
        container, path = running_under_runc(store_directory, name)
        if (status_of(container, bundle_of(path, container)) == "paused") is is_paused:
            raise InvalidError(f"the container {container.name} is {'paused already' if is_paused else 'not paused'}")
        call_runc(container, path, "pause" if is_paused else "resume")

    return each(names, one)
