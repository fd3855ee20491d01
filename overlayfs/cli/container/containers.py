"""`overlayfs ps`, `containers`, `rm` and `reset`: list, remove and reset containers."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from overlayfs.cli.background import leave_behind, wait_until_ended
from overlayfs.cli.container.leftovers import clean_up, find, sweep
from overlayfs.cli.container.selecting import are_passed, tests_of
from overlayfs.cli.mounts.listing import status_of as mounted
from overlayfs.cli.mounts.live import CommandError, mount_at, resolve
from overlayfs.cli.mounts.umount import take_down
from overlayfs.cli.output import Cell, format_duration, print_json, print_table, printable, safe
from overlayfs.cli.template import print_filled
from overlayfs.container import anonymous
from overlayfs.container.containers import BUNDLE, Container, Containers
from overlayfs.container.live.signals import program_of, send
from overlayfs.container.live.status import status_of
from overlayfs.fuse import commanding
from overlayfs.image.oci.errors import ImageError, InUseError, InvalidError, NotFoundError
from overlayfs.image.store.staging import remove_tree
from overlayfs.image.store.store import Store, default_directory
from overlayfs.overlay.changes import Comparison
from overlayfs.overlay.options import MountError

_PATIENCE_S: Final = 10.0
_LONGEST_COMMAND: Final = 40


def show_containers(
    store_directory: Path | None,
    *,
    everything: bool,
    quiet: bool,
    as_json: bool,
    filters: Sequence[str] = (),
    template: str = "",
) -> None:
    """List the containers that run or are mounted, or all, newest first. Raises NotFoundError; at the end InvalidError
    for a container whose record is damaged."""
    with Store.open(store_directory) as store:
        containers = Containers(store)
        sweep(store)
        tests = tests_of(store, filters, lambda one: _status(containers, one))
        everything = everything or "status" in tests
        readable = containers.readable()
        listed = [one for one in reversed(readable.containers) if everything or one.is_active]
        found = [one for one in listed if are_passed(tests, one)]
        if as_json or template == "json":
            print_json([_document(containers, one) for one in found])
            readable.check()
            return
        rows = [_row(containers, one) for one in found]
    if quiet:
        for one in found:
            print(one.name)
    elif template:
        print_filled(template, [_fields(one, row) for one, row in zip(found, rows, strict=True)])
    elif found:
        _print_table(found, rows)
    readable.check()


def _print_table(found: Sequence[Container], rows: list[list[Cell]]) -> None:
    """Ports have a column if there are any."""
    headings = ["NAME", "IMAGE", "STATUS", "CREATED", "COMMAND"]
    if any(map(_ports, found)):
        headings.append("PORTS")
        rows = [[*row, Cell(_ports(one))] for row, one in zip(rows, found, strict=True)]
    print_table(headings, rows)


def _ports(container: Container) -> str:
    return ", ".join(container.ports) if container.is_active else ""


def _fields(container: Container, row: Sequence[Cell]) -> dict[str, str]:
    """What a template can name, as docker calls it."""
    _, image, status, age, command = (cell.text for cell in row)
    return {
        "ID": container.id[:12],
        "Names": container.name,
        "Image": image,
        "Command": command,
        "CreatedAt": container.created,
        "RunningFor": age,
        "Status": status,
        "State": status.partition(" ")[0],
        "Ports": _ports(container),
        "Labels": ",".join(f"{name}={value}" for name, value in container.settings.labels.items()),
    }


def _document(containers: Containers, container: Container) -> dict[str, Any]:
    return {
        "name": container.name,
        "id": container.id,
        "image": container.image,
        "manifest": container.manifest,
        "status": _status(containers, container),
        "pid": container.process.pid if container.process and container.is_in_use else None,
        "mountpoint": container.mountpoint or None if container.is_active else None,
        "exit_status": container.exit_status,
        "health": container.health.status if container.health and container.is_active else None,
        "created": container.created,
        "command": container.command,
        "ports": container.ports if container.is_active else [],
        "labels": container.settings.labels,
        "upper": str(containers.upper(container)),
        "layers": container.layers,
    }


def _row(containers: Containers, container: Container) -> list[Cell]:
    word = _status(containers, container)
    style = _style(word, container)
    if word in ("running", "paused"):
        word += f" {format_duration(time.time() - container.started)}"
        word += f" ({container.health.status})" if container.health else ""
    elif word == "mounted":
        word += f" on {printable(os.fsencode(container.mountpoint))}"
    elif container.exit_status is not None:
        word += f" ({container.exit_status}) {format_duration(time.time() - container.ended)} ago"
    age = time.time() - datetime.fromisoformat(container.created).timestamp()
    command = printable(os.fsencode(shlex.join(container.command)))
    shown = command if len(command) <= _LONGEST_COMMAND else command[: _LONGEST_COMMAND - 1] + "…"
    return [
        Cell(container.name, "bold"),
        Cell(container.image),
        Cell(word, style),
        Cell(f"{format_duration(age)} ago"),
        Cell(shown or "-", "" if shown else "dim"),
    ]


def _status(containers: Containers, container: Container) -> str:
    return status_of(container, containers.directory(container) / BUNDLE)


def _style(status: str, container: Container) -> str:
    if status == "paused" or container.exit_status:
        return "yellow"
    return "green" if container.is_active else "" if container.exit_status == 0 else "dim"


def compare_container(
    store_directory: Path | None, name: str, since: str | None = None, until: str | None = None
) -> Comparison | None:
    """The changes of a container, or those between snapshots of it; None if none has that name or ID. The caller closes
    the result."""
    if not (store_directory or default_directory()).exists():  # listing must not make a store
        return None
    with Store.open(store_directory) as store:
        containers = Containers(store)
        try:
            return containers.compare(containers.find(name), since, until)
        except NotFoundError:
            return None


def remove(store_directory: Path | None, names: Sequence[str], *, force: bool, with_volumes: bool) -> bool:
    """Remove containers, on request with their anonymous volumes; whether all are gone. Failures are reported on
    standard error; with `force` it is none that a container is not there, as docker and podman have it."""

    def one(store: Store, named: str) -> None:
        containers = Containers(store)
        try:
            container = find(store, named)
        except NotFoundError:
            if force:
                return
            raise
        first = partial(anonymous.remove, store) if with_volumes else None
        try:
            if force:
                container = _freed(store, container)
            remove_tree(containers.take_away(container, first))
        except InUseError as error:
            raise InUseError(f"{error}, or use --force" if container.is_in_use and not force else str(error)) from None
        except NotFoundError:
            if not container.is_ephemeral and not force:  # otherwise it went with its process, or somebody was faster
                raise
        print(named)

    return _each(store_directory, names, one)


def _freed(store: Store, container: Container) -> Container:
    """The container once nothing uses it any more, what is just starting in it included. Raises NotFoundError."""
    containers = Containers(store)
    ended = None
    while container.is_in_use and container.process != ended:
        _end_use(container, containers.directory(container))
        ended = container.process
        container = containers.again(container)
    clean_up(store, container)  # its process may have been killed
    return container


def _end_use(container: Container, directory: Path) -> None:
    """End the process that uses the container: it ends with its program or mount, else by SIGTERM, then by force."""
    if container.mountpoint:
        try:
            take_down(container.mountpoint, lazy=False)
        except CommandError:
            if mount_at(os.fsencode(container.mountpoint)) is not None:
                raise  # otherwise it is mounted nowhere, or in other mount namespaces
    assert container.process is not None
    with suppress(ProcessLookupError):
        has_program = container.is_detached or program_of(container, directory / BUNDLE) is not None
        if has_program:
            with suppress(InvalidError):
                send(container, directory / BUNDLE, signal.SIGKILL)
        pid_fd = container.process.pidfd()
        try:
            if not has_program:
                signal.pidfd_send_signal(pid_fd, signal.SIGTERM)
            if not wait_until_ended(pid_fd, _PATIENCE_S):
                signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
                wait_until_ended(pid_fd, _PATIENCE_S)
        finally:
            os.close(pid_fd)


def rename(store_directory: Path | None, name: str, new: str) -> None:
    """Give a container another name, even if it runs. Raises InUseError, InvalidError, NotFoundError."""
    with Store.open(store_directory) as store:
        Containers(store).rename(find(store, name), new)


def reset(store_directory: Path | None, names: Sequence[str]) -> bool:
    """Discard the changes of containers, running ones too, and of live mounts; whether all were reset."""
    left: list[Path] = []

    def one(store: Store, name: str) -> None:
        containers = Containers(store)
        mountpoint, upper = _mountpoint_of(containers, name)
        if mountpoint is not None:
            _reset_mount(mountpoint, upper)
            return
        container = find(store, name)
        if container.is_active:
            from overlayfs.cli.container.resetting import reset_running  # most resets are of others

            reset_running(container, containers.root(container), containers.upper(container))
        else:
            left.append(containers.reset(container))

    paths = [name for name in names if "/" in name]  # which need no store
    others = [name for name in names if "/" not in name]
    done = _try_each(paths, _reset_mount)
    done = (not others or _each(store_directory, others, one)) and done
    if left:
        leave_behind(lambda: _remove(store_directory, left))
    return done


def _mountpoint_of(containers: Containers, name: str) -> tuple[str | None, Path | None]:
    """Where a container is mounted for people to use, None for one that is not, and its upper. A container precedes a
    mountpoint of the same name."""
    try:
        container = containers.find(name)
    except NotFoundError:
        if mount_at(resolve(os.fsencode(name))) is None:
            raise
        return name, None
    return container.mountpoint or None if container.is_in_use else None, containers.upper(container)


def _reset_mount(mountpoint: str, upper: Path | None = None) -> None:
    """Reset the mount, which must have this upper: another one may cover it."""
    entry, status = mounted(mountpoint)
    if upper is not None and status.upper != bytes(upper):
        raise CommandError(f"{printable(entry.mountpoint)}: another mount covers that of the container")
    commanding.reset(entry.mountpoint)


def _remove(store_directory: Path | None, left: Sequence[Path]) -> None:
    with Store.open(store_directory):  # so that nobody prunes it meanwhile
        for path in left:
            remove_tree(path)


def _each(store_directory: Path | None, names: Sequence[str], work: Callable[[Store, str], None]) -> bool:
    """Do `work` on each container, even if it fails on others; whether it succeeded on all."""
    with Store.open(store_directory) as store:
        return _try_each(names, lambda name: work(store, name))


def _try_each(names: Sequence[str], work: Callable[[str], None]) -> bool:
    done = True
    for name in names:
        try:
            work(name)
        except (CommandError, ImageError, MountError) as error:
            print(f"overlayfs: {safe(str(error))}", file=sys.stderr)
            done = False
    return done
