"""What does `RUN --mount=…` show to the command? Files of the context, a stage or an image, a cache, memory, secrets.

Dockerfile reference, "RUN --mount". Nothing that is mounted gets into a layer, and secrets are in memory only.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..container.mountpoints import Mountpoints
from ..container.root_paths import Inside
from ..container.runtime import Bind
from ..container.spec.parts import size_of
from ..container.users import no_such_ids
from ..image.oci.documents import RunConfig
from ..image.oci.errors import InvalidError, NotFoundError
from ..image.oci.limits import Limits
from ..tree.syscalls import mount
from .agents import forward
from .files.sources import Tree
from .files.writer import write_tree
from .sandbox import Sandbox

_ALLOWED: Final = {
    "bind": {"from", "source", "target", "readwrite"},
    "cache": {"id", "target", "from", "source", "sharing", "mode", "uid", "gid", "readonly", "readwrite"},
    "tmpfs": {"target", "size"},
    "secret": {"id", "target", "required", "mode", "uid", "gid", "env"},
    "ssh": {"id", "target", "required", "mode", "uid", "gid"},
}
_SYNONYMS: Final = {"src": "source", "dst": "target", "destination": "target", "rw": "readwrite", "ro": "readonly"}
_SWITCHES: Final = frozenset({"readwrite", "readonly", "required"})
_COPY: Final = "context"
SHARED, PRIVATE, LOCKED = "shared", "private", "locked"
_SHARING: Final = (SHARED, PRIVATE, LOCKED)


@dataclass(frozen=True, slots=True)
class MountPlan:
    """One mount. `lowers` are the layers of the stage or image to bind, or to begin a cache with, top first; `source`
    is a directory or file of the host: the context, a cache's directory, a socket. `tree` is the context if files of it
    are ignored. `secret` is the content of a secret that was given. `number` counts the agents of a step."""

    kind: str
    options: dict[str, str]
    lowers: Sequence[Path] = ()
    source: Path | None = None
    tree: Tree | None = None
    limits: Limits = field(default_factory=Limits)
    secret: bytes | None = field(default=None, repr=False)
    number: int = 0

    @property
    def secret_name(self) -> str:
        return self.options.get("id") or posixpath.basename(self.options.get("target", ""))

    @property
    def sharing(self) -> str:
        return self.options.get("sharing", SHARED)

    def is_set(self, name: str) -> bool:
        return self.options.get(name, "false") not in ("false", "0")

    def integer(self, name: str, default: int, base: int = 10) -> int:
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
    plan = MountPlan(kind, options)
    if plan.sharing not in _SHARING:
        raise InvalidError(f"--mount: sharing is one of {', '.join(_SHARING)}")
    return plan


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
    source = beneath(sandbox.mount(lowers, is_writable=is_writable), path)
    place = places.directory if source.is_dir() else places.file
    return [Bind(str(source), place(_target(plan, config)), is_read_only=not is_writable)]


def _without_ignored(sandbox: Sandbox, tree: Tree, path: str, limits: Limits) -> Path:
    """A directory with a copy of what is at the path, without the files that the ignore file leaves out."""
    top = sandbox.space("context")
    with Inside(os.fsencode(top)) as inside:
        write_tree(inside, _COPY, tree.read(path), limits, keeps_owners=False)
    return top


def beneath(top: Path, path: str) -> Path:
    """The path within a tree without symlinks. Raises NotFoundError."""
    with Inside(os.fsencode(top)) as inside:
        try:
            return top / os.fsdecode(inside.resolve(os.fsencode(path)).lstrip(b"/"))
        except OSError as error:
            raise NotFoundError(f"--mount: {path} is not there: {error.strerror}") from None


def _cache(_: Sandbox, places: Mountpoints, plan: MountPlan, config: RunConfig) -> list[Bind]:
    return [Bind(str(plan.source), places.directory(_target(plan, config)), is_read_only=plan.is_set("readonly"))]


def _tmpfs(sandbox: Sandbox, places: Mountpoints, plan: MountPlan, config: RunConfig) -> list[Bind]:
    space = sandbox.space("tmpfs")
    size = f",size={size_of(plan.options['size'])}" if "size" in plan.options else ""
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
    give_away(file, plan, 0o400)
    target = _target(plan, config, f"/run/secrets/{name}")
    return [Bind(str(file), places.file(target), is_read_only=True)]


def _ssh(sandbox: Sandbox, places: Mountpoints, plan: MountPlan, config: RunConfig) -> list[Bind]:
    if plan.source is None:
        if plan.is_set("required"):
            name = plan.options.get("id", "default")
            raise NotFoundError(f"no ssh agent {name!r}: --ssh {name}, with SSH_AUTH_SOCK set")
        return []
    socket = sandbox.space("agent") / "socket"
    sandbox.stack.callback(forward(plan.source, socket).kill)
    give_away(socket, plan, 0o600)
    return [Bind(str(socket), places.file(ssh_target(plan, config)))]


def ssh_target(plan: MountPlan, config: RunConfig) -> str:
    """Where the socket of an agent is in the container, which SSH_AUTH_SOCK says."""
    return _target(plan, config, f"/run/buildkit/ssh_agent.{plan.number}")


def give_away(path: Path, plan: MountPlan, mode: int) -> None:
    """Give what was made for a mount the owner and mode of its options. Raises InvalidError, NotFoundError."""
    uid, gid = plan.integer("uid", 0), plan.integer("gid", 0)
    try:
        os.chown(path, uid, gid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise no_such_ids(uid, gid) from None
    path.chmod(plan.integer("mode", mode, 8))


_Maker = Callable[[Sandbox, Mountpoints, MountPlan, RunConfig], list[Bind]]
_MAKERS: Final[dict[str, _Maker]] = {
    "bind": _bind,
    "cache": _cache,
    "tmpfs": _tmpfs,
    "secret": _secret,
    "ssh": _ssh,
}
