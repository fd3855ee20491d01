"""How do bubblewrap and runc start a program on the root directory of a container?

Pure planning: a `Launch` becomes a command line or a runtime specification (OCI runtime-spec, config.md). Both runtimes
give the program its own namespaces (mounts, processes, IPC, host name, network on request) and docker's capabilities.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from ..image.oci.errors import NotFoundError
from .process import Process
from .spec import capabilities, fields
from .spec.settings import NO_SETTINGS, Settings

CAPABILITIES: Final = capabilities.DEFAULT

MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
)
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""moby, oci/defaults.go."""


SYSTEM: Final = ("/proc", "/dev", "/sys")


class Kind(Enum):
    """The supported runtimes."""

    BWRAP = "bwrap"
    RUNC = "runc"


class Network(Enum):
    HOST = "host"
    NONE = "none"


class Bind(Struct, frozen=True):
    """A file or directory of the host, bind-mounted on an existing path of the container without symlinks."""

    source: str
    target: str
    is_read_only: bool = False


class Launch(Struct, frozen=True):
    """One program on one root directory, which has directories (no symlinks) for `SYSTEM`.

    `name` is the name of the container for the runtime. With `keeps_terminal` the caller's terminal becomes the
    controlling terminal of the program. `settings` are options that runc alone knows; `network_path` is a network
    namespace to join, `cgroup` the name of a cgroup to make.
    """

    root: Path
    name: str
    hostname: str
    process: Process
    binds: Sequence[Bind]
    network: Network = Network.HOST
    is_read_only: bool = False
    keeps_terminal: bool = False
    settings: Settings = NO_SETTINGS
    network_path: str = ""
    cgroup: str = ""


_PACKAGES: Final = {Kind.BWRAP: "bubblewrap", Kind.RUNC: "runc"}


def find_runtime(wanted: Kind | None, *, has_terminal: bool) -> tuple[Kind, str]:
    """Which runtime to use, and the path of its program. Raises NotFoundError.

    Bubblewrap has no requirements. On a terminal, however, a shell needs its own session, which runc gives it: dash and
    busybox complain at their end if their session leader is in another pid namespace.
    """
    preferred = reversed(Kind) if has_terminal else Kind
    for kind in preferred if wanted is None else (wanted,):
        found = shutil.which(kind.value) or shutil.which(kind.value, path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin")
        if found:
            return kind, found
    if wanted is not None:
        raise NotFoundError(f"{wanted.value} is not installed: install the package {_PACKAGES[wanted]}")
    raise NotFoundError("neither bwrap nor runc is installed: install the package bubblewrap or runc")


# -- bubblewrap


def bwrap_arguments(launch: Launch, *, user_namespace_fd: int | None, filter_fd: int | None) -> list[str]:
    """The arguments of bwrap(1), without its name.

    With `user_namespace_fd` the program runs in that namespace, as the user who starts bwrap; else as root. `filter_fd`
    holds `terminal_filter`; without it a program that keeps the terminal could inject input into it.
    """
    process, user = launch.process, launch.process.user
    words = ["--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--hostname", launch.hostname]
    if launch.network is Network.NONE:
        words.append("--unshare-net")
    if user_namespace_fd is not None:
        words += ["--userns", str(user_namespace_fd)]
    words += ["--bind", str(launch.root), "/", "--proc", "/proc", "--dev", "/dev", "--ro-bind", "/sys", "/sys"]
    for bind in launch.binds:
        words += ["--ro-bind" if bind.is_read_only else "--bind", bind.source, bind.target]
    if launch.is_read_only:
        words += ["--remount-ro", "/"]
    words += ["--seccomp", str(filter_fd)] if filter_fd is not None else ["--new-session"]
    words += ["--cap-drop", "ALL"]
    if user.uid == 0:
        words += [word for capability in CAPABILITIES for word in ("--cap-add", capability)]
    words.append("--clearenv")
    for name, value in process.environment.items():
        words += ["--setenv", name, value]
    return [*words, "--chdir", process.directory]


_AUDIT_X86_64, _AUDIT_AARCH64 = 0xC000003E, 0xC00000B7  # linux/audit.h
_IOCTL: Final = {"x86_64": (_AUDIT_X86_64, 16), "aarch64": (_AUDIT_AARCH64, 29)}
_X32_BIT: Final = 0x4000_0000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # asm-generic/ioctls.h, linux/tiocl.h
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001  # linux/seccomp.h: SECCOMP_RET_*
_LOAD, _EQUALS, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h: ld abs, jeq, jge, ret


def terminal_filter(machine: str | None = None) -> bytes | None:
    """A seccomp program that denies the ioctls by which a program could inject input into its terminal (TIOCSTI).

    Such input would be run as commands of the user after the program has ended (CVE-2017-5226). System calls of another
    architecture are refused. None for machines with unknown system call numbers.
    """
    known = _IOCTL.get(machine or platform.machine())
    if known is None:
        return None
    audit, ioctl = known
    # struct seccomp_data: nr at 0, arch at 4, the second argument's low half at 24; jumps count instructions.
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUALS, 1, 0, audit),
        (_RETURN, 0, 0, _EPERM),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 4, 0, _X32_BIT),
        (_EQUALS, 0, 4, ioctl),
        (_LOAD, 0, 0, 24),
        (_EQUALS, 1, 0, _TIOCSTI),
        (_EQUALS, 0, 1, _TIOCLINUX),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


# -- runc


def runc_specification(launch: Launch) -> dict[str, Any]:
    """The config.json of a bundle."""
    process, user = launch.process, launch.process.user
    bounding = list(CAPABILITIES)
    effective = bounding if user.uid == 0 else []
    document: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "hostname": launch.hostname,
        "root": {"path": str(launch.root), "readonly": launch.is_read_only},
        "process": {
            "terminal": launch.keeps_terminal or launch.settings.has_terminal,
            **console_size(),
            "args": list(process.arguments),
            "env": [f"{name}={value}" for name, value in process.environment.items()],
            "cwd": process.directory,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
            "capabilities": {"bounding": bounding, "permitted": effective, "effective": effective},
            "noNewPrivileges": False,
        },
        "mounts": _runc_mounts(launch),
        "linux": {
            "namespaces": _runc_namespaces(launch),
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": [path for path in MASKED if os.path.exists(path)],
            "readonlyPaths": list(READ_ONLY),
        },
    }
    if launch.cgroup:
        document["linux"]["cgroupsPath"] = launch.cgroup
    fields.apply(document, launch.settings)
    return document


def console_size() -> dict[str, Any]:
    """The size of the caller's terminal for a process of runc, which otherwise gives it to a program that runs already;
    nothing where the caller has none."""
    try:
        columns, rows = os.get_terminal_size(0)
    except OSError:
        return {}
    return {"consoleSize": {"height": rows, "width": columns}}


def _runc_namespaces(launch: Launch) -> list[dict[str, str]]:
    namespaces = [{"type": name} for name in ("mount", "pid", "ipc", "uts")]
    if launch.network_path:
        return [*namespaces, {"type": "network", "path": launch.network_path}]
    return [*namespaces, {"type": "network"}] if launch.network is Network.NONE else namespaces


def _runc_mounts(launch: Launch) -> list[dict[str, Any]]:
    system = [
        ("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        ("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
        ("/sys", "none", "/sys", ["rbind", "nosuid", "noexec", "nodev", "ro"]),
    ]
    mounts = [
        {"destination": target, "type": kind, "source": source, "options": options}
        for target, kind, source, options in system
    ]
    for bind in launch.binds:
        options = ["rbind", "rprivate", "ro" if bind.is_read_only else "rw"]
        mounts.append({"destination": bind.target, "type": "none", "source": bind.source, "options": options})
    return mounts
