"""`overlayfs exec`: one more program in a running container, as the container's own is confined."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlayfs.cli.container.under_runc import begin_again_inside, bundle_of, runc_words, running_under_runc
from overlayfs.container.containers import Container
from overlayfs.container.live.signals import program_of
from overlayfs.container.live.status import status_of
from overlayfs.container.process import Overrides, Process, process_of
from overlayfs.container.root_paths import Inside
from overlayfs.container.runtime import console_size
from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.store.store import Store


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """The command line of `overlayfs exec`."""

    name: str
    command: tuple[str, ...]
    environment: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    has_terminal: bool = False
    keeps_stdin: bool = False
    is_detached: bool = False


def execute(store_directory: Path | None, request: ExecRequest) -> int:
    """Become runc, which runs the program. Raises ImageError; NotThereError or CannotRunError for the program."""
    if request.has_terminal and not request.is_detached:
        _check_terminal(with_input=request.keeps_stdin)
    words, specification_fd = exec_words(store_directory, request, ["--detach"] if request.is_detached else [])
    os.set_inheritable(specification_fd, True)
    if not request.keeps_stdin or request.is_detached:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(words[0], words)


def _check_terminal(*, with_input: bool) -> None:
    """Refuse what docker refuses, and what runc cannot, which needs a terminal of ours for that of the program."""
    if with_input and not os.isatty(0):
        raise InvalidError("-it needs a terminal: standard input leads elsewhere (leave out -t)")
    if not any(map(os.isatty, (0, 1, 2))):
        raise InvalidError("--tty needs a terminal: standard input, output and error lead elsewhere")


def exec_words(store_directory: Path | None, request: ExecRequest, options: Sequence[str]) -> tuple[list[str], int]:
    """The command line of runc with these options, and the descriptor that it must inherit: of an anonymous file that
    describes the process, which runc closes before it runs the program. Raises as `execute`."""
    container, store = running_under_runc(store_directory, request.name)
    bundle = bundle_of(store, container)
    if status_of(container, bundle) == "paused":
        raise InvalidError(f"the container {container.name} is paused: see overlayfs unpause")
    own = json.loads((bundle / "config.json").read_bytes())["process"]
    pid = program_of(container, bundle) or 0
    begin_again_inside(pid, store)
    environment = _inherited(container, store, own["env"], as_another=bool(request.user))
    with Inside(f"/proc/{pid}/root".encode()) as inside:
        process = _process(request, {**own, "env": environment}, inside)
    fd = os.memfd_create("process")
    os.write(fd, json.dumps(_specification(request, own, process), ensure_ascii=False).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    words = [*runc_words(container, store), "exec", "--process", f"/proc/self/fd/{fd}", *options, container.place]
    return words, fd


def _inherited(container: Container, store: Path, environment: list[str], *, as_another: bool) -> list[str]:
    """What the program inherits of the container's environment: not the HOME of the container's user, unless it was set
    for any user."""
    if not as_another:
        return environment
    with Store.open(store) as opened:
        image = opened.load_by_manifest(container.manifest).config.config
    if any(item.partition("=")[0] == "HOME" for item in (*image.env, *container.settings.environment)):
        return environment
    return [item for item in environment if not item.startswith("HOME=")]


def _process(request: ExecRequest, own: dict[str, Any], inside: Inside) -> Process:
    """The process, found in the tree that the container has now."""
    user = own["user"]
    config = RunConfig(
        user=f"{user['uid']}:{user['gid']}",
        env=own["env"],
        working_dir=own["cwd"],
    )
    overrides = Overrides(request.command, None, request.environment, request.working_directory, request.user)
    process = process_of(config, overrides, inside, "", os.environ)
    if request.working_directory:
        _check_directory(inside, process.directory)
    return process


def _check_directory(inside: Inside, directory: str) -> None:
    try:
        is_directory = stat.S_ISDIR(inside.stat(os.fsencode(directory)).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_directory = False
    if not is_directory:
        raise InvalidError(f"{directory} in the container is no directory")


def _specification(request: ExecRequest, own: dict[str, Any], process: Process) -> dict[str, Any]:
    """The container's own process with other words, user and terminal."""
    user = process.user
    bounding = own["capabilities"]["bounding"]
    effective = bounding if user.uid == 0 else []
    groups = list(user.groups) if request.user else own["user"]["additionalGids"]
    return {
        **own,
        "terminal": request.has_terminal,
        **console_size(),
        "args": list(process.arguments),
        "env": [f"{name}={value}" for name, value in process.environment.items()],
        "cwd": process.directory,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": groups},
        "capabilities": {"bounding": bounding, "permitted": effective, "effective": effective},
    }
