"""How are the store's own records encoded? As JSON whose strings may stand for bytes that are not text.

Paths and command lines are bytes that Python represents as strings with lone surrogates (PEP 383). JSON can escape them
(RFC 8259, section 8.2). The json module does so; msgspec, which validates the records, does not.
"""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

Record = TypeVar("Record", bound=msgspec.Struct)

DAMAGED = (msgspec.MsgspecError, ValueError, RecursionError)
"""The exceptions of `load` for a damaged record."""


def dump(record: msgspec.Struct) -> bytes:
    return json.dumps(msgspec.to_builtins(record), separators=(",", ":")).encode("ascii")


def load(data: bytes, kind: type[Record]) -> Record:
    """Raises one of `DAMAGED`."""
    return msgspec.convert(json.loads(data), kind)
