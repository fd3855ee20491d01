"""What can go wrong with an image? The exceptions whose messages users read.

A message is one line that names the object and says what to do next; the programs print it unchanged. A failed system
call stays an `OSError`.
"""

from __future__ import annotations


def named(path: bytes) -> str:
    """A path for an error message: quoted and shortened."""
    text = path if len(path) <= 120 else path[:80] + b"..." + path[-37:]
    return repr(text.decode("utf-8", "backslashreplace"))


class ImageError(Exception):
    """The base class; a message is one line without a full stop."""


class NotFoundError(ImageError):
    """The requested image, blob, layer, container or tag does not exist."""


class InvalidError(ImageError):
    """A name, document, archive or layer violates its specification; the message says where."""


class DigestError(InvalidError):
    """The bytes do not match their digest or size."""


class LimitError(InvalidError):
    """A layer, archive or document exceeds a limit that guards against bombs; the message names the limit."""


class InUseError(ImageError):
    """The object to remove or change is mounted, running, or needed by something else."""


class RegistryError(ImageError):
    """A registry refused, failed or lied; `status` is the HTTP status if there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
