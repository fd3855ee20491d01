"""The texts of a container's options."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from overlayfs.container.spec import parts
from overlayfs.container.spec.parts import Port, Tmpfs
from overlayfs.container.spec.settings import Settings
from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.oci.signals import signal_of

GOOD: list[tuple[Callable[[str], object], str, object]] = [
    (parts.size_of, "512m", 512 << 20),
    (parts.size_of, "1G", 1 << 30),
    (parts.size_of, "2kb", 2048),
    (parts.size_of, "7", 7),
    (parts.memory_of, "6m", 6 << 20),
    (parts.cpus_of, "1.5", 1.5),
    (parts.cpus_of, ".01", 0.01),
    (parts.ulimit_of, "nofile=10:20", {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}),
    (parts.ulimit_of, "core=-1", {"type": "RLIMIT_CORE", "soft": (1 << 64) - 1, "hard": (1 << 64) - 1}),
    (signal_of, "TERM", 15),
    (signal_of, "sigkill", 9),
    (signal_of, "1", 1),
    (signal_of, "SIGRTMIN+3", signal.SIGRTMIN + 3),
    (signal_of, "rtmax-14", signal.SIGRTMAX - 14),
    (parts.ports_of, "80", [Port(80)]),
    (parts.ports_of, "8080:80", [Port(80, 8080)]),
    (parts.ports_of, "0:80", [Port(80)]),
    (parts.ports_of, "10.0.0.1:53:53/udp", [Port(53, 53, "10.0.0.1", "udp")]),
    (parts.ports_of, "127.0.0.1::80", [Port(80, 0, "127.0.0.1")]),
    (parts.ports_of, "8000-8001:80-81/udp", [Port(80, 8000, protocol="udp"), Port(81, 8001, protocol="udp")]),
    (parts.ports_of, "10.0.0.1:8000-8005:80", [Port(80, 8000, "10.0.0.1", last=8005)]),
    (parts.ports_of, "8000-8000:80", [Port(80, 8000)]),
    (parts.ports_of, "80-81", [Port(80), Port(81)]),
    (parts.exposed_ports, "80-81/udp", [Port(80, protocol="udp"), Port(81, protocol="udp")]),
    (parts.exposed_ports, "80", [Port(80)]),
    (parts.host_of, "db:10.0.0.1", ("db", "10.0.0.1")),
    (parts.host_of, "six=[::1]", ("six", "::1")),
    (parts.tmpfs_of, "/run:size=64m,mode=1777", Tmpfs("/run", 14, "size=64m,mode=1777")),
    (parts.tmpfs_of, "/run:exec,ro,rw", Tmpfs("/run", 7, "")),
    (parts.label_of, "a=b=c", ("a", "b=c")),
    (parts.label_of, "a", ("a", "")),
]
BAD: dict[Callable[[str], object], tuple[str, ...]] = {
    parts.size_of: ("", "m", "-1", "1.5g", "1p", "9" * 30, "\u0661"),
    parts.memory_of: ("1k", "0"),
    parts.cpus_of: ("", "0", "-1", "nan", "inf", "1e9"),
    parts.ulimit_of: ("", "nofile", "nofile=", "none=1", "nofile=20:10", "nofile=1:x", "INFINITY=1"),
    signal_of: ("", "0", "65", "NOPE", "SIG", "RTMIN+99", "RTMAX-31", "_IGN", "-9", "\u00b2"),
    parts.ports_of: (
        *("", "x", "1:2:3", "0", "70000", "80/icmp", "[::1]:80:80", "999.1.1.1:1:1", "80-82:80-81", "8000:80-82"),
        *("82-80", "82-80:82-80", "0-1:80", "80-", "-80", "80-82-84", "127.0.0.1:80", "65535-65536:1-2"),
    ),
    parts.exposed_ports: ("", "80:80", "80/sctp", "82-80"),
    parts.host_of: ("", "db", "db:", "db:nope", "a b:1.1.1.1", "db:1.1.1.1\n2.2.2.2 x"),
    parts.tmpfs_of: ("", "run", "/", "/run:size=", "/run:context=x", "/run:a,b=c", "/run:xec"),
    parts.label_of: ("", "=x"),
}


@pytest.mark.parametrize(("read", "text", "wanted"), GOOD)
def test_text_is_read(read: Callable[[str], object], text: str, wanted: object) -> None:
    assert read(text) == wanted


@pytest.mark.parametrize(("read", "text"), [(read, text) for read, texts in BAD.items() for text in texts])
def test_text_is_refused_in_one_line(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        read(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Settings(network="bridge"), "unknown"),
        (Settings(network="container:"), "unknown"),
        (Settings(network="none", ports=["80"]), "private network"),
        (Settings(network="host", publishes_all=True), "private network"),
        (Settings(dns=["nope"]), "no IP address"),
        (Settings(pids_limit=-1), "negative"),
        (Settings(stop_signal="NOPE"), "no signal"),
    ],
)
def test_options_that_do_not_fit_are_refused(settings: Settings, why: str) -> None:
    with pytest.raises(InvalidError, match=why):
        parts.check(settings)


def test_published_port_means_a_private_network() -> None:
    assert Settings().network_kind == "host"
    assert Settings(ports=["80"]).network_kind == Settings(publishes_all=True).network_kind == "private"
    parts.check(Settings(network="container:web", stop_timeout_s=-1))
