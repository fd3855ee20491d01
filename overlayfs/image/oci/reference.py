"""How do users name an image? `debian`, `ghcr.io/owner/app:1.2`, `localhost:5000/x@sha256:…`.

The rules are docker's (the reference package of the distribution project): a first component with a dot or colon, or
`localhost`, is a registry; otherwise the registry is docker.io, where a single component belongs to `library/`.
"""

from __future__ import annotations

import re
from typing import Final, Self

from msgspec import Struct

from .digest import Digest, parse_digest
from .errors import InvalidError

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_LONGEST_REPOSITORY: Final = 255

_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_HOST: Final = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])"
    r"(?::[0-9]{1,5})?",
    re.ASCII,
)


class Reference(Struct, frozen=True):
    """A full image name with a tag, a digest or both; the digest takes precedence."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidError. Without tag and digest the tag is `latest`."""
        name, at, digest = text.partition("@")
        registry, repository, tag = _split(name)
        if not _HOST.fullmatch(registry):
            raise InvalidError(f"{text!r}: {registry!r} is no registry's host name")
        if not _REPOSITORY.fullmatch(repository) or len(repository) > _LONGEST_REPOSITORY:
            raise InvalidError(f"{text!r}: {repository!r} is no repository: lower case letters, digits, . _ - and /")
        if tag is not None and not _TAG.fullmatch(tag):
            raise InvalidError(f"{text!r}: {tag!r} is no tag: at most 128 letters, digits, _ . and -")
        if not at and tag is None:
            tag = DEFAULT_TAG
        return cls(registry, repository, tag, parse_digest(digest) if at else None)

    @property
    def name(self) -> str:
        """Registry and repository, in full."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """The shortest spelling that `parse` turns into the same reference."""
        name = self.name.removeprefix(f"{DEFAULT_REGISTRY}/").removeprefix("library/")
        if _split(name)[:2] != (self.registry, self.repository):
            name = self.name
        return f"{name}{self._suffix}"

    @property
    def version(self) -> str:
        """The version to request from a registry: the digest if there is one, otherwise the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return f"{self.name}{self._suffix}"


def _split(name: str) -> tuple[str, str, str | None]:
    """Registry, repository and tag of a name without a digest."""
    first, slash, rest = name.partition("/")
    has_registry = slash and ("." in first or ":" in first or first == "localhost" or first.startswith("["))
    registry, path = (first, rest) if has_registry else (DEFAULT_REGISTRY, name)
    repository, colon, tag = path.partition(":")
    if registry in (DEFAULT_REGISTRY, "index.docker.io"):
        registry = DEFAULT_REGISTRY
        repository = repository if "/" in repository else f"library/{repository}"
    return registry, repository, tag if colon else None
