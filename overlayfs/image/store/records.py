"""How are the store's own records written? As JSON whose strings may stand for bytes that are no text.

Paths and command lines are bytes that Python shows as strings with lone surrogates (PEP 383). JSON can escape those
(RFC 8259, section 8.2), which the standard library does and msgspec, which checks the records, does not.
"""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

Record = TypeVar("Record", bound=msgspec.Struct)

DAMAGED = (msgspec.MsgspecError, ValueError, RecursionError)
"""What `load` raises for what is no such record."""


def dump(record: msgspec.Struct) -> bytes:
    return json.dumps(msgspec.to_builtins(record), separators=(",", ":")).encode("ascii")


def load(data: bytes, kind: type[Record]) -> Record:
    """Raises one of `DAMAGED`."""
    return msgspec.convert(json.loads(data), kind)
