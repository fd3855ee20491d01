"""Where in a layer is a member whose path leads through symlinks? Inside, whatever they say: its root is theirs too.

As openat2(2) with RESOLVE_IN_ROOT, and as docker and umoci unpack; but names alone are looked at, no file is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..oci.limits import Limits

_MOST_NAMES: Final = 4096
"""On the way, those of symlinks' targets counted: a loop of symlinks ends so too."""


def followed(path: bytes, symlink: Callable[[bytes], bytes | None], limits: Limits) -> bytes:
    """`path` with the symlinks above its last name followed; `symlink` gives the target of one, None of all else.

    Raises ValueError, with what is wrong, for a way without end, and for one to a path or name that is too long.
    """
    *names, last = path.split(b"/")
    pending, way = names[::-1], list[bytes]()
    for _ in range(_MOST_NAMES):
        if not pending:
            return b"/".join((*way, last))
        name = pending.pop()
        if name == b"..":
            del way[-1:]
        elif name not in (b"", b"."):
            place = b"/".join((*way, name))
            if len(name) > limits.name_length or len(place) + len(last) >= limits.path_length:
                raise ValueError("the symlinks above it lead to a path or name that is too long")
            target = symlink(place)
            if target is None:
                way.append(name)
                continue
            if target.startswith(b"/"):
                way.clear()
            pending += target.split(b"/")[::-1]
    raise ValueError("the symlinks above it lead on and on")
