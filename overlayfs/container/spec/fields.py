"""Which members of config.json does each option of a container set?

`TABLE` has one row for each option: its name in `Settings`, its name on the command line, and the function that changes
the specification (OCI runtime-spec, config.md and config-linux.md). Options without a row change no specification:
they are resolved to a process, mounts or a network before. An option with a row needs runc.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ...image.oci.errors import InvalidError, NotFoundError
from .capabilities import chosen
from .parts import cpus_of, memory_of, tmpfs_of, ulimit_of
from .seccomp import default_profile, seccomp_of
from .settings import OF_CONTAINER, PRIVATE, Settings

Document = dict[str, Any]
_CPU_PERIOD_US: Final = 100_000
_INIT: Final = "/dev/init"
_INIT_PROGRAMS: Final = ("catatonit", "docker-init", "tini-static")
"""Statically linked, so that they run in every image."""
_CONTROLLERS: Final = {"memory": "memory", "cpus": "cpu", "pids_limit": "pids"}
CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_DEVICES: Final = frozenset({"pts", "shm", "mqueue", "fd", "console", "ptmx", "core"})
_UNCONFINED: Final = "seccomp=unconfined"


def _capabilities(document: Document, settings: Settings) -> None:
    names = chosen(settings.added_capabilities, settings.dropped_capabilities, is_privileged=settings.is_privileged)
    process = document["process"]
    effective = names if process["user"]["uid"] == 0 else []
    process["capabilities"] = {"bounding": names, "permitted": effective, "effective": effective}


def _privileged(document: Document, settings: Settings) -> None:
    _capabilities(document, settings)
    linux = document["linux"]
    linux["maskedPaths"], linux["readonlyPaths"] = [], []
    linux["devices"] = list(_host_devices())
    linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    for mount in document["mounts"]:
        if mount["destination"] == "/sys":
            mount["options"].remove("ro")


def _host_devices() -> Iterator[dict[str, Any]]:
    for entry in os.scandir("/dev"):
        found = entry.stat(follow_symlinks=False)
        kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(found.st_mode))
        if kind is not None and entry.name not in _OWN_DEVICES:
            yield {
                "path": entry.path,
                "type": kind,
                "major": os.major(found.st_rdev),
                "minor": os.minor(found.st_rdev),
                "fileMode": stat.S_IMODE(found.st_mode),
                "uid": found.st_uid,
                "gid": found.st_gid,
            }


def _init(document: Document, _: Settings) -> None:
    found = next((path for name in _INIT_PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        raise NotFoundError("--init needs one of catatonit, docker-init and tini-static: install the package catatonit")
    document["mounts"].append(
        {"destination": _INIT, "type": "none", "source": os.path.realpath(found), "options": ["bind", "ro"]}
    )
    process = document["process"]
    process["args"] = [_INIT, "--", *process["args"]]


def _ulimits(document: Document, settings: Settings) -> None:
    document["process"]["rlimits"] = [ulimit_of(text) for text in settings.ulimits]


def _memory(document: Document, settings: Settings) -> None:
    document["linux"]["resources"]["memory"] = {"limit": memory_of(settings.memory)}


def _cpus(document: Document, settings: Settings) -> None:
    quota = int(cpus_of(settings.cpus) * _CPU_PERIOD_US)
    document["linux"]["resources"]["cpu"] = {"quota": quota, "period": _CPU_PERIOD_US}


def _pids(document: Document, settings: Settings) -> None:
    document["linux"]["resources"]["pids"] = {"limit": settings.pids_limit}


def _security(document: Document, settings: Settings) -> None:
    for text in settings.security:
        name, _, value = text.replace(":", "=", 1).partition("=")
        if name == "no-new-privileges" and value in ("", "true", "false"):
            document["process"]["noNewPrivileges"] = value != "false"
        elif (name, value) not in (("apparmor", "unconfined"), ("label", "disable")) and name != "seccomp":
            raise InvalidError(
                f"--security-opt {text[:60]} cannot be had here: seccomp=FILE|unconfined or no-new-privileges"
            )


def _seccomp(document: Document, settings: Settings) -> None:
    """The profile is chosen last, as it depends on the capabilities."""
    chosen_texts = [text.replace(":", "=", 1) for text in settings.security if text.startswith("seccomp")]
    if settings.is_privileged or _UNCONFINED in chosen_texts:
        return
    given = [Path(text.partition("=")[2]) for text in chosen_texts]
    path = given[-1] if given else default_profile()
    if path is not None:
        document["linux"]["seccomp"] = seccomp_of(path, document["process"]["capabilities"]["bounding"])


TABLE: Final[tuple[tuple[str, str, Callable[[Document, Settings], None]], ...]] = (
    ("added_capabilities", "--cap-add", _capabilities),
    ("dropped_capabilities", "--cap-drop", _capabilities),
    ("is_privileged", "--privileged", _privileged),
    ("has_init", "--init", _init),
    ("ulimits", "--ulimit", _ulimits),
    ("memory", "--memory", _memory),
    ("cpus", "--cpus", _cpus),
    ("pids_limit", "--pids-limit", _pids),
    ("security", "--security-opt", _security),
)
_FOR_RUNC: Final = {"ports": "--publish", "publishes_all": "--publish-all"}


def apply(document: Document, settings: Settings) -> None:
    """Change a specification as the options say. Raises InvalidError, NotFoundError."""
    for name, _, change in TABLE:
        if getattr(settings, name):
            change(document, settings)
    _seccomp(document, settings)


def needs_runc(settings: Settings) -> list[str]:
    """The options given that bubblewrap does not know."""
    named = [(name, option) for name, option, _ in TABLE] + list(_FOR_RUNC.items())
    options = [option for name, option in named if getattr(settings, name)]
    kind = settings.network_kind
    return options + (["--network"] if kind == PRIVATE or kind.startswith(OF_CONTAINER) else [])


def check(settings: Settings) -> None:
    """Try the table on an empty specification. Raises InvalidError, NotFoundError for what cannot be here."""
    process: Document = {"user": {"uid": 0}, "args": [], "capabilities": {"bounding": []}}
    apply({"process": process, "mounts": [], "linux": {"resources": {}}}, settings)
    for text in settings.tmpfs:
        tmpfs_of(text)
    for name, controller in _CONTROLLERS.items():
        if getattr(settings, name) and not may_limit(controller):
            option = next(option for row, option, _ in TABLE if row == name)
            raise InvalidError(f"{option} needs the cgroup controller {controller}, which you may not use here")


def may_limit(controller: str) -> bool:
    """Whether this process may make cgroups with the controller: cgroups(7), in version 1 and 2."""
    if os.geteuid() != 0:
        return False
    first = CGROUPS / controller
    if first.is_dir():
        return os.access(first, os.W_OK)
    try:
        enabled = (CGROUPS / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False
    return controller in enabled and os.access(CGROUPS / "cgroup.procs", os.W_OK)
