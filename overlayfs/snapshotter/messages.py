"""The messages of containerd's snapshots service, as protobuf classes built at import.

The tables follow containerd's api/services/snapshots/v1/snapshots.proto and api/types/mount.proto: a field's number is
part of the protocol. Nothing is generated, so building and installing need no protoc.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, field_mask_pb2, message_factory, timestamp_pb2

SERVICE = "containerd.services.snapshots.v1.Snapshots"
Empty: Any = empty_pb2.Empty

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "containerd.services.snapshots.v1"
_WELL_KNOWN = (timestamp_pb2, field_mask_pb2)  # imported by the file that is built here

# name, type (of protobuf, or a message's full name), number; a type in [] is repeated, {} is a map of strings
_KEY = (("snapshotter", "string", 1), ("key", "string", 2))
_NEW = (*_KEY, ("parent", "string", 3), ("labels", "{}", 4))
_MOUNTS = (("mounts", "[.containerd.types.Mount]", 1),)
_INFO = f".{_PACKAGE}.Info"
_MESSAGES: dict[str, tuple[tuple[str, str, int], ...]] = {
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
_SCALARS = {"string": _Field.TYPE_STRING, "int32": _Field.TYPE_INT32, "int64": _Field.TYPE_INT64}


def _add_file(name: str, package: str, messages: dict[str, tuple[tuple[str, str, int], ...]], *needs: str) -> None:
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3", dependency=needs)
    for message, fields in messages.items():
        built = file.message_type.add(name=message)
        for field, kind, number in fields:
            _add_field(built, f".{package}.{message}", field, kind, number)
    descriptor_pool.Default().Add(file)


def _add_field(message: descriptor_pb2.DescriptorProto, path: str, name: str, kind: str, number: int) -> None:
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if kind == "{}":
        _add_map_entry(message)
        kind = f"[{path}.LabelsEntry]"
    if kind.startswith("["):
        field.label = _Field.LABEL_REPEATED
        kind = kind.strip("[]")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, kind


def _add_map_entry(message: descriptor_pb2.DescriptorProto) -> None:
    """A map is a repeated message of keys and values on the wire; the name is what protoc makes of `labels`."""
    entry = message.nested_type.add(name="LabelsEntry")
    entry.options.map_entry = True
    for number, name in enumerate(("key", "value"), 1):
        entry.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)


def message(name: str) -> Any:
    """The class of a message of the service, by its short name."""
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


_add_file("overlayfs/containerd/mount.proto", "containerd.types", {"Mount": _MOUNT})
_add_file(
    "overlayfs/containerd/snapshots.proto",
    _PACKAGE,
    _MESSAGES,
    "overlayfs/containerd/mount.proto",
    *(module.DESCRIPTOR.name for module in _WELL_KNOWN),
)
