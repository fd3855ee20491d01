"""`overlayfs healthcheck run`, and the checks at intervals that the keeper of a detached container leaves to a process.

There is no daemon: that process ends with the keeper, and containers in the foreground are checked on request only.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from overlayfs.cli.background import leave_behind, wait_until_ended
from overlayfs.cli.container.executing import ExecRequest, exec_words
from overlayfs.cli.container.under_runc import bundle_of
from overlayfs.container.containers import Containers
from overlayfs.container.health import Health, Probe, check_of, command_of_check
from overlayfs.container.process import CannotRunError
from overlayfs.image.oci.errors import ImageError, InvalidError
from overlayfs.image.store.store import Store
from overlayfs.overlay.options import MountError

_TOO_LONG: Final = -1
_NOT_THERE: Final = 127
_LONGEST_OUTPUT: Final = 4096
_CHUNK: Final = 65536


def run_check(store_directory: Path | None, name: str) -> int:
    """As podman has it: nothing is said of a check that passes."""
    health = check(store_directory, name)
    if health.probes[-1].exit_status == 0:
        return 0
    print(health.status)
    return 1


def check(store_directory: Path | None, name: str) -> Health:
    """Run the health check of a container once; what is known of its health now. Raises ImageError if it has none, or
    does not run."""
    with Store.open(store_directory) as store:
        container, path = Containers(store).find(name), store.path
        config = store.load_by_manifest(container.manifest).config.config
    found = check_of(container.settings.health, config.healthcheck)
    if found is None:
        raise InvalidError(f"the container {container.name} has no health check: see run --health-cmd")
    request = ExecRequest(container.id, command_of_check(found, config.shell))
    probe = _probe(bundle_of(path, container), request, found.timeout / 1e9)
    with Store.open(store_directory) as store:
        return Containers(store).note_probe(container, probe, found)


def _probe(bundle: Path, request: ExecRequest, timeout_s: float) -> Probe:
    """Run the command, which is killed if it takes too long."""
    started = time.time()
    pid_file = bundle / f"check-{os.getpid()}"
    try:
        words, specification_fd = exec_words(bundle.parents[2], request, ["--pid-file", str(pid_file)])
    except CannotRunError as error:
        return Probe(started, time.time(), _NOT_THERE, str(error))
    with subprocess.Popen(
        words,
        pass_fds=[specification_fd],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        os.close(specification_fd)
        output, has_ended = _output(process, time.monotonic() + timeout_s)
        if not has_ended:
            _kill(process, pid_file)
    pid_file.unlink(missing_ok=True)
    status = process.returncode if has_ended else _TOO_LONG
    text = output.decode("utf-8", "replace") if has_ended else f"it took more than {timeout_s:g} s"
    return Probe(started, time.time(), status, text)


def _output(process: subprocess.Popen[bytes], until: float) -> tuple[bytes, bool]:
    """The start of what it prints, and whether it has ended by then; what it left running may go on printing."""
    assert process.stdout is not None
    out_fd, end_fd = process.stdout.fileno(), os.pidfd_open(process.pid)
    poller = select.poll()
    poller.register(end_fd, select.POLLIN)
    poller.register(out_fd, select.POLLIN)
    output, has_ended = b"", False
    try:
        while not has_ended and (left := until - time.monotonic()) > 0:
            ready = {fd for fd, _ in poller.poll(left * 1000)}
            has_ended = end_fd in ready
            if out_fd in ready:
                data = os.read(out_fd, _CHUNK)
                output = (output + data)[:_LONGEST_OUTPUT]
                if not data:
                    poller.unregister(out_fd)
        return output, has_ended
    finally:
        os.close(end_fd)


def _kill(process: subprocess.Popen[bytes], pid_file: Path) -> None:
    """Kill the program in the container, which does not end with runc, and runc."""
    with suppress(OSError, ValueError):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    process.kill()


def keep_checking(store: Path, container_id: str, interval_s: float) -> None:
    """Leave a process behind that checks a container of this process at intervals, until this process has ended."""
    keeper = os.getpid()
    leave_behind(lambda: _check_until_ended(store, container_id, interval_s, keeper))


def _check_until_ended(store: Path, container_id: str, interval_s: float, keeper: int) -> None:
    with suppress(ProcessLookupError):
        keeper_fd = os.pidfd_open(keeper)
        while not wait_until_ended(keeper_fd, interval_s):
            with suppress(ImageError, MountError, OSError):  # it is paused, or ends
                check(store, container_id)
