"""How does a container get a network of its own? A network namespace, which slirp4netns(1) connects to the host's.

The namespace is made before the runtime starts, so any runtime joins it by its path. slirp4netns needs no privileges
and publishes ports on request over its API socket; it ends when the descriptor `--exit-fd` is closed, that is with the
process that holds the `PrivateNetwork`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from msgspec.structs import replace

from ...image.oci.errors import ImageError, InUseError, NotFoundError
from ...tree.syscalls import unshare
from ..spec.parts import Port
from ..spec.settings import ADDRESS

_CLONE_NEWNET: Final = 0x4000_0000  # linux/sched.h
_ANSWER: Final = 65536
_PATIENCE_S: Final = 10.0


def find_slirp() -> str:
    """Raises NotFoundError."""
    found = shutil.which("slirp4netns")
    if found is None:
        raise NotFoundError("slirp4netns is not installed, and private networks need it: install that package")
    return found


class PrivateNetwork:
    """A live network; a context manager. `path` leads to its namespace, `ports` are published."""

    def __init__(self, program: str, directory: Path, ports: Sequence[Port]) -> None:
        """`directory` takes the API socket. Raises ImageError, InUseError for a port."""
        self._namespace_fd = _new_namespace()
        self.path = f"/proc/{os.getpid()}/fd/{self._namespace_fd}"
        self._process, self._exit_fd = _start(program, directory, self.path)
        try:
            self.ports = [_publish(directory, port) for port in ports]
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        os.close(self._exit_fd)
        os.close(self._namespace_fd)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _new_namespace() -> int:
    """A descriptor of a new network namespace; this process stays in its own."""
    ready_fd, told_fd = os.pipe()
    wait_fd, done_fd = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(done_fd)
            unshare(_CLONE_NEWNET)
            os.write(told_fd, b"x")
            os.read(wait_fd, 1)
        finally:
            os._exit(0)
    os.close(told_fd)
    os.close(wait_fd)
    try:
        if not os.read(ready_fd, 1):
            raise ImageError("a network namespace cannot be made here")
        return os.open(f"/proc/{child}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_fd)
        os.close(done_fd)
        os.waitpid(child, 0)


def _start(program: str, directory: Path, namespace: str) -> tuple[subprocess.Popen[bytes], int]:
    """slirp4netns, once the network is up, and the descriptor whose end ends it."""
    ready_fd, told_fd = os.pipe()
    end_fd, exit_fd = os.pipe()
    words = [program, "--configure", "--mtu=65520", "--disable-host-loopback", "--enable-seccomp"]
    words += ["--api-socket=slirp", f"--ready-fd={told_fd}", f"--exit-fd={end_fd}"]
    log = os.open(directory / "slirp.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    (directory / "slirp").unlink(missing_ok=True)
    try:
        process = subprocess.Popen(
            [*words, "--netns-type=path", namespace, "tap0"],
            pass_fds=[told_fd, end_fd],
            cwd=directory,  # the path of a socket is limited to 107 bytes
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    finally:
        for fd in (told_fd, end_fd, log):
            os.close(fd)
    with os.fdopen(ready_fd, "rb") as ready:
        is_up = bool(ready.read(1))
    if not is_up:
        os.close(exit_fd)
        process.wait()
        lines = (directory / "slirp.log").read_text(errors="replace").splitlines()
        said = [line for line in lines if line and not line.startswith("WARNING")] or ["it does not say why"]
        raise ImageError(f"slirp4netns could not make the network: {said[0]}")
    return process, exit_fd


def _publish(directory: Path, port: Port) -> Port:
    """The port with the number that it has on the host."""
    given = port if port.host and not port.last else replace(port, host=_free_port(port), last=0)
    arguments = {
        "proto": given.protocol,
        "host_addr": given.address or "0.0.0.0",
        "host_port": given.host,
        "guest_addr": ADDRESS,
        "guest_port": given.container,
    }
    answer = _ask(directory, {"execute": "add_hostfwd", "arguments": arguments})
    if "error" in answer:
        _check_is_free(given)
        raise ImageError(f"the port {given} cannot be published: {answer['error'].get('desc', answer['error'])}")
    return given


def _check_is_free(port: Port) -> None:
    """slirp4netns does not say why; the kernel does."""
    try:
        _bound(port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InUseError(f"the port {port.host} of the host is in use: choose another") from None
        raise ImageError(f"the port {port} cannot be published: {error.strerror}") from None


def _free_port(port: Port) -> int:
    """Any of the host, or the first free one of its range. Raises InUseError."""
    for number in range(port.host, (port.last or port.host) + 1):
        try:
            with _bound(replace(port, host=number)) as probe:
                return int(probe.getsockname()[1])
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ImageError(f"the port {port} cannot be published: {error.strerror}") from None
    raise InUseError(f"the ports {port.host}-{port.last} of the host are in use: choose others")


def _bound(port: Port) -> socket.socket:
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    probe = socket.socket(socket.AF_INET, kind)
    try:
        probe.bind((port.address, port.host))
    except OSError:
        probe.close()
        raise
    return probe


def _ask(directory: Path, question: dict[str, object]) -> dict[str, dict[str, str]]:
    """One request on the API socket, which answers one request a connection."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as api:
            api.settimeout(_PATIENCE_S)
            api.connect(f"/proc/self/fd/{fd}/slirp")
            api.sendall(json.dumps(question).encode())
            api.shutdown(socket.SHUT_WR)
            answer = json.loads(api.recv(_ANSWER) or b"{}")
    except (OSError, ValueError) as error:
        raise ImageError(f"slirp4netns does not answer: {error}") from None
    finally:
        os.close(fd)
    return answer if isinstance(answer, dict) else {}
