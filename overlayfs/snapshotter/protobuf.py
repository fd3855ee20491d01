"""Protobuf classes from tables of fields, made at import: nothing is generated, so installing needs no protoc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
}

Messages = Mapping[str, Sequence[tuple[str, str, int]]]
"""The fields of each message: name, type (of protobuf, or a dot and a message's full name), number. A type in [] is
repeated, {} is a map of strings."""


def add_file(name: str, package: str, messages: Messages, *needs: str) -> None:
    """Declare messages as a `.proto` file of that name does; `needs` are the files it imports."""
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3", dependency=needs)
    for message, fields in messages.items():
        built = file.message_type.add(name=message)
        for field, kind, number in fields:
            _add_field(built, f".{package}.{message}", field, kind, number)
    descriptor_pool.Default().Add(file)


def message_class(name: str) -> Any:
    """The class of a declared message, by its full name."""
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))


def _add_field(message: descriptor_pb2.DescriptorProto, path: str, name: str, kind: str, number: int) -> None:
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if kind == "{}":
        kind = f"[{path}.{_add_map_entry(message, name)}]"
    if kind.startswith("["):
        field.label = _Field.LABEL_REPEATED
        kind = kind.strip("[]")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, kind


def _add_map_entry(message: descriptor_pb2.DescriptorProto, field: str) -> str:
    """A map is a repeated message of keys and values on the wire; its name, which is as protoc makes it."""
    entry = message.nested_type.add(name=f"{field.capitalize()}Entry")
    entry.options.map_entry = True
    for number, name in enumerate(("key", "value"), 1):
        entry.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
    return entry.name
