"""Whole stories of users, from beginning to end: a server taken from a registry, changed and shared again; a program
built in two stages; and the life of a detached container."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.oci.documents import HealthConfig, RunConfig
from overlayfs.image.store.store import Store
from tests.cli.container.shop import Shop, await_that
from tests.cli.container.terminals import on_terminal
from tests.container.small import image_of, small_image
from tests.image.registry.docker_registry import docker_registry
from tests.prepared import PATIENCE_S, Prepared

SERVE = ["busybox", "httpd", "-f", "-p", "80", "-h", "/srv/www"]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an empty registry, which is reached by plain HTTP."""
    for name in ("registry", "overlayfs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with docker_registry(tmp_path / "registry") as running:
        (tmp_path / "overlayfs/registries.toml").write_text(f'[registry."{running.name}"]\ninsecure = true\n')
        yield running.name


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prepared]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with Prepared() as prepared:
        yield prepared


def shop_at(path: Path, prepared: Prepared) -> Iterator[Shop]:
    with Store.open(path):
        shop = Shop(path, prepared)
    yield shop
    for name in shop.names:
        shop.call("rm", "--force", "--volumes", name)


@pytest.fixture
def mine(tmp_path: Path, prepared: Prepared) -> Iterator[Shop]:
    yield from shop_at(tmp_path / "mine", prepared)


@pytest.fixture
def colleague(tmp_path: Path, prepared: Prepared) -> Iterator[Shop]:
    """Somebody else's store."""
    yield from shop_at(tmp_path / "colleague", prepared)


def publish_server(shop: Shop, name: str) -> None:
    """Push an image like those of servers in registries: a program, what it serves, a port, and a health check."""
    with Store.open(shop.store) as store:
        files = {"bin/busybox": Path("/bin/busybox").read_bytes(), "srv/www/index.html": b"It works!\n"}
        health = HealthConfig(["CMD", "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1/"])
        config = RunConfig(cmd=SERVE, exposed_ports={"80/tcp": {}}, healthcheck=health, env=["PATH=/bin"])
        image_of(store, name, config, files, base=small_image(store))
    shop.run("push", "-q", name)


def page_at(port: int) -> str:
    """What a browser is shown."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    return answer.decode().partition("\r\n\r\n")[2]


def port_of(shop: Shop, name: str) -> int:
    return int(shop.run("port", name, "80").rsplit(":", 1)[1])


def test_server_is_pulled_run_changed_and_shared(mine: Shop, colleague: Shop, registry: str) -> None:
    server, changed = f"{registry}/library/server", f"{registry}/team/server:changed"
    publish_server(colleague, server)

    # it is run, without having been pulled, on a terminal and with a published port
    options = ("-it", "--init", "--name", "web", "-p", "127.0.0.1::80")
    with on_terminal(mine, "run", *options, server) as terminal:
        await_that(lambda: mine.call("healthcheck", "run", "web").status == 0)
        assert page_at(port_of(mine, "web")) == "It works!\n"
        # looked into and changed
        with on_terminal(mine, "exec", "-it", "web", "sh") as shell:
            shell.type(b"cat /srv/www/index.html; echo Changed >/srv/www/index.html; exit 7\n")
            shell.read_until(b"It works!")
            assert shell.status() == 7
        assert page_at(port_of(mine, "web")) == "Changed\n"
        terminal.type(b"\x03")
        assert terminal.status() == 130

    # kept as a new image
    assert mine.run("diff", "web") == "M /srv/www/index.html\n"
    made = mine.run("commit", "-a", "A Person <a@example.org>", "-m", "another page", "web", "server:changed").strip()
    listed = mine.run("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
    assert "server:changed" in listed and f"{server}:latest" in listed
    assert mine.run("inspect", "--format", "{{.Author}}", "server:changed") == "A Person <a@example.org>\n"
    assert "another page" in mine.run("history", "server:changed")
    assert mine.run("run", "--rm", "server:changed", "cat", "/srv/www/index.html") == "Changed\n"

    # and shared
    mine.run("tag", "server:changed", changed)
    mine.run("push", "-q", changed)
    colleague.run("pull", "-q", changed)
    assert colleague.run("inspect", "--format", "{{.Id}}", changed).strip() == made
    colleague.run("run", "-d", "--name", "web", "-p", "127.0.0.1::80", changed)
    await_that(lambda: colleague.call("healthcheck", "run", "web").status == 0)
    assert page_at(port_of(colleague, "web")) == "Changed\n"


TWO_STAGES = """
FROM sdk AS build
WORKDIR /source
COPY *.in .
RUN mkdir /out && for file in *.in; do sed "s/@NAME@/world/" $file >/out/${file%.in}; done && chmod 755 /out/*

FROM small
COPY --from=build /out /app
WORKDIR /app
ENTRYPOINT ["/app/hello"]
CMD ["nobody"]
"""


def test_program_is_built_in_one_stage_and_run_in_another(mine: Shop, tmp_path: Path) -> None:
    with Store.open(mine.store) as store:
        sdk = {f"bin/{name}": Path("/bin/busybox").read_bytes() for name in ("busybox", "sed", "chmod")}
        image_of(store, "sdk", RunConfig(env=["PATH=/bin"]), sdk, base=small_image(store, RunConfig(cmd=["sh"])))
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(TWO_STAGES)
    (context / "hello.in").write_text('#!/bin/sh\necho "hello @NAME@, $1 of $(pwd)"\n')
    assert mine.call("build", "-t", "hello", context).status == 0
    assert mine.run("run", "--rm", "hello") == "hello world, nobody of /app\n"
    assert mine.run("run", "--rm", "hello", "somebody") == "hello world, somebody of /app\n"
    # nothing of the first stage is in the image
    assert "sed" in mine.run("tree", "sdk") and "sed" not in mine.run("tree", "hello")
    before = mine.run("inspect", "-f", "{{.Id}}", "hello")
    assert mine.call("build", "-t", "hello", context).status == 0
    assert mine.run("inspect", "-f", "{{.Id}}", "hello") == before


def test_life_of_a_detached_container(mine: Shop) -> None:
    with Store.open(mine.store) as store:
        small_image(store)
    script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    identity = mine.run("run", "-d", "--name", "worker", "-v", "/scratch", "small", "sh", "-c", script).strip()
    assert re.fullmatch("[0-9a-f]{64}", identity)
    await_that(lambda: mine.run("logs", "worker") == "ready\n")
    assert mine.run("ps", "--format", "{{.Names}} {{.State}}") == "worker running\n"
    assert mine.run("stop", "worker") == "worker\n"
    assert mine.run("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "worker") == "exited 3\n"
    mine.run("start", "worker")
    await_that(lambda: mine.run("logs", "worker") == "ready\nbye\nready\n")
    assert "worker is running" in mine.refuses("rm", "worker")
    assert mine.run("kill", "worker") == "worker\n" and mine.run("wait", "worker") == "137\n"
    assert mine.run("rm", "-v", "worker") == "worker\n"
    assert mine.run("ps", "-a") == mine.run("volume", "ls") == ""
