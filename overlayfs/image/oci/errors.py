"""What can go wrong with an image, in the words that a user reads.

Each error is one line that names the object and says what to do next; the programs print it as it is. A failing
system call stays an `OSError`.
"""

from __future__ import annotations


def named(path: bytes) -> str:
    """A path for an error's line: quoted, and not too long."""
    text = path if len(path) <= 120 else path[:80] + b"..." + path[-37:]
    return repr(text.decode("utf-8", "backslashreplace"))


class ImageError(Exception):
    """The tree of these errors; a message is one line without a full stop."""


class NotFoundError(ImageError):
    """An image, blob, layer, container or tag that is asked for is not there."""


class InvalidError(ImageError):
    """A name, document, archive or layer is not what its specification allows; the message says where."""


class DigestError(InvalidError):
    """Bytes are not those that their digest or size promised."""


class LimitError(InvalidError):
    """A layer, archive or document exceeds a limit that guards against bombs; the message names the limit."""


class InUseError(ImageError):
    """What is to be removed or changed is mounted, run, or needed by something else."""


class RegistryError(ImageError):
    """A registry refused, failed or lied; `status` is the HTTP status if there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
