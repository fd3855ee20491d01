"""Which capabilities does a container have? Docker's by default, changed by --cap-add, --cap-drop and --privileged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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

_NAMES: Final = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
KNOWN: Final = tuple(f"CAP_{name}" for name in _NAMES.split())
"""linux/capability.h, by number."""


def chosen(
    added: Sequence[str], dropped: Sequence[str], *, is_privileged: bool = False, bounding: int | None = None
) -> list[str]:
    """The capabilities after `added` and `dropped`, of which the latter wins. Raises InvalidError for unknown ones.

    ALL are those of this process's bounding set, or of another, as a mask: nobody can give more.
    """
    possible = _possible(_own_bounding_set() if bounding is None else bounding)
    more, less = ({name for text in texts for name in _named(text, possible)} for texts in (added, dropped))
    start = set(possible) if is_privileged else set(DEFAULT)
    if "ALL" in {text.upper() for text in dropped}:
        return [name for name in KNOWN if name in more]
    return [name for name in KNOWN if name in (start | more) - less]


def _possible(mask: int) -> list[str]:
    return [name for number, name in enumerate(KNOWN) if mask >> number & 1]


def _own_bounding_set() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return int(line.split()[1], 16)
    return (1 << len(KNOWN)) - 1


def _named(text: str, possible: Sequence[str]) -> Sequence[str]:
    name = text.upper()
    if name == "ALL":
        return possible
    name = f"CAP_{name.removeprefix('CAP_')}"
    if name not in KNOWN:
        raise InvalidError(f"{text[:60]!r} is no capability: see capabilities(7)")
    return (name,)
