"""The messages of containerd's snapshots service, as protobuf classes built at import.

The tables follow containerd's api/services/snapshots/v1/snapshots.proto and api/types/mount.proto: a field's number is
part of the protocol.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2, field_mask_pb2, timestamp_pb2

from .protobuf import Messages, add_file, message_class

SERVICE = "containerd.services.snapshots.v1.Snapshots"
Empty: Any = empty_pb2.Empty

_PACKAGE = "containerd.services.snapshots.v1"
_WELL_KNOWN = (timestamp_pb2, field_mask_pb2)  # imported by the file that is built here

_KEY = (("snapshotter", "string", 1), ("key", "string", 2))
_NEW = (*_KEY, ("parent", "string", 3), ("labels", "{}", 4))
_MOUNTS = (("mounts", "[.containerd.types.Mount]", 1),)
_INFO = f".{_PACKAGE}.Info"
_MESSAGES: Messages = {
    "Info": (
        ("name", "string", 1),
        ("parent", "string", 2),
        ("kind", "int32", 3),  # an enum there: the same on the wire
        ("created_at", ".google.protobuf.Timestamp", 4),
        ("updated_at", ".google.protobuf.Timestamp", 5),
        ("labels", "{}", 6),
    ),
    "PrepareSnapshotRequest": _NEW,
    "PrepareSnapshotResponse": _MOUNTS,
    "ViewSnapshotRequest": _NEW,
    "ViewSnapshotResponse": _MOUNTS,
    "MountsRequest": _KEY,
    "MountsResponse": _MOUNTS,
    "RemoveSnapshotRequest": _KEY,
    "CommitSnapshotRequest": (
        ("snapshotter", "string", 1),
        ("name", "string", 2),
        ("key", "string", 3),
        ("labels", "{}", 4),
    ),
    "StatSnapshotRequest": _KEY,
    "StatSnapshotResponse": (("info", _INFO, 1),),
    "UpdateSnapshotRequest": (
        ("snapshotter", "string", 1),
        ("info", _INFO, 2),
        ("update_mask", ".google.protobuf.FieldMask", 3),
    ),
    "UpdateSnapshotResponse": (("info", _INFO, 1),),
    "ListSnapshotsRequest": (("snapshotter", "string", 1), ("filters", "[string]", 2)),
    "ListSnapshotsResponse": (("info", f"[{_INFO}]", 1),),
    "UsageRequest": _KEY,
    "UsageResponse": (("size", "int64", 1), ("inodes", "int64", 2)),
    "CleanupRequest": (("snapshotter", "string", 1),),
}
_MOUNT = (("type", "string", 1), ("source", "string", 2), ("target", "string", 3), ("options", "[string]", 4))


def message(name: str) -> Any:
    """The class of a message of the service, by its short name."""
    return message_class(f"{_PACKAGE}.{name}")


add_file("overlayfs/containerd/mount.proto", "containerd.types", {"Mount": _MOUNT})
add_file(
    "overlayfs/containerd/snapshots.proto",
    _PACKAGE,
    _MESSAGES,
    "overlayfs/containerd/mount.proto",
    *(module.DESCRIPTOR.name for module in _WELL_KNOWN),
)
