"""PostgreSQL on a mount with its data in a layer: each test changes it, and the next finds it as it was.

The recipe: stop the server (in `immediate` mode, as what it would still write is thrown away), roll back, start it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import overlayfs
from tests.mounted.program import mounts_beneath
from tests.property.paths import unmount

USER = "postgres"
ROWS = 20_000


def _programs() -> Path:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert versions, "apt-get install postgresql"
    return versions[-1]


class Server:
    """A server on a data directory, reached by a socket beside it."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self._data, self._sockets = data, sockets

    def _run(self, program: str, *arguments: str) -> str:
        command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", str(_programs() / program)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd="/", check=False, timeout=250)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def make(self) -> None:
        self._run("initdb", "-D", str(self._data), "--auth=trust", "--no-sync", "--locale=C")

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._sockets} -c max_connections=20"
        log = self._sockets / "log"
        self._run("pg_ctl", "-D", str(self._data), "-l", str(log), "-w", "-o", options, "start")

    def stop(self, mode: str) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def ask(self, statement: str) -> str:
        return self._run("psql", "-h", str(self._sockets), "-qAtc", statement, "postgres").strip()


@pytest.fixture
def sockets(scratch: Path) -> Path:
    place = scratch / "s"
    place.mkdir()
    shutil.chown(place, USER, USER)
    return place


@pytest.fixture
def layer(scratch: Path, sockets: Path, long: bool) -> Path:
    """A layer with a filled database in `data`."""
    layer = scratch / "layer"
    layer.mkdir(mode=0o755)
    (layer / "data").mkdir(mode=0o700)
    shutil.chown(layer / "data", USER, USER)
    server = Server(layer / "data", sockets)
    server.make()
    server.start()
    rows = 200_000 if long else ROWS
    server.ask(f"create table t as select n, md5(n::text) as h from generate_series(1, {rows}) n")
    server.stop("fast")
    return layer


@pytest.fixture
def mounted(scratch: Path, layer: Path) -> Iterator[overlayfs.Mount]:
    (scratch / "mount").mkdir()
    with overlayfs.mount([layer], scratch / "mount", ephemeral=True) as m:
        yield m
    for left in mounts_beneath(scratch):
        unmount(Path(left.place))


def test_each_test_finds_the_data_as_it_was(mounted: overlayfs.Mount, sockets: Path) -> None:
    assert pwd.getpwnam(USER).pw_uid == os.stat(mounted.path / "data").st_uid
    server = Server(mounted.path / "data", sockets)
    server.start()
    whole = server.ask("select count(*), min(h), max(h) from t")
    server.stop("fast")
    mounted.snapshot("filled")
    for _ in range(2):
        server.start()
        try:
            assert server.ask("select count(*), min(h), max(h) from t") == whole
            server.ask("delete from t where n % 3 = 0; update t set h = 'changed'; create table more (x int)")
            assert server.ask("select max(h) from t") == "changed"
        finally:
            server.stop("immediate")
        mounted.rollback("filled")
