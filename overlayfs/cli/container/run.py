"""`overlayfs run` and `create`: from the image's name to a container, and to its program's exit status.

As in docker, 125 means that overlayfs failed, 126 that the program cannot be executed, 127 that it does not exist.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from overlayfs.cli.container.leftovers import sweep
from overlayfs.cli.container.running import Running, overrides_of
from overlayfs.cli.output import explain
from overlayfs.container.anonymous import with_names
from overlayfs.container.containers import Container, Containers
from overlayfs.container.process import FAILED, check_hostname, command_of, failure_status
from overlayfs.container.runtime import Kind, Launch, find_runtime
from overlayfs.container.spec import fields, parts
from overlayfs.container.spec.settings import NO_SETTINGS, OF_CONTAINER, Settings
from overlayfs.container.supervise import launch
from overlayfs.container.volumes import Volumes, inherited, made_mounts, mounts_of
from overlayfs.image.oci.errors import ImageError, InUseError, InvalidError, NotFoundError
from overlayfs.image.oci.signals import signal_of
from overlayfs.image.store.lowers import lower_keys
from overlayfs.image.store.store import Image, Store
from overlayfs.overlay.options import MountError

Pull = Literal["missing", "always", "never"]


class RunRequest(Struct, frozen=True):
    """The command line of `overlayfs run` or `create`."""

    image: str
    settings: Settings
    name: str | None = None
    removes: bool = False
    is_detached: bool = False
    pull: Pull = "missing"


def run(request: RunRequest, store_directory: Path | None) -> int:
    """Run the program until it ends; the exit status. Failures of overlayfs are reported on standard error."""
    return in_dockers_terms(lambda: _run(request, store_directory))


def create(request: RunRequest, store_directory: Path | None) -> int:
    """Make a container that `start` can start, and print its ID."""
    return in_dockers_terms(lambda: _create(request, store_directory))


def in_dockers_terms(work: Callable[[], int]) -> int:
    """The exit status of `work`; a failure becomes one line and docker's status for it."""
    try:
        return work()
    except (ImageError, MountError) as error:
        return _fail(str(error), failure_status(error))
    except OSError as error:
        return _fail(explain(error), failure_status(error))


def _fail(message: str, status: int) -> int:
    print(f"overlayfs: {message}", file=sys.stderr)
    return status


def _create(request: RunRequest, store_directory: Path | None) -> int:
    _check(request, has_input=True)
    with Store.open(store_directory) as store:
        path = store.path
    _pull(request, path)
    with Store.open(path) as store:
        if request.name is not None and Containers(store).named(request.name) is not None:
            raise InUseError(f"the name {request.name} is taken: choose another, or remove that container")
        container, _ = _make_or_claim(store, request)
        made_mounts(container.settings, Volumes(store))
        Containers(store).change(container, process=None, started=0.0)
    print(container.id)
    return 0


def _run(request: RunRequest, store_directory: Path | None) -> int:
    has_terminal = os.isatty(0) and os.isatty(1)
    _check(request, has_input=os.isatty(0) or request.is_detached)
    # a terminal of the program that is not ours is conmon's, as of one that is detached
    is_attached = request.settings.has_terminal and not has_terminal and not request.is_detached
    needed = fields.needs_runc(request.settings)
    needed = ["--detach"] * request.is_detached + ["--tty without a terminal"] * is_attached + needed
    kind, program = _runtime(request, needed, has_terminal=has_terminal)
    with Store.open(store_directory) as store:
        path = store.path
    _pull(request, path)
    with Store.open(path) as store:
        container, image = _make_or_claim(store, request)
    if request.is_detached:
        from overlayfs.cli.container.detached import start_detached

        start_detached(container, path, image.config.config)
        print(container.id)
        return 0
    if is_attached:
        return _run_attached(container, path, image)
    # closed: a program may run for days, and the container's record keeps what it needs from being pruned
    running = Running(container, path, kind, program, keeps_terminal=has_terminal)
    # bubblewrap gives the program our terminal itself, and runc one of its own
    is_direct = kind is Kind.BWRAP and has_terminal
    is_logged = container.settings.has_log and not request.removes and not is_direct

    problem = ""

    def start(plan: Launch, bundle: Path) -> int:
        nonlocal problem
        if not is_logged:
            return launch(kind, program, plan, bundle)
        from overlayfs.container.live.foreground_log import logged

        with logged(running.log) as passing:
            status = launch(kind, program, plan, bundle)
        problem = passing.problem
        return status

    status = running.run(image.config.config, start)
    if problem:  # the container has the program's status all the same
        raise ImageError(f"the program's output could not be passed on: {problem}")
    return FAILED if status is None else status


def _run_attached(container: Container, path: Path, image: Image) -> int:
    """Run detached, pass everything on, and return the exit status of the program."""
    from overlayfs.cli.container.attaching import Attachment
    from overlayfs.cli.container.detached import start_detached

    attachment = Attachment(container, path, with_input=True)
    start_detached(container, path, image.config.config, attachment.open)
    return attachment.follow()


def _check(request: RunRequest, *, has_input: bool) -> None:
    """Refuse what cannot be, before a container is made."""
    settings = request.settings
    if settings.hostname:
        check_hostname(settings.hostname)
    parts.check(settings)
    fields.check(settings)
    if settings.has_terminal and settings.keeps_stdin and not has_input:
        raise InvalidError("-it needs a terminal: standard input leads elsewhere (leave out -t, or use --detach)")


def _runtime(request: RunRequest, needed: list[str], *, has_terminal: bool) -> tuple[Kind, str]:
    """Bubblewrap for what it can do; runc for the rest."""
    given = request.settings.runtime
    if given == Kind.BWRAP.value and needed:
        raise InvalidError(f"{needed[0]} needs runc: leave out --runtime bwrap")
    wanted = Kind.RUNC if needed else (Kind(given) if given else None)
    return find_runtime(wanted, has_terminal=has_terminal)


def _pull(request: RunRequest, path: Path) -> None:
    """Fetch the image as --pull says, with progress on standard error."""
    if request.pull == "never":
        return
    missing = _why_missing(request.image, path)
    if request.pull == "missing" and missing is None:
        return
    from overlayfs.cli.store.transfer import Wanted, access, fetch_image

    wanted = Wanted(request.image, None, False, True)
    try:
        fetch_image(path, wanted, access(None, False), quiet=not sys.stderr.isatty())
    except ImageError as error:
        raise type(error)(f"{missing or request.image}; and it could not be pulled: {error}") from None


def _why_missing(image: str, path: Path) -> str | None:
    """What the store says if it does not have the image; None if it has."""
    with Store.open(path) as store:
        try:
            store.find(image)
        except NotFoundError as error:
            return str(error)
    return None


def _make_or_claim(store: Store, request: RunRequest) -> tuple[Container, Image]:
    containers = Containers(store)
    sweep(store)
    image = store.find(request.image)
    layers = lower_keys(store, image)
    found = None if request.name is None else containers.named(request.name)
    settings = _kept(request.settings, containers, image, found.settings if found else NO_SETTINGS)
    mounts_of(settings, Volumes(store))  # refused before a container is made
    if found is not None:
        if request.removes:
            raise InUseError(f"the container {found.name} exists already: leave out --rm to run in it again")
        return containers.claim(found, image, settings), image
    command = command_of(image.config.config, overrides_of(settings))
    made = containers.create(
        request.name, image, layers, is_ephemeral=request.removes, settings=settings, command=command
    )
    return made, image


def _kept(settings: Settings, containers: Containers, image: Image, before: Settings) -> Settings:
    """The options as the record keeps them: without the caller's environment, with the image's labels, and with names
    for all volumes, those that the container had `before`."""
    environment = [
        text if "=" in text else f"{text}={os.environ[text]}"
        for text in settings.environment
        if "=" in text or text in os.environ
    ]
    network = settings.network
    if network.startswith(OF_CONTAINER):  # by its ID: it may be renamed
        network = OF_CONTAINER + containers.find(network.removeprefix(OF_CONTAINER)).id
    return replace(
        with_names(inherited(settings, containers), image.config.config.volumes, before),
        network=network,
        environment=environment,
        labels={**image.config.config.labels, **settings.labels},
    )


_DEFAULT_STOP: Final = "SIGTERM"


def stop_signal_of(container: Container, store: Store) -> int:
    """The signal that ends the program: that of the options, else the image's."""
    text = container.settings.stop_signal
    if not text:
        text = store.load_by_manifest(container.manifest).config.config.stop_signal
    try:
        return signal_of(text or _DEFAULT_STOP)
    except InvalidError:  # the image's
        return signal_of(_DEFAULT_STOP)
