"""The snapshotter mounts by itself: once for each snapshot, beyond its own end, and nothing that has no record."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from overlayfs.cli.mounts.live import read_status
from tests.snapshotter.service import PATIENCE_S, Client, Service, mounted, mounts_below, new_service


@pytest.fixture
def service() -> Iterator[Service]:
    with new_service("--self-mount") as service:
        yield service


@pytest.fixture
def point(service: Service, client: Client) -> Path:
    """The mount of an active snapshot `active` on a layer with the file `low`."""
    client("Prepare", key="base-active")
    (service.layers / "1/fs/low").write_text("low")
    client("Commit", key="base-active", name="base")
    (only,) = client("Prepare", key="active", parent="base").mounts
    assert (only.type, list(only.options)) == ("bind", ["rw", "rbind"])
    return Path(only.source)


def daemon_of(point: Path) -> int:
    return read_status(os.fsencode(point), timeout_s=10.0).pid


def kill_daemon(point: Path) -> None:
    """Kill what serves the mount, and wait until it has ended."""
    kill(daemon_of(point))


def kill(pid: int) -> None:
    with ending(pid):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def ending(pid: int) -> Iterator[None]:
    """At the end of the context, wait until the process has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        yield
        assert select.select([descriptor], [], [], PATIENCE_S)[0]
    finally:
        os.close(descriptor)


def starter_of(service: Service) -> int:
    (starter,) = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    return int(starter)


def test_snapshot_is_mounted_once(client: Client, service: Service, point: Path) -> None:
    daemon = daemon_of(point)
    assert client.mount("active").source == str(point)
    assert daemon_of(point) == daemon
    assert mounts_below(service.top) == [point]


def test_requests_at_once_mount_once(client: Client, service: Service, point: Path) -> None:
    kill_daemon(point)
    with ThreadPoolExecutor(8) as pool:
        sources = {mount.source for mount in pool.map(client.mount, ["active"] * 8)}
    assert sources == {str(point)}
    assert mounts_below(service.top) == [point]
    assert (point / "low").read_text() == "low"


def test_killed_mount_program_is_started_again(client: Client, service: Service, point: Path) -> None:
    (point / "high").write_text("high")
    kill_daemon(point)
    client.mount("active")
    assert sorted(os.listdir(point)) == ["high", "low"]


def test_mounts_are_made_where_their_starter_was_killed(client: Client, service: Service, point: Path) -> None:
    kill(starter_of(service))
    kill_daemon(point)
    client("Prepare", key="another", parent="base")
    client.mount("active")
    assert len(mounts_below(service.top)) == 2
    assert os.listdir(point) == ["low"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_starter_of_mounts_ends_with_the_service(client: Client, service: Service, point: Path, number: int) -> None:
    with ending(starter_of(service)):
        service.end(number)
    assert os.listdir(point) == ["low"]


def test_refusal_of_the_mount_program_is_passed_on(client: Client, service: Service, point: Path) -> None:
    shutil.rmtree(service.layers / "1/fs")
    kill_daemon(point)
    with pytest.raises(grpc.RpcError, match=r"snapshots/1/fs does not exist"):
        client.mount("active")


def test_restarted_service_goes_on_with_what_is_mounted(client: Client, service: Service, point: Path) -> None:
    daemon = daemon_of(point)
    with mounted(client.mount("active"), service.top / "mnt") as tree, (tree / "open").open("w") as file:
        service.end(signal.SIGKILL)
        file.write("written on")
        file.flush()
        again = service.start()
        assert again.mount("active").source == str(point)
        assert daemon_of(point) == daemon
        assert (point / "open").read_text() == "written on"
    again("Remove", key="active")
    assert mounts_below(service.top) == []
    again.close()


def test_service_that_does_not_mount_goes_on_with_what_is_mounted(
    client: Client, service: Service, point: Path
) -> None:
    """Two programs must not serve one upper directory."""
    service.end()
    service.options = ()
    again = service.start()
    assert again.mount("active").source == str(point)
    again("Prepare", key="another", parent="base")
    assert again.mount("another").type.startswith("fuse3.")
    again("Remove", key="active")
    assert mounts_below(service.top) == []
    again.close()


@pytest.mark.parametrize("request_name", ["Remove", "Commit"])
def test_mount_goes_with_its_snapshot(client: Client, service: Service, point: Path, request_name: str) -> None:
    (point / "high").write_text("high")
    client(request_name, key="active", **({"name": "done"} if request_name == "Commit" else {}))
    assert mounts_below(service.top) == []
    assert list((service.root / "mounts").iterdir()) == []
    assert (service.layers / "2/fs/high").exists() is (request_name == "Commit")


def test_commit_of_a_snapshot_in_use_has_what_was_written(client: Client, service: Service, point: Path) -> None:
    with mounted(client.mount("active"), service.top / "mnt") as tree, (tree / "open").open("w") as file:
        file.write("in use")
        file.flush()
        client("Commit", key="active", name="done")
        assert (service.layers / "2/fs/open").read_text() == "in use"
        assert (tree / "low").read_text() == "low"
    client("View", key="view", parent="done")
    assert sorted(os.listdir(client.mount("view").source)) == ["low", "open"]


def test_view_of_several_layers_is_bound_read_only(client: Client, service: Service, point: Path) -> None:
    client("Commit", key="active", name="second")
    (only,) = client("View", key="view", parent="second").mounts
    assert (only.type, list(only.options)) == ("bind", ["ro", "rbind"])
    with mounted(only, service.top / "mnt") as tree, pytest.raises(OSError, match="Read-only file system"):
        (tree / "file").touch()


def test_mount_without_a_record_is_unmounted_at_the_next_start(client: Client, service: Service, point: Path) -> None:
    service.end(signal.SIGKILL)
    with sqlite3.connect(service.root / "metadata.db") as database:
        database.execute("DELETE FROM snapshots WHERE name = 'active'")
    database.close()
    again = service.start()
    assert again.names() == ["base"]
    assert mounts_below(service.top) == []
    assert [path.name for path in service.layers.iterdir()] == ["1"]
    again.close()


def test_snapshot_that_cannot_be_mounted_is_not_made(service: Service) -> None:
    program = service.top / "program"
    program.write_text("#!/bin/sh\necho no room for a mount >&2; exit 1\n")
    program.chmod(0o700)
    service.options += ("--mount-program", str(program))
    client = service.start()
    client.add("base")
    with pytest.raises(grpc.RpcError, match="no room for a mount"):
        client("Prepare", key="active", parent="base")
    assert client.names() == ["base"]
    assert [path.name for path in service.layers.iterdir()] == ["1"]
    client.close()


def test_program_that_mounts_nothing_is_named(service: Service) -> None:
    service.options += ("--mount-program", "/bin/true")
    client = service.start()
    client.add("base")
    with pytest.raises(grpc.RpcError, match="/bin/true mounted nothing"):
        client("Prepare", key="active", parent="base")
    client.close()


def test_neither_mount_fuse3_nor_a_shell_is_needed(service: Service) -> None:
    process = service.run(env={**os.environ, "PATH": str(service.top)})
    try:
        client = Client(service.address)
        client.wait_until_ready()
        client.add("base")
        client("Prepare", key="active", parent="base")
        assert mounts_below(service.top) == [Path(client.mount("active").source)]
        client.close()
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
