"""How are the store's own records encoded? As JSON whose strings may stand for bytes that are not text.

Paths and command lines are bytes that Python represents as strings with lone surrogates (PEP 383). JSON can escape them
(RFC 8259, section 8.2). The json module does so; msgspec, which validates the records, does not.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from ..oci.errors import InvalidError

Record = TypeVar("Record")

UNREADABLE: Final = (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EISDIR)
"""The errors of a file that the disk or its file system has damaged: ext4 and XFS say EUCLEAN and EBADMSG."""

DAMAGED = (msgspec.MsgspecError, ValueError, RecursionError)
"""The exceptions of `load` for a damaged record."""


def dump(record: msgspec.Struct) -> bytes:
    return json.dumps(msgspec.to_builtins(record), separators=(",", ":")).encode("ascii")


def load(data: bytes, kind: type[Record]) -> Record:
    """Raises one of `DAMAGED`."""
    return msgspec.convert(json.loads(data), kind)


def read(path: Path, kind: type[Record], remedy: str = "") -> Record | None:
    """A record, by default that of the directory that it is in; None where there is none. Raises InvalidError for a
    damaged one, with the remedy."""
    try:
        return load(path.read_bytes(), kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DAMAGED as error:
        raise damaged(path, error, remedy) from None
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise damaged(path, error.strerror, remedy) from None


def damaged(path: Path, why: object, remedy: str = "") -> InvalidError:
    """The error for a damaged record, as for `read`."""
    return InvalidError(f"{path} is damaged: {why}; {remedy or f'remove {path.parent} if nothing of it is needed'}")
