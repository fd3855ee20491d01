"""Which mount options any filesystem has, and the MS_* bits that mount(2) takes for them.

Names are mount(8)'s ("FILESYSTEM-INDEPENDENT MOUNT OPTIONS"), bits are `<linux/mount.h>`'s.
"""

from __future__ import annotations

from overlayfs._typing import NamedTuple

MS_RDONLY = 1 << 0
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_SYNCHRONOUS = 1 << 4
MS_REMOUNT = 1 << 5
MS_DIRSYNC = 1 << 7
MS_NOATIME = 1 << 10
MS_NODIRATIME = 1 << 11
MS_SILENT = 1 << 15
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

_ATIME_POLICIES = MS_NOATIME | MS_RELATIME | MS_STRICTATIME


class FlagChange(NamedTuple):
    """Bits that one option clears, then sets; of opposites the last one written wins."""

    cleared: int
    set: int


def _switch(bit: int, on: bytes, off: bytes) -> dict[bytes, FlagChange]:
    return {on: FlagChange(bit, bit), off: FlagChange(bit, 0)}


FLAG_CHANGES: dict[bytes, FlagChange] = {
    **_switch(MS_RDONLY, b"ro", b"rw"),
    **_switch(MS_NOSUID, b"nosuid", b"suid"),
    **_switch(MS_NODEV, b"nodev", b"dev"),
    **_switch(MS_NOEXEC, b"noexec", b"exec"),
    **_switch(MS_SYNCHRONOUS, b"sync", b"async"),
    **_switch(MS_NODIRATIME, b"nodiratime", b"diratime"),
    **_switch(MS_SILENT, b"silent", b"loud"),
    **_switch(MS_I_VERSION, b"iversion", b"noiversion"),
    **_switch(MS_LAZYTIME, b"lazytime", b"nolazytime"),
    b"dirsync": FlagChange(0, MS_DIRSYNC),
    b"noatime": FlagChange(_ATIME_POLICIES, MS_NOATIME),
    b"atime": FlagChange(MS_NOATIME, 0),
    b"relatime": FlagChange(_ATIME_POLICIES, MS_RELATIME),
    b"norelatime": FlagChange(MS_RELATIME, 0),
    b"strictatime": FlagChange(_ATIME_POLICIES, MS_STRICTATIME),
    b"nostrictatime": FlagChange(MS_STRICTATIME, 0),
}

# Meant for mount(8), fstab's readers or the mount's surroundings: nothing for a filesystem to do.
_FOR_OTHERS = frozenset(
    b"defaults auto noauto nofail user nouser users nousers owner noowner group nogroup _netdev comment"
    b" helper uhelper private rprivate shared rshared slave rslave unbindable runbindable".split()
)

# Each would need the mount that is there already, not a new one.
NOT_A_NEW_MOUNT = frozenset([b"remount", b"bind", b"rbind", b"move"])


def is_for_others(name: bytes) -> bool:
    """Whether mount(8) itself accepts the option and hands nothing on to the filesystem."""
    return name in _FOR_OTHERS or name[:2] in (b"x-", b"X-")
