"""The service through its socket: kinds, parents, labels and errors, as containerd documents and tests them."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from overlayfs.snapshotter.metadata import Kind
from tests.snapshotter.service import Client, Service

UID, GID = "containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping"
MANY = 250  # more than the service puts into one message


def fill(client: Client) -> None:
    """c1 <- c2 committed; on c2 the active a1 and the view v1; a2 and v2 have no parent."""
    client.add("c1")
    client.add("c2", "c1")
    client("Prepare", key="a1", parent="c2")
    client("Prepare", key="a2")
    client("View", key="v1", parent="c2")
    client("View", key="v2")


FILLED = {
    "a1": ("c2", Kind.ACTIVE),
    "a2": ("", Kind.ACTIVE),
    "c1": ("", Kind.COMMITTED),
    "c2": ("c1", Kind.COMMITTED),
    "v1": ("c2", Kind.VIEW),
    "v2": ("", Kind.VIEW),
}


def test_snapshots_have_their_kinds_and_parents(client: Client) -> None:
    before = time.time()
    fill(client)
    after = time.time()
    assert {info.name: (info.parent, info.kind) for info in client.infos()} == FILLED
    for info in client.infos():
        assert client("Stat", key=info.name).info == info
        assert info.created_at == info.updated_at
        assert before <= info.created_at.seconds + info.created_at.nanos / 1e9 <= after


@pytest.mark.parametrize(
    ("method", "fields", "status"),
    [
        ("Prepare", {"key": "a1"}, "ALREADY_EXISTS"),
        ("Prepare", {"key": "c1", "parent": "c1"}, "ALREADY_EXISTS"),
        ("View", {"key": "a1", "parent": "c1"}, "ALREADY_EXISTS"),
        ("View", {"key": "v1", "parent": "c1"}, "ALREADY_EXISTS"),
        ("Prepare", {"key": "new", "parent": "missing"}, "NOT_FOUND"),
        ("View", {"key": "new", "parent": "missing"}, "NOT_FOUND"),
        ("Prepare", {"key": "new", "parent": "a1"}, "INVALID_ARGUMENT"),
        ("View", {"key": "new", "parent": "a1"}, "INVALID_ARGUMENT"),
        ("View", {"key": "new", "parent": "v1"}, "INVALID_ARGUMENT"),
        ("Prepare", {"key": ""}, "INVALID_ARGUMENT"),
        ("Prepare", {"key": "new", "labels": {"l": "x" * 4096}}, "INVALID_ARGUMENT"),
        ("Prepare", {"key": "new", "parent": "c1", "labels": {UID: "0:1000"}}, "INVALID_ARGUMENT"),
        ("Prepare", {"key": "new", "parent": "c1", "labels": {GID: "0:1:2,upperdir=/"}}, "INVALID_ARGUMENT"),
        ("Prepare", {"key": "new", "labels": {UID: "0:1000:10"}}, "INVALID_ARGUMENT"),
        ("Mounts", {"key": "missing"}, "NOT_FOUND"),
        ("Mounts", {"key": "c1"}, "FAILED_PRECONDITION"),
        ("Commit", {"name": "new", "key": "missing"}, "NOT_FOUND"),
        ("Commit", {"name": "new", "key": "c2"}, "FAILED_PRECONDITION"),
        ("Commit", {"name": "new", "key": "v1"}, "FAILED_PRECONDITION"),
        ("Commit", {"name": "c1", "key": "a1"}, "ALREADY_EXISTS"),
        ("Commit", {"name": "a2", "key": "a1"}, "ALREADY_EXISTS"),
        ("Commit", {"name": "", "key": "a1"}, "INVALID_ARGUMENT"),
        ("Remove", {"key": "missing"}, "NOT_FOUND"),
        ("Remove", {"key": "c1"}, "FAILED_PRECONDITION"),
        ("Remove", {"key": "c2"}, "FAILED_PRECONDITION"),
        ("Stat", {"key": "missing"}, "NOT_FOUND"),
        ("Usage", {"key": "missing"}, "NOT_FOUND"),
        ("Update", {"info": {"name": "missing"}}, "NOT_FOUND"),
        ("Update", {"info": {"name": "c1"}, "update_mask": {"paths": ["parent"]}}, "INVALID_ARGUMENT"),
        ("Update", {"info": {"name": "c1"}, "update_mask": {"paths": ["labels", "kind"]}}, "INVALID_ARGUMENT"),
    ],
)
def test_refused_request_has_its_status_and_changes_nothing(
    client: Client, service: Service, method: str, fields: dict[str, Any], status: str
) -> None:
    fill(client)
    infos, directories = client.infos(), sorted(service.layers.iterdir())
    with pytest.raises(grpc.RpcError) as refused:
        client(method, **fields)
    assert refused.value.code().name == status
    assert client.infos() == infos
    client("Cleanup")
    assert sorted(service.layers.iterdir()) == directories


def test_bad_filter_is_an_invalid_argument(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        client.infos("name=x")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", FILLED)
def test_update_changes_labels_and_nothing_else(client: Client, name: str) -> None:
    fill(client)
    before = client("Stat", key=name).info

    def update(labels: dict[str, str], *mask: str) -> dict[str, str]:
        info = {"name": name, "parent": "another", "kind": 0, "labels": labels}
        after = client("Update", info=info, update_mask={"paths": mask}).info
        assert client("Stat", key=name).info == after
        assert (after.parent, after.kind, after.created_at) == (before.parent, before.kind, before.created_at)
        assert after.updated_at.ToNanoseconds() > before.updated_at.ToNanoseconds()
        return dict(after.labels)

    assert update({"l1": "v1", "l2": "v2", "l3": "v3"}) == {"l1": "v1", "l2": "v2", "l3": "v3"}
    assert update({"l1": "new", "l4": "v4"}, "labels.l1", "labels.l2") == {"l1": "new", "l3": "v3"}
    assert update({"a.b/c": "x", "l1": "y"}, "labels.a.b/c") == {"l1": "new", "l3": "v3", "a.b/c": "x"}
    assert update({"l4": "v4"}, "labels", "labels.l1") == {"l4": "v4"}
    assert update({}) == {}


def test_labels_are_kept_by_prepare_and_replaced_by_commit(client: Client) -> None:
    client("Prepare", key="active", labels={"a": "1", "empty": ""})
    assert client("Stat", key="active").info.labels == {"a": "1"}
    client("Commit", key="active", name="done", labels={"b": "2"})
    assert client("Stat", key="done").info.labels == {"b": "2"}


def test_many_snapshots_are_listed(client: Client) -> None:
    for number in range(MANY):
        client("Prepare", key=f"{number:03}", labels={"l": "x" * 4000})
    assert client.names() == [f"{number:03}" for number in range(MANY)]
    assert client.names("name~=7$,kind==active") == [f"{number:03}" for number in range(7, MANY, 10)]


def test_snapshots_are_looked_at_and_removed_while_they_are_listed(client: Client) -> None:
    """containerd walks so when it collects garbage."""
    for number in range(MANY):
        client("Prepare", key=f"{number:03}")
    walked = []
    for info in client.walk():
        assert client("Stat", key=info.name).info == info
        client("Remove", key=info.name)
        walked.append(info.name)
    assert walked == [f"{number:03}" for number in range(MANY)]
    assert client.infos() == []


def test_names_may_be_used_again(client: Client) -> None:
    client.add("committed")
    client("Prepare", key="reused", parent="committed")
    client("Remove", key="reused")
    client("View", key="reused", parent="committed")
    client("Remove", key="reused")
    client("Prepare", key="reused")
    client("Remove", key="committed")
    client("Commit", key="reused", name="committed")
    assert client.names() == ["committed"]


def test_removal_in_any_allowed_order_leaves_no_directory(client: Client, service: Service) -> None:
    fill(client)
    for key in ("v2", "a1", "v1", "c2", "a2", "c1"):
        client("Remove", key=key)
    assert client.infos() == []
    assert list(service.layers.iterdir()) == []


def test_cleanup_deletes_what_no_snapshot_owns(client: Client, service: Service) -> None:
    fill(client)
    owned = sorted(service.layers.iterdir())
    for name in ("new-1", "9999", "old-2", "stray"):
        (service.layers / name / "fs/deep").mkdir(parents=True)
    client("Cleanup")
    assert sorted(service.layers.iterdir()) == owned


def test_directory_of_an_uncommitted_record_does_not_stand_in_the_way(client: Client, service: Service) -> None:
    """A failed commit of the database gives the same id again."""
    (service.layers / "1/fs").mkdir(parents=True)
    (service.layers / "1/fs/stray").touch()
    client("Prepare", key="first")
    assert list((service.layers / "1/fs").iterdir()) == []
    client("Cleanup")
    assert [path.name for path in service.layers.iterdir()] == ["1"]


def test_layers_lie_as_containerds_overlay_snapshotter_lays_them_out(client: Client, service: Service) -> None:
    client("Prepare", key="active")
    client("View", key="view")
    modes = {str(path.relative_to(service.layers)): path.stat().st_mode & 0o7777 for path in service.layers.rglob("*")}
    assert modes == {"1": 0o700, "1/fs": 0o755, "1/work": 0o711, "2": 0o700, "2/fs": 0o755}


def test_usage_is_live_until_the_commit(client: Client) -> None:
    client("Prepare", key="active")
    upper = Path(client.mount("active").source)
    empty = client("Usage", key="active")
    (upper / "file").write_bytes(b"x" * 100_000)
    used = client("Usage", key="active")
    assert (empty.inodes, used.inodes) == (1, 2)
    assert used.size - empty.size >= 100_000
    client("Commit", key="active", name="done")
    (upper / "later").write_bytes(b"x")
    done = client("Usage", key="done")
    assert done.inodes == used.inodes
    assert done.size - empty.size >= 100_000
    client("View", key="view", parent="done")
    assert (client("Usage", key="view").size, client("Usage", key="view").inodes) == (0, 0)


def test_id_mappings_become_options(client: Client) -> None:
    client.add("base")
    client("Prepare", key="active", parent="base", labels={UID: "0:1000:10,10:5000:1", GID: "0:2000:10"})
    client("View", key="view", parent="base", labels={UID: "0:1000:10"})
    assert list(client.mount("active").options)[-2:] == ["uidmapping=0:1000:10:10:5000:1", "gidmapping=0:2000:10"]
    assert list(client.mount("view").options)[-1:] == ["uidmapping=0:1000:10"]


def test_upper_belongs_to_the_owner_of_its_parent(client: Client) -> None:
    client("Prepare", key="base-active")
    upper = Path(client.mount("base-active").source)
    os.chown(upper, 12, 34)
    client("Commit", key="base-active", name="base")
    mount = client("Prepare", key="active", parent="base").mounts[0]
    made = Path(next(option for option in mount.options if option.startswith("upperdir=")).removeprefix("upperdir="))
    assert (made.stat().st_uid, made.stat().st_gid) == (12, 34)


def test_concurrent_requests_neither_fail_nor_mix(client: Client, service: Service) -> None:
    client.add("base")

    def live(number: int) -> None:
        key = f"active-{number}"
        client("Prepare", key=key, parent="base", labels={"number": str(number)})
        client("Cleanup")
        client.infos("kind==active")
        client("Commit", key=key, name=f"done-{number}")
        client("View", key=f"view-{number}", parent=f"done-{number}")
        client("Remove", key=f"view-{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(32)))
    assert client.names() == sorted(["base", *(f"done-{number}" for number in range(32))])
    assert len(list(service.layers.iterdir())) == 33
    assert all((path / "fs").is_dir() for path in service.layers.iterdir())


def test_one_of_many_that_want_a_name_gets_it(client: Client) -> None:
    def prepare(_: int) -> str:
        try:
            client("Prepare", key="wanted")
        except grpc.RpcError as error:
            return str(error.code().name)
        return "made"

    with ThreadPoolExecutor(8) as pool:
        results = sorted(pool.map(prepare, range(8)))
    assert results == ["ALREADY_EXISTS"] * 7 + ["made"]
