"""Networks of containers: published ports, names of hosts, name servers, networks shared or missing."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from tests.cli.container.shop import Shop, await_that
from tests.container.small import image_of, small_image
from tests.prepared import PATIENCE_S, Prepared

SERVER = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
server = socket.socket(socket.AF_INET, kind)
server.bind(("0.0.0.0", 80))
if sys.argv[1] == "tcp":
    server.listen()
print("up", flush=True)
while True:
    if sys.argv[1] == "tcp":
        client, _ = server.accept()
        client.sendall(b"hello")
        client.close()
    else:
        _, sender = server.recvfrom(100)
        server.sendto(b"hello", sender)
"""
ENDLESS = "while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path = tmp_path_factory.mktemp("shop") / "store"
    with Store.open(path) as store:
        unpack_image(store, small_image(store))
        exposing = RunConfig(cmd=["sh", "-c", ENDLESS], exposed_ports={"80-81/tcp": {}, "53/udp": {}})
        image_of(store, "exposing", exposing, {}, base=store.find("small"))
    with Prepared() as prepared:
        yield Shop(path, prepared)


def served(shop: Shop, protocol: str, *options: str) -> int:
    """The host's port of a container `web` that serves port 80, by this machine's Python."""
    base = {sys.base_prefix, os.path.realpath(sys.executable), "/usr", "/lib", "/lib64"}
    volumes = [word for path in sorted(base) if os.path.exists(path) for word in ("-v", f"{path}:{path}:ro")]
    python = os.path.realpath(sys.executable)
    shop.run("run", "-d", "--name", "web", *volumes, *options, "small", python, "-c", SERVER, protocol)
    await_that(lambda: shop.run("logs", "web") == "up\n")
    return int(shop.run("port", "web").rsplit(":", 1)[1])


def test_published_port_is_served_until_the_container_ends(live: Shop) -> None:
    port = served(live, "tcp", "-p", "127.0.0.1::80")
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
        assert client.recv(100) == b"hello"
    assert live.run("port", "web", "80") == f"127.0.0.1:{port}\n"
    assert "publishes no port 81/tcp" in live.refuses("port", "web", "81")
    assert live.answer("ps")[0]["ports"] == [f"127.0.0.1:{port}->80/tcp"]
    assert "is in use" in live.refuses("run", "-d", "--rm", "-p", f"127.0.0.1:{port}:80", "small", status=125)
    live.run("stop", "-t", "0", "web")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    assert live.run("port", "web") == ""


def test_datagrams_are_passed_too(live: Shop) -> None:
    port = served(live, "udp", "-p", "80/udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("198.51.100.1", port))  # sends nothing, but chooses an address of ours that is no loopback
        client.connect((client.getsockname()[0], port))

        def is_answered() -> bool:  # a datagram may be lost, as the first one is while ARP has no answer
            client.send(b"x")
            return bool(select.select([client], [], [], 0.2)[0]) and client.recv(100) == b"hello"

        await_that(is_answered)


def test_exposed_ports_are_published_on_request(live: Shop) -> None:
    live.run("run", "-d", "-P", "--name", "box", "exposing")
    inner = [line.split(" -> ")[0] for line in live.run("port", "box").splitlines()]
    assert sorted(inner) == ["53/udp", "80/tcp", "81/tcp"]


def free_ports(count: int) -> int:
    """The first of some ports in a row that are free, below those that the kernel hands out."""
    while True:
        first = 20000 + int.from_bytes(os.urandom(2), "big") % 10000
        with ExitStack() as stack, suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def test_ranges_of_ports_are_published(live: Shop) -> None:
    one = free_ports(3)
    two, three = one + 1, one + 2
    ranges = ("-p", f"127.0.0.1:{one}-{two}:80-81", "-p", f"127.0.0.1:{one}-{three}:90")
    live.run("run", "-d", "--name", "box", *ranges, "small", "sh", "-c", ENDLESS)
    published = {"80/tcp": one, "81/tcp": two, "90/tcp": three}  # the first free one
    assert live.run("port", "box") == "".join(f"{inner} -> 127.0.0.1:{host}\n" for inner, host in published.items())
    bindings = live.answer("inspect", "--type", "container", "box")[0]["HostConfig"]["PortBindings"]
    assert bindings["90/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": f"{one}-{three}"}]
    refused = live.refuses("run", "--rm", "-p", f"127.0.0.1:{one}-{three}:80", "small", status=125)
    assert f"the ports {one}-{three} of the host are in use" in refused


def test_private_network_has_names_and_a_way_out(live: Shop) -> None:
    script = "cat /etc/hosts /etc/resolv.conf /etc/hostname; cat /proc/net/dev"
    said = live.run("run", "--rm", "-h", "box", "--network", "private", "small", "sh", "-c", script)
    assert "10.0.2.100\tbox\n" in said and "nameserver 10.0.2.3\n" in said and "\nbox\n" in said and "tap0:" in said


@pytest.mark.parametrize("runtime", ["bwrap", "runc"])
def test_names_and_name_servers_may_be_given(live: Shop, runtime: str) -> None:
    options = ("--add-host", "db:10.1.2.3", "--dns", "9.9.9.9", "--runtime", runtime)
    said = live.sh("cat /etc/hosts; cat /etc/resolv.conf", *options)
    assert "10.1.2.3\tdb\n" in said
    assert [line for line in said.splitlines() if line.startswith("nameserver")] == ["nameserver 9.9.9.9"]
    assert "127.0.0.1\tlocalhost\n" in live.sh("cat /etc/hosts", "--network", "none", "--runtime", runtime)


def test_network_of_another_container_is_shared(live: Shop) -> None:
    live.run("run", "-d", "--name", "one", "--network", "private", "small", "sh", "-c", ENDLESS)
    script = "for f in /proc/self/ns/net; do stat -L -c %i $f; done"
    shared = live.sh(script, "--network", "container:one")
    assert shared == live.run("exec", "one", "sh", "-c", script)
    assert shared.strip() != str(os.stat("/proc/self/ns/net").st_ino)
    assert "no container 'two'" in live.refuses("run", "--rm", "--network", "container:two", "small", status=125)
    live.run("create", "--name", "guest", "--network", "container:one", "small", "sh", "-c", script)
    live.run("rename", "one", "host")
    assert live.run("start", "--attach", "guest") == shared
    live.run("stop", "-t", "0", "host")
    assert "host is not running: its network" in live.refuses(
        "run", "--rm", "--network", "container:host", "small", status=125
    )


def test_container_in_anothers_network_has_its_names(live: Shop) -> None:
    options = ("--network", "private", "--add-host", "db:10.1.2.3", "--dns", "9.9.9.9")
    live.run("run", "-d", "--name", "one", *options, "small", "sh", "-c", ENDLESS)
    script = "cat /etc/hosts /etc/resolv.conf /etc/hostname /proc/sys/kernel/hostname"
    own = live.run("exec", "one", "sh", "-c", script)
    assert "10.1.2.3\tdb\n" in own and own.endswith("one\none\n")
    assert live.sh(script, "--network", "container:one") == own
    live.run("run", "-d", "--name", "two", "--network", "container:one", "small", "sh", "-c", ENDLESS)
    assert live.sh(script, "--network", "container:two") == own
    said = live.sh(script, "--network", "container:one", "-h", "own", "--add-host", "web:10.3.2.1", "--dns", "8.8.8.8")
    assert "10.1.2.3\tdb\n10.3.2.1\tweb\n" in said and "9.9.9.9" not in said and said.endswith("own\nown\n")


def test_what_cannot_be_is_refused_in_one_line(live: Shop) -> None:
    def refused(*options: str) -> str:
        return live.refuses("run", "--rm", *options, "small", status=125)

    assert "--network bridge" in refused("--network", "bridge").replace("'", "")
    assert "need a private network" in refused("--network", "host", "-p", "80:80")
    assert "needs runc" in refused("-p", "80:80", "--runtime", "bwrap")
    assert "no answers" in refused("-p", "127.0.0.1:53:53/udp")
    assert "--restart always" in refused("--restart", "always")
    assert "80-85 and 8000-8003 differ in length" in refused("-p", "8000-8003:80-85")
    assert live.names == []


def test_killed_run_ends_its_network(live: Shop, tmp_path: Path) -> None:
    with live.start("--name", "box", "--network", "private", "small", "sh", "-c", f"echo up; {ENDLESS}") as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        found = subprocess.run(["pgrep", "-P", str(process.pid), "slirp4netns"], stdout=subprocess.PIPE, check=True)
        (slirp,) = [int(word) for word in found.stdout.split()]
        process.kill()
    await_that(lambda: not Path(f"/proc/{slirp}").exists() or Path(f"/proc/{slirp}/stat").read_text().split()[2] == "Z")
