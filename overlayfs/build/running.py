"""How does RUN run its command? As `overlayfs run` does, in the sandbox of its step; with the mounts of its flags.

The files of a secret or a here-document are in memory, mounted in the namespace of the step, and in no layer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from ..container.containers import Containers
from ..container.live import names
from ..container.mountpoints import Mountpoints
from ..container.process import Overrides, process_of
from ..container.runtime import SYSTEM, Bind, Kind, Launch, Network, find_runtime
from ..container.supervise import launch
from ..container.users import root_alone
from ..image.oci.documents import RunConfig
from ..image.store.store import Store
from ..tree.syscalls import mount
from .caches import claim_caches
from .processes import join_limit
from .reports import Output
from .run_mounts import MountPlan, bind_of
from .sandbox import Sandbox

_HOSTNAME: Final = "buildkitsandbox"
"""What BuildKit calls the host: programs write it into what they build."""
_SCRIPTS: Final = "/dev/pipes"


@dataclass(frozen=True, slots=True)
class Command:
    """One RUN: its words, variables besides the image's ENV, files at `/dev/pipes` by name, and mounts."""

    words: tuple[str, ...]
    variables: Mapping[str, str]
    scripts: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[MountPlan] = ()
    network: Network = Network.HOST
    process_limit: int | None = None
    hosts: Sequence[str] = ()


def run_command(store: Store, sandbox: Sandbox, config: RunConfig, command: Command, output: Output) -> int:
    """Run the command to its end; its exit status. Raises ImageError."""
    kind, program = find_runtime(Kind.BWRAP, has_terminal=False)  # programs of runc outlive a build that is killed
    bundle = sandbox.space("bundle")
    scripts = _written(sandbox, command.scripts)
    places = Mountpoints(sandbox.inside)
    sandbox.stack.callback(_remove, store, sandbox, places)
    for path in SYSTEM:
        places.own(path)
    binds = [
        *_name_files(sandbox, places, command),
        *(Bind(str(path), target, is_read_only=True) for target, path in scripts.items()),
    ]
    for plan in claim_caches(sandbox, command.mounts):
        binds += bind_of(sandbox, places, plan, config)
    sources = {bind.target: Path(bind.source) for bind in binds}
    items = tuple(f"{name}={value}" for name, value in command.variables.items())
    overrides = Overrides(command.words, entrypoint="", environment=items)
    process = process_of(config, overrides, sandbox.inside, _HOSTNAME, {}, sources)
    if not sandbox.has_users:
        process = replace(process, user=root_alone(process.user))
    places.directory(process.directory)
    _note(store, sandbox, places)
    start = Launch(sandbox.root, sandbox.container.place, _HOSTNAME, process, binds, command.network)
    if command.process_limit is not None:
        join_limit(sandbox.container.id, command.process_limit)
    with _streams(output):
        return launch(kind, program, start, bundle)


def _name_files(sandbox: Sandbox, places: Mountpoints, command: Command) -> Iterator[Bind]:
    """The files that say how hosts are called, as in a container of `run`."""
    texts = names.made_files(command.network.value, _HOSTNAME, command.hosts, ())
    return names.binds(sandbox.space("names"), texts, places)


def _note(store: Store, sandbox: Sandbox, places: Mountpoints) -> None:
    """Keep in the record which paths were made to mount on, as they are no changes of the step."""
    scaffold = [os.fsdecode(path.lstrip(b"/")) for path in places.made]
    Containers(store).change(sandbox.container, scaffold=scaffold)


def _remove(store: Store, sandbox: Sandbox, places: Mountpoints) -> None:
    places.remove()
    _note(store, sandbox, places)


def _written(sandbox: Sandbox, scripts: Mapping[str, str]) -> dict[str, Path]:
    """The scripts as files, by their paths in the container. On the host no file has a name of the Dockerfile."""
    if not scripts:
        return {}
    space = sandbox.space("scripts")
    mount(b"tmpfs", os.fsencode(space), b"tmpfs", 0, b"mode=755")
    files = {f"{_SCRIPTS}/{name}": space / str(number) for number, name in enumerate(scripts)}
    for file, text in zip(files.values(), scripts.values(), strict=True):
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        file.chmod(0o755)
    return files


@contextmanager
def _streams(output: Output) -> Iterator[None]:
    """Standard input is empty, and both other streams are the output."""
    sys.stdout.flush()
    sys.stderr.flush()
    with ExitStack() as stack:
        for streams, source in (((0,), os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)), ((1, 2), output())):
            for stream in streams:
                stack.callback(_restore, os.dup(stream), stream)
                os.dup2(source, stream)
            os.close(source)
        yield


def _restore(kept: int, stream: int) -> None:
    os.dup2(kept, stream)
    os.close(kept)
