"""How is a container started that outlives its command? By a keeper, which serves its tree while conmon supervises it.

The command and the keeper talk over a connection: the keeper says `created`, and waits for one byte, so that the
command may attach first; then `started`, or why not, as JSON.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from overlayfs.cli.background import start_behind
from overlayfs.cli.container.running import Running
from overlayfs.cli.output import explain
from overlayfs.container import anonymous
from overlayfs.container.containers import Container, Containers
from overlayfs.container.health import Health, check_of
from overlayfs.container.live.conmon import Programs, find_conmon, supervise
from overlayfs.container.process import CannotRunError, NotThereError
from overlayfs.container.runtime import Kind, find_runtime
from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.oci.errors import ImageError
from overlayfs.image.store.store import Store
from overlayfs.image.store.uses import Process
from overlayfs.overlay.options import MountError

_KINDS = {kind.__name__: kind for kind in (NotThereError, CannotRunError, ImageError)}
_LONGEST = 65536


def start_detached(
    container: Container, store: Path, config: RunConfig, before_start: Callable[[Path], None] | None = None
) -> None:
    """Start a container that this process has claimed; `before_start` gets its bundle once the program waits.

    Raises ImageError if it could not be started; then the container is free again.
    """
    try:
        programs = Programs(find_conmon(), find_runtime(Kind.RUNC, has_terminal=False)[1])
    except BaseException:
        with Store.open(store) as opened:
            anonymous.release(opened, container)
        raise
    running = Running(container, store, Kind.RUNC, programs.runc)
    with start_behind(lambda other: _keep(_Gate(other), running, programs, config)) as keeper:
        _hear(keeper)
        if before_start is not None:
            before_start(running.bundle)
        keeper.sendall(b"g")
        _hear(keeper)


def _hear(keeper: socket.socket) -> None:
    """Raises what the keeper reports."""
    said: dict[str, Any] = json.loads(keeper.recv(_LONGEST) or b'{"error": "its keeper died"}')
    if "error" in said:
        raise _KINDS.get(said.get("kind", ""), ImageError)(said["error"])


class _Gate(Struct, frozen=True):
    """The keeper's side of the connection."""

    connection: socket.socket

    def created(self) -> None:
        self.connection.sendall(b"{}")
        if not self.connection.recv(1):
            raise ImageError("the command that starts it was killed")

    def started(self) -> None:
        self.connection.sendall(b"{}")
        self.connection.close()

    def failed(self, error: Exception) -> None:
        text = explain(error) if isinstance(error, OSError) and not isinstance(error, MountError) else str(error)
        kind = next((name for name, known in _KINDS.items() if isinstance(error, known)), "")
        try:
            self.connection.sendall(json.dumps({"error": text, "kind": kind}).encode())
        except OSError:  # it was started, or nobody waits
            return


def _keep(gate: _Gate, running: Running, programs: Programs, config: RunConfig) -> None:
    """The keeper, from its claim until the container is free again."""
    try:
        check = check_of(running.container.settings.health, config.healthcheck)
        health = None if check is None else Health()
        with Store.open(running.store) as store:
            claimed = Containers(store).change(
                running.container, process=Process.of(os.getpid()), is_detached=True, health=health
            )
        kept = Running(claimed, running.store, running.kind, running.program)

        def started() -> None:
            gate.started()
            if check is not None:
                from overlayfs.cli.container.checking import keep_checking  # few containers have one

                keep_checking(kept.store, claimed.id, check.interval / 1e9)

        kept.run(
            config,
            lambda plan, bundle: supervise(programs, plan, bundle, kept.log, gate.created, started),
        )
    except (ImageError, MountError, OSError) as error:
        gate.failed(error)
