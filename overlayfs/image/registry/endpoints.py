"""At which endpoints is a registry reached? Its mirrors and its own address, from `registries.toml`.

    [registry."docker.io"]
    mirrors = ["https://mirror.example.com", "cache.example.com/hub", "http://127.0.0.1:5000"]
    connections = 8                      # at the same time; the default is 4
    blocked = false

    [registry."registry.example.com:5000"]
    location = "https://10.1.2.3:5000"   # the root of its API, with a prefix of its repositories if there is one
    ca = "/etc/ssl/example.pem"          # trusted besides the system's authorities
    insecure = true                      # loopback only: plain HTTP, or an unverified certificate

The section of a mirror tells how to reach it. Plain HTTP is used on loopback only, whatever the file says.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from ..oci.errors import InvalidError
from ..oci.reference import DEFAULT_REGISTRY, Reference

CONNECTIONS: Final = 4
Scheme = Literal["https", "http"]
_DOCKER_HUB: Final = "registry-1.docker.io"
_DEFAULT_PORT: Final = {"https": 443, "http": 80}
_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9a-f:]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::(?P<port>[0-9]{1,5}))?")


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """The section of one registry in registries.toml."""

    location: str = ""
    mirrors: list[str] = []
    ca: str = ""
    insecure: bool = False
    blocked: bool = False
    connections: int = CONNECTIONS


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    registry: dict[str, Section] = {}


@dataclass(frozen=True, slots=True)
class Origin:
    """The server to talk to. A credential belongs to one origin. `host` is in lower case, without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORT.get(self.scheme) else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The API of one registry, or of a mirror of it.

    `name` is the registry as users write it, the key of its credentials. `scheme` is None if both have to be tried,
    TLS first. `prefix` stands before each repository and ends with a slash.
    """

    name: str
    host: str
    port: int | None = None
    scheme: Scheme | None = "https"
    prefix: str = ""
    ca: Path | None = None
    is_insecure: bool = False
    connections: int = CONNECTIONS

    def origin(self, scheme: Scheme) -> Origin:
        return Origin(scheme, self.host, self.port or _DEFAULT_PORT[scheme])

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class Registries:
    """The configuration; `endpoints` also answers for registries that the file does not name."""

    sections: dict[str, Section] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None = None) -> Registries:
        """Read `path`, or else the user's file, or else the system's. Raises InvalidError."""
        for candidate in [path] if path else _standard_files():
            try:
                text = candidate.read_bytes()
            except FileNotFoundError:
                if path:
                    raise
                continue
            return cls(_parse(text, candidate))
        return cls()

    def endpoints(
        self, reference: Reference, *, ca: Path | None = None, insecure: bool = False, mirrors: bool = False
    ) -> list[Endpoint]:
        """The endpoints for `reference`, in this order: the mirrors if they are wanted, then the registry itself.

        `ca` and `insecure` come from the command line and apply to the registry, not to mirrors. Raises InvalidError.
        """
        section = self.sections.get(reference.registry, Section())
        if section.blocked:
            raise InvalidError(f"{reference.registry} is blocked by registries.toml")
        origin = self._endpoint(reference.registry, section.location or _location(reference.registry), section)
        if ca is not None:
            origin = replace(origin, ca=ca)
        if insecure:
            origin = _insecure(origin)
        return [*(self._mirror(text) for text in (section.mirrors if mirrors else ())), origin]

    def _mirror(self, text: str) -> Endpoint:
        name = _split(text)[1]
        return self._endpoint(name, text, self.sections.get(name, Section()))

    def _endpoint(self, name: str, location: str, section: Section) -> Endpoint:
        scheme, authority, prefix = _split(location)
        host, port = _split_authority(authority, location)
        endpoint = Endpoint(name, host, port, scheme or "https", prefix, connections=section.connections)
        if section.ca:
            endpoint = replace(endpoint, ca=Path(section.ca))
        if scheme == "http" and not endpoint.is_loopback:
            raise InvalidError(f"{location}: plain HTTP is for loopback addresses only; use https")
        return _insecure(endpoint, scheme) if section.insecure else endpoint


def _insecure(endpoint: Endpoint, scheme: Scheme | None = None) -> Endpoint:
    """Whether TLS may be missing: only on the way to a loopback address, where nobody else can listen."""
    if not endpoint.is_loopback:
        raise InvalidError(f"{endpoint.name} is not on this machine: insecure is for loopback only; use a CA file")
    return replace(endpoint, is_insecure=True, scheme=scheme or ("http" if endpoint.scheme == "http" else None))


def is_loopback(host: str) -> bool:
    """Whether a host's name or address can only be this machine (RFC 6761, section 6.3)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _location(registry: str) -> str:
    return _DOCKER_HUB if registry == DEFAULT_REGISTRY else registry


def _split(location: str) -> tuple[Scheme | None, str, str]:
    """Scheme, host with port, and prefix of `[SCHEME://]HOST[:PORT][/PREFIX]`."""
    scheme, separator, rest = location.rpartition("://")
    if scheme not in ("", "http", "https"):
        raise InvalidError(f"{location!r}: {scheme} is not a way to reach a registry; use https")
    authority, _, path = rest.partition("/")
    path = path.strip("/")
    found: Scheme | None = None if not separator else "http" if scheme == "http" else "https"
    return found, authority.lower(), f"{path}/" if path else ""


def _split_authority(authority: str, location: str) -> tuple[str, int | None]:
    """Host, without brackets, and port."""
    found = _AUTHORITY.fullmatch(authority)
    port = int(found["port"] or 0) if found else 0
    if not found or port > 65535:
        raise InvalidError(f"{location!r} does not begin with the name of a host")
    return found["host"].strip("[]"), port or None


def _parse(text: bytes, path: Path) -> dict[str, Section]:
    try:
        sections = msgspec.toml.decode(text, type=_File).registry
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path}: {error}") from None
    for name, section in sections.items():
        if not 1 <= section.connections <= 64:
            raise InvalidError(f"{path}: {name}: connections is {section.connections}; 1 to 64 make sense")
    return sections


def _standard_files() -> Iterator[Path]:
    """The user's file and the system's; the first that exists is read."""
    if named := os.environ.get("OVERLAYFS_REGISTRIES"):
        yield Path(named)
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    yield Path(config) / "overlayfs" / "registries.toml"
    yield Path("/etc/overlayfs/registries.toml")
