"""What do the texts of a container's options mean? Sizes, limits, ports, tmpfs mounts and names of hosts.

Each function raises InvalidError, whose message repeats the text and shows the form it should have.
"""

from __future__ import annotations

import ipaddress
import re
import resource
from typing import Final

from msgspec import Struct

from ...image.oci.errors import InvalidError
from ...image.oci.signals import signal_of
from .settings import OF_CONTAINER, Settings

_UNITS: Final = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE: Final = re.compile(r"([0-9]{1,15})([bkmgt]?)(?:i?b)?", re.ASCII)
_RANGE: Final = r"[0-9]{1,9}(?:-[0-9]{1,9})?"
_PUBLISHED: Final = re.compile(
    rf"(?:(?:(\[[0-9a-fA-F:.]+\]|[0-9.]+):)?({_RANGE})?:)?({_RANGE})(?:/(tcp|udp))?", re.ASCII
)
_EXPOSED: Final = re.compile(rf"({_RANGE})(?:/(tcp|udp))?", re.ASCII)
_HOST: Final = re.compile(r"([a-zA-Z0-9_.-]{1,253})[:=](.+)", re.ASCII)
_TMPFS_FLAGS: Final = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8}  # <sys/mount.h>
_TMPFS_DATA: Final = re.compile(r"(size|nr_inodes)=[0-9]+[kmgKMG%]?|mode=[0-7]{3,4}|(uid|gid)=[0-9]{1,9}", re.ASCII)
LEAST_MEMORY: Final = 6 << 20
"""Bytes, as docker demands: runc itself needs some."""


class Port(Struct, frozen=True):
    """A published port; `host` 0 lets the system choose, an empty `address` means all addresses.

    With `last` the first free port from `host` to `last` is taken.
    """

    container: int
    host: int = 0
    address: str = ""
    protocol: str = "tcp"
    last: int = 0

    def __str__(self) -> str:
        return f"{self.address or '0.0.0.0'}:{self.host}->{self.container}/{self.protocol}"


def size_of(text: str) -> int:
    """Bytes: `512m`, `1g`, `65536`."""
    found = _SIZE.fullmatch(text.lower())
    if found is None:
        raise InvalidError(f"{text[:40]!r} is no size: a number with b, k, m or g, as in 512m")
    return int(found[1]) << _UNITS[found[2]]


def memory_of(text: str) -> int:
    size = size_of(text)
    if size < LEAST_MEMORY:
        raise InvalidError(f"--memory {text} is too little: at least 6m")
    return size


def cpus_of(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.01 <= number <= 4096:
        raise InvalidError(f"--cpus {text[:40]!r} is no number of processors: as in 1.5")
    return number


def ulimit_of(text: str) -> dict[str, int | str]:
    """A member of `process.rlimits`: `nofile=1024:2048`, -1 for no limit."""
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    known = f"RLIMIT_{name.upper()}"
    numbers = [re.fullmatch(r"-1|[0-9]{1,19}", word) for word in (soft, hard or soft)]
    if not hasattr(resource, known) or None in numbers:
        raise InvalidError(f"{text[:60]!r} is no limit: NAME=SOFT[:HARD], as in nofile=1024:2048")
    least, most = (int(word) % (1 << 64) for word in (soft, hard or soft))  # -1 is RLIM_INFINITY
    if least > most:
        raise InvalidError(f"the limit {text} has a soft value above its hard value")
    return {"type": known, "soft": least, "hard": most}


def ports_of(text: str) -> list[Port]:
    """`[IP:]HOST:CONTAINER[/udp]`, `IP::CONTAINER` or `CONTAINER`, where HOST and CONTAINER may be ranges.

    As in docker, ranges are published port by port, and one port of the container is published on a free one of a range
    of the host.
    """
    found = _PUBLISHED.fullmatch(text)
    if found is None:
        raise InvalidError(f"{text[:80]!r} is no port to publish: [IP:]HOST:CONTAINER[/udp], 8080:80 or 80-82:80-82")
    address, protocol = found[1] or "", found[4] or "tcp"
    if address:
        _check_address(address)
        _check_can_publish(text, ipaddress.ip_address(address.strip("[]")), protocol)
    inner = _range_of(text, found[3])
    if not (found[2] or "").strip("0"):
        return [Port(number, 0, address, protocol) for number in inner]
    outer = _range_of(text, found[2])
    if len(inner) == 1:
        last = outer[-1] if len(outer) > 1 else 0
        return [Port(inner[0], outer[0], address, protocol, last)]
    if len(inner) != len(outer):
        raise InvalidError(f"invalid ranges for container and host ports: {found[3]} and {found[2]} differ in length")
    return [Port(number, host, address, protocol) for number, host in zip(inner, outer, strict=True)]


def _range_of(text: str, ports: str) -> range:
    first, _, last = ports.partition("-")
    found = range(int(first), int(last or first) + 1)
    if not found or not 0 < found[0] <= found[-1] < 65536:
        raise InvalidError(f"{text} names no port between 1 and 65535, or a range that ends before it begins")
    return found


def _check_can_publish(text: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address, protocol: str) -> None:
    if address.version != 4:
        raise InvalidError(f"{text}: ports are published on IPv4 addresses only")
    if protocol == "udp" and address.is_loopback:
        # the packets seem to come from 10.0.2.2, answers to which --disable-host-loopback drops
        raise InvalidError(f"{text}: slirp4netns passes no answers of UDP to a loopback address: publish it on another")


def exposed_ports(text: str) -> list[Port]:
    """Those of a key of `ExposedPorts`, which may be a range and lack its protocol."""
    if _EXPOSED.fullmatch(text) is None:
        raise InvalidError(f"the image exposes {text[:40]!r}, which is no port")
    return ports_of(text)


def host_of(text: str) -> tuple[str, str]:
    """A name and its address: `NAME:IP` or `NAME=IP`."""
    found = _HOST.fullmatch(text)
    if found is None:
        raise InvalidError(f"{text[:80]!r} is no host: NAME:IP")
    return found[1], _check_address(found[2])


def _check_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise InvalidError(f"{text[:60]!r} is no IP address") from None


class Tmpfs(Struct, frozen=True):
    """A tmpfs at `target`; `flags` are those of mount(2), `data` its options."""

    target: str
    flags: int
    data: str


def tmpfs_of(text: str) -> Tmpfs:
    """`--tmpfs /run:size=64m,mode=1777`; as in docker nosuid, nodev and noexec unless it is said otherwise."""
    target, _, words = text.partition(":")
    if not target.startswith("/") or target.strip("/") == "":
        raise InvalidError(f"{text[:80]!r} is no tmpfs: /TARGET[:OPTIONS]")
    flags, data = _TMPFS_FLAGS["nosuid"] | _TMPFS_FLAGS["nodev"] | _TMPFS_FLAGS["noexec"], []
    for word in filter(None, words.split(",")):
        if word in _TMPFS_FLAGS:
            flags |= _TMPFS_FLAGS[word]
        elif f"no{word}" in _TMPFS_FLAGS:
            flags &= ~_TMPFS_FLAGS[f"no{word}"]
        elif _TMPFS_DATA.fullmatch(word):
            data.append(word)
        elif word != "rw":
            raise InvalidError(f"{text[:80]!r}: unknown tmpfs option {word!r}")
    return Tmpfs(target, flags, ",".join(data))


def label_of(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise InvalidError(f"{text[:80]!r} is no label: NAME=VALUE")
    return name, value


def check(settings: Settings) -> None:
    """Read every text once. Raises InvalidError."""
    for text, read in (
        *((text, ulimit_of) for text in settings.ulimits),
        *((text, ports_of) for text in settings.ports),
        *((text, host_of) for text in settings.hosts),
        *((text, _check_address) for text in settings.dns),
        *((text, tmpfs_of) for text in settings.tmpfs),
        (settings.memory, memory_of),
        (settings.cpus, cpus_of),
        (settings.stop_signal, signal_of),
    ):
        if text:
            read(text)
    kind = settings.network_kind
    if kind not in ("private", "host", "none") and not (kind.startswith(OF_CONTAINER) and kind != OF_CONTAINER):
        raise InvalidError(f"--network {kind[:60]!r} is unknown: host, none, private or container:NAME")
    if (settings.ports or settings.publishes_all) and kind != "private":
        raise InvalidError(f"-p and -P need a private network, not --network {kind}")
    if settings.pids_limit < 0 or (settings.stop_timeout_s or 0) < -1:
        raise InvalidError("--pids-limit and --stop-timeout are no negative numbers but -1, for no limit")
