"""What does null mean in a document written by a Go program? The zero value, as encoding/json decodes it.

Most tools that write images are written in Go, where a nil slice, map or pointer without `omitempty` is encoded as
null. So null for an optional member means that the member is absent, null for a list means an empty list, and null
among the values of a list or map means an empty string, list or object. A required member that is null is missing.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from msgspec.inspect import DictType, ListType, NoneType, StrType, StructType, Type, UnionType, type_info

_EMPTY: Final[dict[type[Type], type]] = {StrType: str, ListType: list, DictType: dict, StructType: dict}


def without_nulls(value: Any, kind: Any) -> Any:
    """`value`, decoded JSON for the type `kind`, without nulls; members that `kind` does not know stay as they are."""
    return _settled(value, _shape(kind))


@cache
def _shape(kind: Any) -> Type:
    return type_info(kind)


def _settled(value: Any, shape: Type) -> Any:
    shape = _present(shape)
    if isinstance(shape, StructType) and isinstance(value, dict):
        return _settled_members(value, {field.encode_name: _present(field.type) for field in shape.fields})
    if isinstance(shape, ListType) and isinstance(value, list):
        return [_item(item, shape.item_type) for item in value]
    if isinstance(shape, DictType) and isinstance(value, dict):
        return {name: _item(item, shape.value_type) for name, item in value.items()}
    return value


def _present(shape: Type) -> Type:
    """The type of a member that is present: `X` for `X | None`."""
    if not isinstance(shape, UnionType):
        return shape
    return next(choice for choice in shape.types if not isinstance(choice, NoneType))


def _settled_members(members: dict[str, Any], shapes: dict[str, Type]) -> dict[str, Any]:
    settled = {}
    for name, member in members.items():
        if name not in shapes:
            settled[name] = member
        elif member is not None:
            settled[name] = _settled(member, shapes[name])
        elif isinstance(shapes[name], ListType):
            settled[name] = []
    return settled


def _item(value: Any, shape: Type) -> Any:
    empty = _EMPTY.get(type(shape))
    return empty() if value is None and empty is not None else _settled(value, shape)
