"""Which capabilities does a container have? Docker's by default, changed by --cap-add, --cap-drop and --privileged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...image.oci.errors import InvalidError

DEFAULT: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
"""The capabilities that docker leaves to root in a container (moby, oci/caps/defaults.go)."""

_OTHERS: Final = (
    "AUDIT_CONTROL AUDIT_READ BLOCK_SUSPEND BPF CHECKPOINT_RESTORE DAC_READ_SEARCH IPC_LOCK IPC_OWNER LEASE "
    "LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE NET_ADMIN NET_BROADCAST PERFMON SYS_ADMIN SYS_BOOT SYS_MODULE SYS_NICE "
    "SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM"
)
ALL: Final = (*DEFAULT, *(f"CAP_{name}" for name in _OTHERS.split()))
"""linux/capability.h, up to CAP_CHECKPOINT_RESTORE."""


def chosen(added: Sequence[str], dropped: Sequence[str], *, is_privileged: bool = False) -> list[str]:
    """The capabilities after `added` and `dropped`, of which the latter wins. Raises InvalidError for unknown ones."""
    more, less = ({name for text in texts for name in _named(text)} for texts in (added, dropped))
    start = set(ALL) if is_privileged else set(DEFAULT)
    if "ALL" in {text.upper() for text in dropped}:
        return [name for name in ALL if name in more]
    return [name for name in ALL if name in (start | more) - less]


def _named(text: str) -> Sequence[str]:
    name = text.upper()
    if name == "ALL":
        return ALL
    name = f"CAP_{name.removeprefix('CAP_')}"
    if name not in ALL:
        raise InvalidError(f"{text[:60]!r} is no capability: see capabilities(7)")
    return (name,)
