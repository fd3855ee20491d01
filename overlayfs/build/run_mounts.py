"""What does `RUN --mount=…` show to the command? Files of the context, a stage or an image, a cache, memory, secrets.

Dockerfile reference, "RUN --mount". Nothing that is mounted gets into a layer, and secrets are in memory only.
"""

from __future__ import annotations

import fcntl
import os
import posixpath
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..container.mountpoints import Mountpoints
from ..container.root_paths import Inside
from ..container.runtime import Bind
from ..image.oci.documents import RunConfig
from ..image.oci.errors import InvalidError, NotFoundError
from ..image.oci.limits import Limits
from ..tree.syscalls import mount
from .files.sources import Tree
from .files.writer import TreeWriter, renamed
from .sandbox import Sandbox

_ALLOWED: Final = {
    "bind": {"from", "source", "target", "readwrite"},
    "cache": {"id", "target", "sharing", "mode", "uid", "gid", "readonly"},
    "tmpfs": {"target", "size"},
    "secret": {"id", "target", "required", "mode", "uid", "gid", "env"},
    "ssh": {"id", "target", "required", "mode", "uid", "gid"},
}
_SYNONYMS: Final = {"src": "source", "dst": "target", "destination": "target", "rw": "readwrite", "ro": "readonly"}
_SWITCHES: Final = frozenset({"readwrite", "readonly", "required"})
_COPY: Final = "context"
_SHARING: Final = ("shared", "private", "locked")


@dataclass(frozen=True, slots=True)
class MountPlan:
    """One mount. `lowers` are the layers of the stage or image to bind, top first; `source` is a directory or file of
    the host: the context, a cache's directory, a socket. `tree` is the context if files of it are ignored. `secret` is
    the content of a secret that was given."""

    kind: str
    options: dict[str, str]
    lowers: Sequence[Path] = ()
    source: Path | None = None
    tree: Tree | None = None
    limits: Limits = field(default_factory=Limits)
    secret: bytes | None = field(default=None, repr=False)

    @property
    def secret_name(self) -> str:
        return self.options.get("id") or posixpath.basename(self.options.get("target", ""))

    def is_set(self, name: str) -> bool:
        return self.options.get(name, "false") not in ("false", "0")

    def number(self, name: str, default: int, base: int = 10) -> int:
        text = self.options.get(name)
        try:
            return default if text is None else int(text, base)
        except ValueError:
            raise InvalidError(f"--mount: {name}={text} is no number") from None


def parse_mount(text: str) -> MountPlan:
    """The words of one flag. Raises InvalidError."""
    options: dict[str, str] = {}
    for word in text.split(","):
        name, equals, value = word.strip().partition("=")
        name = _SYNONYMS.get(name, name)
        if not equals and name not in _SWITCHES:
            raise InvalidError(f"--mount: {word!r} needs a value")
        options[name] = value if equals else "true"
    kind = options.pop("type", "bind")
    if kind not in _ALLOWED:
        raise InvalidError(f"--mount: unknown type {kind!r}: {', '.join(_ALLOWED)}")
    if kind == "bind" and options.pop("readonly", "true") == "false":
        options["readwrite"] = "true"
    unknown = options.keys() - _ALLOWED[kind]
    if unknown:
        raise InvalidError(f"--mount=type={kind} has no option {sorted(unknown)[0]!r}")
    if kind in ("bind", "cache", "tmpfs") and not options.get("target"):
        raise InvalidError(f"--mount=type={kind} needs target=PATH")
    if options.get("sharing", "shared") not in _SHARING:
        raise InvalidError(f"--mount: sharing is one of {', '.join(_SHARING)}")
    return MountPlan(kind, options)


def bind_of(sandbox: Sandbox, places: Mountpoints, plan: MountPlan, config: RunConfig) -> list[Bind]:
    """Make the source of a mount, and its place in the container. None for a secret that is optional and not given."""
    return _MAKERS[plan.kind](sandbox, places, plan, config)


def _target(plan: MountPlan, config: RunConfig, default: str = "") -> str:
    return posixpath.normpath(posixpath.join("/", config.working_dir, plan.options.get("target") or default))


def _bind(sandbox: Sandbox, places: Mountpoints, plan: MountPlan, config: RunConfig) -> list[Bind]:
    is_writable = plan.is_set("readwrite")
    path = plan.options.get("source", "/")
    lowers = plan.lowers or ([plan.source] if plan.source else [])
    if plan.tree is not None:
        lowers, path = [_without_ignored(sandbox, plan.tree, path, plan.limits)], _COPY
    source = _beneath(sandbox.mount(lowers, is_writable=is_writable), path)
    place = places.directory if source.is_dir() else places.file
    return [Bind(str(source), place(_target(plan, config)), is_read_only=not is_writable)]


def _without_ignored(sandbox: Sandbox, tree: Tree, path: str, limits: Limits) -> Path:
    """A directory with a copy of what is at the path, without the files that the ignore file leaves out."""
    top = sandbox.space("context")
    with Inside(os.fsencode(top)) as inside:
        writer = TreeWriter(inside, limits, keeps_owners=False)
        for entry, data in tree.read(path):
            writer.put(b"/", renamed(entry, os.fsencode(_COPY)), data)
        writer.finish()
    return top


def _beneath(top: Path, path: str) -> Path:
    """The path within a tree without symlinks. Raises NotFoundError."""
    with Inside(os.fsencode(top)) as inside:
        try:
            return top / os.fsdecode(inside.resolve(os.fsencode(path)).lstrip(b"/"))
        except OSError as error:
            raise NotFoundError(f"--mount: {path} is not there: {error.strerror}") from None


def _cache(_: Sandbox, places: Mountpoints, plan: MountPlan, config: RunConfig) -> list[Bind]:
    assert plan.source is not None
    if not plan.source.exists():
        plan.source.mkdir(0o700, parents=True, exist_ok=True)
        os.chown(plan.source, plan.number("uid", 0), plan.number("gid", 0))
        plan.source.chmod(plan.number("mode", 0o755, 8))
    return [Bind(str(plan.source), places.directory(_target(plan, config)), is_read_only=plan.is_set("readonly"))]


def lock_caches(sandbox: Sandbox, plans: Sequence[MountPlan]) -> None:
    """Wait for the caches that one step at a time may use, `private` or `locked`, and keep them until the step ends."""
    own = {
        plan.source for plan in plans if plan.source is not None and plan.options.get("sharing", "shared") != "shared"
    }
    for cache in sorted(own):  # in one order: no two steps wait for each other
        fd = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        sandbox.stack.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)


def _tmpfs(sandbox: Sandbox, places: Mountpoints, plan: MountPlan, config: RunConfig) -> list[Bind]:
    space = sandbox.space("tmpfs")
    size = f",size={plan.number('size', 0)}" if "size" in plan.options else ""
    mount(b"tmpfs", os.fsencode(space), b"tmpfs", 0, f"mode=1777{size}".encode())
    return [Bind(str(space), places.directory(_target(plan, config)))]


def _secret(sandbox: Sandbox, places: Mountpoints, plan: MountPlan, config: RunConfig) -> list[Bind]:
    name = plan.secret_name
    if plan.secret is None:
        if plan.is_set("required"):
            raise NotFoundError(f"the secret {name!r} is required: --secret id={name},src=FILE")
        return []
    if plan.options.get("env") and not plan.options.get("target"):
        return []
    space = sandbox.space("secret")
    mount(b"tmpfs", os.fsencode(space), b"tmpfs", 0, b"mode=755")
    file = space / "secret"
    file.write_bytes(plan.secret)
    os.chown(file, plan.number("uid", 0), plan.number("gid", 0))
    file.chmod(plan.number("mode", 0o400, 8))
    target = _target(plan, config, f"/run/secrets/{name}")
    return [Bind(str(file), places.file(target), is_read_only=True)]


def _ssh(_: Sandbox, places: Mountpoints, plan: MountPlan, config: RunConfig) -> list[Bind]:
    name = plan.options.get("id", "default")
    if plan.source is None or not stat.S_ISSOCK(plan.source.stat().st_mode):
        if plan.is_set("required"):
            raise NotFoundError(f"no ssh agent {name!r}: --ssh {name}, with SSH_AUTH_SOCK set")
        return []
    return [Bind(str(plan.source), places.file(ssh_target(plan, config)))]


def ssh_target(plan: MountPlan, config: RunConfig) -> str:
    """Where the socket of an agent is in the container, which SSH_AUTH_SOCK says."""
    return _target(plan, config, "/run/buildkit/ssh_agent.0")


_Maker = Callable[[Sandbox, Mountpoints, MountPlan, RunConfig], list[Bind]]
_MAKERS: Final[dict[str, _Maker]] = {
    "bind": _bind,
    "cache": _cache,
    "tmpfs": _tmpfs,
    "secret": _secret,
    "ssh": _ssh,
}
