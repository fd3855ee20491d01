"""Which facts does a daemon report about its mount?

One JSON document, read as the xattr STATUS_XATTR of the mount's root, in pages: an xattr value cannot be longer than
64 KiB. The lane answers the request itself, and pyfuse3's handlers where there is no lane.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from overlayfs._typing import TYPE_CHECKING, Any

from .._version import __version__
from ..overlay.inodes import ROOT

if TYPE_CHECKING:
    from ..overlay.engine import Overlay

STATUS_XATTR = b"user.overlayfs.status"
_PAGE = 60_000


class Status:
    """The facts about one mount. `transport_facts` adds those of whoever serves it."""

    def __init__(self, overlay: Overlay, source: str) -> None:
        self._overlay = overlay
        self._source = source
        self._mounted_at = time.time()
        self._document = b""
        self._is_measured = False
        self.transport_facts: Callable[[], dict[str, object]] = dict

    def has(self, node: int, name: bytes) -> bool:
        """True for the names under which the document is read."""
        if node != ROOT or not name.startswith(STATUS_XATTR):
            return False
        rest = name[len(STATUS_XATTR) :]
        return not rest or (rest[:1] == b"." and rest[1:].isdigit())

    def page(self, name: bytes, size: int | None = None) -> bytes:
        """One page; ENODATA past the last. `size` is the room that the caller has for it, 0 where it asks how much it
        needs: then the next call gets the page that was measured, as a new one may be longer."""
        number = name[len(STATUS_XATTR) + 1 :]
        if not number and not self._is_measured:
            self._document = self.document().encode()
        self._is_measured = size == 0 and not number
        start = int(number or 0) * _PAGE
        if start >= len(self._document):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return self._document[start : start + _PAGE]

    def document(self) -> str:
        """The facts as JSON."""
        import json  # slow to import, and few ask

        return json.dumps(self.facts())

    def facts(self) -> dict[str, object]:
        """What `overlayfs stats` and its like are told."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "mounted_at": self._mounted_at,
            "source": self._source,
            **self._overlay.facts(),
            "rss_bytes": _resident_bytes(),
            "lane": False,
            "requests": {},
            **self.transport_facts(),
        }


def read_text(mountpoint: bytes) -> bytes:
    """Ask the daemon of a mount for the whole document."""
    pages = [os.getxattr(mountpoint, STATUS_XATTR)]
    while page := _next_page(mountpoint, len(pages)):
        pages.append(page)
    return b"".join(pages)


def _next_page(mountpoint: bytes, number: int) -> bytes:
    try:
        return os.getxattr(mountpoint, STATUS_XATTR + b".%d" % number)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return b""
        raise


def read_facts(mountpoint: bytes) -> dict[str, Any]:
    """As `read_text`, parsed."""
    import json

    facts: dict[str, Any] = json.loads(read_text(mountpoint))
    return facts


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
