"""Where does a member of a layer belong whose path leads through symlinks? They are followed within the root of the
layer.

Like openat2(2) with RESOLVE_IN_ROOT, and as docker and umoci unpack; only recorded names are used, no file is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..oci.limits import Limits

_MOST_NAMES: Final = 4096
"""Names followed at most, those of symlink targets included; this also ends a loop of symlinks."""


def followed(path: bytes, symlink: Callable[[bytes], bytes | None], limits: Limits) -> bytes:
    """`path` with symlinks in its directories followed; `symlink` gives the target of a symlink, None for other paths.

    Raises ValueError with the fault for a loop, and for a path or name that is too long.
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
