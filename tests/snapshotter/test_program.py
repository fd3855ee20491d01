"""The program: when it starts, when it refuses to, how it ends, and what a killed one leaves."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from overlayfs.tree.syscalls import mount
from tests.snapshotter.service import PATIENCE_S, Client, Service, new_service


def refusal(service: Service, *options: str | Path, path: str | None = None) -> str:
    """What the program says that does not start."""
    env = {**os.environ, "PATH": path} if path is not None else None
    process = service.run(*options, env=env)
    try:
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 1
    assert said.startswith("overlayfs-snapshotter: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_program_cleanly(service: Service, client: Client, number: int) -> None:
    client("Prepare", key="active")
    assert service.end(number) == (0, "")
    assert sorted(path.name for path in service.root.iterdir()) == ["metadata.db", "mounts", "snapshots"]


def test_signal_to_another_thread_ends_the_program(service: Service, client: Client) -> None:
    """gRPC's threads take signals too, and the main thread's system call then goes on."""
    libc = ctypes.CDLL(None, use_errno=True)
    threads = [int(name) for name in os.listdir(f"/proc/{service.pid}/task")]
    assert libc.tgkill(service.pid, max(threads), signal.SIGTERM) == 0
    assert service.wait() == (0, "")


def test_socket_is_its_owners_alone(service: Service, client: Client) -> None:
    assert stat.S_IMODE(service.address.stat().st_mode) == 0o600
    assert stat.S_IMODE(service.root.stat().st_mode) == 0o700


def test_root_in_use_is_refused(service: Service, client: Client) -> None:
    assert "in use by another" in refusal(service, "--address", service.top / "another")
    client("Prepare", key="active")


def test_socket_in_use_is_refused(service: Service, client: Client) -> None:
    with new_service() as another:
        assert f"{service.address} is in use" in refusal(another, "--address", service.address)
    client("Prepare", key="active")


def test_socket_that_a_killed_service_left_is_taken_over(service: Service, client: Client) -> None:
    client("Prepare", key="active")
    service.end(signal.SIGKILL)
    assert service.address.is_socket()
    again = service.start()
    assert again.names() == ["active"]
    again.close()


def test_file_in_place_of_the_socket_is_refused_and_kept(service: Service) -> None:
    service.address.write_text("mine")
    assert "not a socket" in refusal(service)
    assert service.address.read_text() == "mine"


def test_socket_of_another_kind_of_service_is_refused(service: Service) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(service.address))
        other.listen()
        assert "in use" in refusal(service)


def test_missing_helper_is_named(service: Service) -> None:
    assert "mount.fuse3 is not found" in refusal(service, path=str(service.top))


def test_missing_mount_program_is_named(service: Service) -> None:
    assert "no-such-program is not found" in refusal(service, "--mount-program", "no-such-program")


def test_mount_program_is_taken_from_path(service: Service) -> None:
    program = service.top / "my-mount"
    program.symlink_to("/bin/true")
    process = service.run(
        "--mount-program", "my-mount", env={**os.environ, "PATH": f"{os.environ['PATH']}:{service.top}"}
    )
    try:
        client = Client(service.address)
        client.wait_until_ready()
        client.add("base")
        client("Prepare", key="active", parent="base")
        assert client.mount("active").type == f"fuse3.{program}"
        client.close()
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


def test_database_that_is_none_is_named(service: Service) -> None:
    service.root.mkdir()
    (service.root / "metadata.db").write_bytes(b"not a database" * 1000)
    assert f"{service.root}/metadata.db: file is not a database" in refusal(service)
    assert (service.root / "metadata.db").read_bytes() == b"not a database" * 1000


@pytest.mark.parametrize("is_missing", [True, False])
def test_no_snapshot_is_deleted_for_a_lost_database(service: Service, client: Client, *, is_missing: bool) -> None:
    client.add("base")
    client("Prepare", key="active", parent="base")
    (service.layers / "2/fs/file").touch()
    service.end()
    database = service.root / "metadata.db"
    kept = database.read_bytes()
    database.unlink()
    if not is_missing:
        database.touch()
    for _ in range(2):
        assert f"{database} is empty or missing, but there are snapshots" in refusal(service)
    assert (service.layers / "2/fs/file").exists()
    database.write_bytes(kept)
    again = service.start()
    assert again.names() == ["active", "base"]
    again.close()


def test_database_of_a_later_version_is_refused(service: Service, client: Client) -> None:
    service.end()
    database = sqlite3.connect(service.root / "metadata.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    assert "version 99" in refusal(service)


def test_start_deletes_what_a_crash_left(service: Service, client: Client) -> None:
    client.add("base")
    client("Prepare", key="active", parent="base")
    client("Remove", key="active")
    service.end(signal.SIGKILL)
    for name in ("2", "3", "new-0"):
        shutil.copytree(service.layers / "1", service.layers / name)
    again = service.start()
    assert [path.name for path in service.layers.iterdir()] == ["1"]
    again("Prepare", key="active", parent="base")
    assert sorted(path.name for path in service.layers.iterdir()) == ["1", "3"]
    again.close()


@pytest.fixture
def small(service: Service) -> Iterator[Client]:
    """The service on a disk of 1 MiB."""
    service.root.mkdir()
    mount(b"none", os.fsencode(service.root), b"tmpfs", 0, b"size=1m")
    yield service.start()
    service.close()


def test_full_disk_loses_and_leaves_nothing(service: Service, small: Client) -> None:
    small.add("base")
    small("Prepare", key="active", parent="base")
    kept = small.infos()
    filler = service.root / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    requests = (("Prepare", {"key": "new", "parent": "base"}), ("Commit", {"key": "active", "name": "new"}))
    for method, fields in requests:
        with pytest.raises(grpc.RpcError, match="full"):
            small(method, **fields)
    assert small.infos() == kept
    service.end(signal.SIGKILL)
    client = service.start()
    assert client.infos() == kept
    filler.unlink()
    for method, fields in requests:
        client(method, **fields)
        client("Remove", key="new")
    assert client.names() == ["base"]
    client.close()
