"""The messages on the wire, by the field numbers of containerd's snapshots.proto and mount.proto."""

from __future__ import annotations

from typing import Any

import pytest

from overlayfs.snapshotter.messages import message

MOUNT = {"type": "t", "source": "s", "target": "g", "options": ["a", "b"]}
MOUNT_BYTES = "0a0174 120173 1a0167 220161 220162"
INFO = {
    "name": "n",
    "parent": "p",
    "kind": 2,
    "created_at": {"seconds": 5},
    "updated_at": {"nanos": 7},
    "labels": {"k": "v"},
}
INFO_BYTES = "0a016e 120170 1802 22020805 2a021007 32060a016b120176"


@pytest.mark.parametrize(
    ("name", "fields", "encoded"),
    [
        ("Info", INFO, INFO_BYTES),
        ("PrepareSnapshotRequest", {"key": "k", "parent": "p", "labels": {"k": "v"}}, "12016b 1a0170 22060a016b120176"),
        ("ViewSnapshotRequest", {"key": "k", "parent": "p", "labels": {"k": "v"}}, "12016b 1a0170 22060a016b120176"),
        ("PrepareSnapshotResponse", {"mounts": [MOUNT]}, f"0a0f {MOUNT_BYTES}"),
        ("MountsRequest", {"snapshotter": "s", "key": "k"}, "0a0173 12016b"),
        ("CommitSnapshotRequest", {"name": "n", "key": "k", "labels": {"k": "v"}}, "12016e 1a016b 22060a016b120176"),
        ("StatSnapshotResponse", {"info": INFO}, f"0a18 {INFO_BYTES}"),
        ("UpdateSnapshotRequest", {"info": {"name": "n"}, "update_mask": {"paths": ["a"]}}, "12030a016e 1a030a0161"),
        ("ListSnapshotsRequest", {"filters": ["a", "b"]}, "120161 120162"),
        ("ListSnapshotsResponse", {"info": [{"name": "n"}]}, "0a030a016e"),
        ("UsageResponse", {"size": 5, "inodes": 7}, "0805 1007"),
    ],
)
def test_message_has_containerds_field_numbers(name: str, fields: dict[str, Any], encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert message(name)(**fields).SerializeToString() == data
    assert message(name).FromString(data) == message(name)(**fields)
