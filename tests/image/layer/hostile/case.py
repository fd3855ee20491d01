"""What a case of the corpus is: a layer's tar, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from overlayfs.image.oci.errors import ImageError, InvalidError, LimitError
from overlayfs.image.oci.limits import Limits
from tests.image.tars import tar

SMALL = Limits(
    disk_size=16 << 20, full_size=32 << 20, members=500, sparse_extents=100, header_size=1 << 20, path_length=4095
)


@dataclass(frozen=True, slots=True)
class Case:
    """`tree` is what a contained layer unpacks to: a letter as in the index, then `:` and a file's content or a link's
    target, or `!` for an opaque directory. The root and plain directories above are not named. None: it is refused
    with `error`, whose message has `words`."""

    name: str
    data: bytes | Callable[[], bytes]
    tree: Mapping[bytes, str] | None = None
    error: type[ImageError] = InvalidError
    words: str = ""

    @property
    def bytes(self) -> bytes:
        return self.data if isinstance(self.data, bytes) else self.data()


def refused(name: str, words: str, *members: bytes) -> Case:
    return Case(name, tar(*members), None, InvalidError, words)


def too_much(name: str, words: str, *members: bytes) -> Case:
    return Case(name, tar(*members), None, LimitError, words)


def contained(name: str, tree: Mapping[bytes, str], *members: bytes) -> Case:
    return Case(name, tar(*members), tree)
