"""What does a repository hold, and how is something added to it? The OCI distribution API, specification v1.1.

Manifests, tags and logins are here, blobs in download.py and upload.py. Statements of the registry are not trusted: a
manifest must match its digest and its own media type.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlencode

import httpx
from msgspec import Struct

from ..oci.digest import Digest, digest_of, parse_digest
from ..oci.documents import INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT, Descriptor, parse
from ..oci.errors import DigestError, ImageError, InvalidError, NotFoundError, RegistryError
from ..oci.reference import Reference
from .connection import Connection
from .credentials import Credential, find_credential
from .endpoints import Endpoint
from .failures import complaint, refusal
from .messages import Answer, Ask
from .retrying import Retrying

_ACCEPT: Final = ", ".join(sorted(MANIFEST_TYPES | INDEX_TYPES))
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1+"
_UNSAID: Final = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
"""Content types that do not tell the type of a manifest; its own mediaType member is used instead."""
_SMALL: Final = 1 << 16
_PAGE: Final = 1000
_MOST_TAGS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index as received: `digest` is that of `data`."""

    descriptor: Descriptor
    data: bytes


class _Tags(Struct):
    tags: list[str] = []


class _Typed(Struct, rename="camel"):
    media_type: str = ""


class Repository:
    """One repository at one endpoint. `where` names it in errors."""

    def __init__(self, connection: Connection, repository: str) -> None:
        self.connection = connection
        self.path = connection.endpoint.prefix + repository
        self.where = f"{connection.endpoint.name}/{self.path}"

    def scopes(self, actions: str = "pull") -> frozenset[str]:
        """The scopes that a token needs (token scope documentation)."""
        return frozenset({f"repository:{self.path}:{actions}"})

    async def greet(self, actions: str) -> None:
        """Send a first request, so that one task learns scheme and challenge before many tasks start."""
        await self.connection.request(Ask("GET", "", self.scopes(actions)), _SMALL)

    # manifests

    async def manifest(self, version: str, expected: Descriptor | None = None) -> Document:
        """The manifest or index that a tag or digest names. Raises NotFoundError, DigestError, RegistryError.

        Verified against the requested digest, `expected`, and the digest that the registry names.
        """
        ask = Ask("GET", f"{self.path}/manifests/{version}", self.scopes(), {"Accept": _ACCEPT})
        answer = await self.connection.request(ask, MAX_DOCUMENT)
        if answer.status != 200:
            raise self.refused(answer, f"{self.where}{_suffix(version)}")
        descriptor = Descriptor(self._media_type(answer, version), digest_of(answer.body), len(answer.body))
        self._check_digest(answer, descriptor, version, expected)
        return Document(descriptor, answer.body)

    async def put_manifest(self, version: str, document: Document) -> None:
        """Publish a manifest whose blobs, or an index whose manifests, the registry has."""
        headers = {"Content-Type": document.descriptor.media_type}
        path = f"{self.path}/manifests/{version}"
        answer = await self.connection.request(
            Ask("PUT", path, self.scopes("pull,push"), headers, document.data), _SMALL
        )
        if answer.status not in (201, 202, 200):
            raise self.refused(answer, f"{self.where}{_suffix(version)}")
        said = answer.headers.get("docker-content-digest", "")
        if said and said != document.descriptor.digest:
            raise DigestError(f"{self.where} says that it keeps {said!r:.80} instead of {document.descriptor.digest}")

    def _media_type(self, answer: Answer, version: str) -> str:
        """The media type of the document; header and document must agree: CVE-2021-41190."""
        what = f"{self.where}{_suffix(version)}"
        said: str = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        own = parse(answer.body, _Typed, f"{what}: its manifest").media_type
        if said.startswith(_SCHEMA_1):
            raise InvalidError(f"{what} is in Docker's schema 1, which nobody should read: push it anew")
        if said in _UNSAID:
            said = own
        if said not in MANIFEST_TYPES | INDEX_TYPES:
            raise InvalidError(f"{what} is no image: its media type is {said!r:.100}")
        if own and own != said:
            raise InvalidError(f"{what}: the registry says {said!r}, the document itself {own!r:.100}")
        return said

    def _check_digest(self, answer: Answer, found: Descriptor, version: str, expected: Descriptor | None) -> None:
        said = answer.headers.get("docker-content-digest", "")
        wanted = [digest for digest in (version if ":" in version else "", said) if digest.startswith("sha256:")]
        if expected is not None and found.size != expected.size:
            raise DigestError(f"{self.where}: the manifest {version} has {found.size} bytes instead of {expected.size}")
        if expected is not None and found.media_type != expected.media_type:
            raise InvalidError(
                f"{self.where}: the manifest {version} is not the {expected.media_type} it is said to be"
            )
        for digest in wanted:
            if digest != found.digest:
                raise DigestError(f"{self.where}: the manifest {digest[:80]!r} has the digest {found.digest}")

    # blobs

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the registry has the blob; a size that it names must be right."""
        ask = Ask("HEAD", f"{self.path}/blobs/{descriptor.digest}", self.scopes("pull,push"))
        answer = await self.connection.request(ask, _SMALL)
        size = answer.headers.get("content-length", "")
        if answer.status not in (200, 404):
            raise self.refused(answer, self.where)
        return answer.status == 200 and size in ("", "0", str(descriptor.size))

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int = 0) -> AsyncIterator[httpx.Response]:
        """The response with the blob from `offset` on; status 200 instead of 206 means the whole blob."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        ask = Ask("GET", f"{self.path}/blobs/{descriptor.digest}", self.scopes(), headers)
        async with self.connection.stream(ask) as response:
            yield response

    # tags

    async def tags(self) -> list[str]:
        """All tags, as the registry orders them."""
        tags: dict[str, None] = {}
        path = f"{self.path}/tags/list?{urlencode({'n': _PAGE})}"
        while path:
            answer = await self.connection.request(Ask("GET", path, self.scopes()), MAX_DOCUMENT)
            if answer.status != 200:
                raise self.refused(answer, self.where)
            known = len(tags)
            tags.update(dict.fromkeys(self._parse_tags(answer)))
            if len(tags) > _MOST_TAGS:
                raise RegistryError(f"{self.where} has more than {_MOST_TAGS} tags")
            path = self._next_page(answer) if len(tags) > known else ""  # so that a registry cannot send us in circles
        return list(tags)

    def _parse_tags(self, answer: Answer) -> list[str]:
        return parse(answer.body, _Tags, f"{self.where}: its list of tags").tags

    def _next_page(self, answer: Answer) -> str:
        """The URL of the next page (RFC 8288); empty at the last."""
        try:
            link = answer_links(answer).get("next", "")
        except ValueError:
            return ""
        return str(self.connection.follow(link, answer.url)) if link else ""

    def refused(self, answer: Answer, what: str) -> ImageError:
        """The error for an unexpected answer."""
        if answer.status == 404:
            return NotFoundError(f"{what} is not there: {complaint(answer)}")
        if answer.status in (401, 403):
            advice = f"it may not exist, or need `overlayfs login {self.connection.endpoint.name}`"
            return RegistryError(f"{what}: access denied ({complaint(answer)}): {advice}", answer.status)
        return refusal(answer, what)


async def check_login(endpoint: Endpoint, credential: Credential, retrying: Retrying | None = None) -> None:
    """Check a credential with the registry. Raises RegistryError."""
    async with Connection(endpoint, lambda: credential, retrying or Retrying()) as connection:
        answer = await connection.request(Ask("GET", ""), _SMALL)
        if answer.status in (401, 403):
            raise RegistryError(f"{endpoint.name} does not take this user name and password", answer.status)
        if answer.status != 200:
            raise refusal(answer, endpoint.name)


def connect(endpoint: Endpoint, reference: Reference, retrying: Retrying | None = None) -> Connection:
    """A connection with the credentials that docker and podman keep; an asynchronous context manager."""
    repository = endpoint.prefix + reference.repository
    return Connection(endpoint, lambda: find_credential(endpoint.name, repository), retrying or Retrying())


def answer_links(answer: Answer) -> dict[str, str]:
    """The URLs of the Link headers of a response, by relation."""
    response = httpx.Response(answer.status, headers=answer.headers)
    return {rel: link.get("url", "") for rel, link in response.links.items() if rel}


def _suffix(version: str) -> str:
    return f"@{version}" if ":" in version else f":{version}"


def mount_query(digest: Digest, source: str) -> str:
    """The query string that requests a cross-repository mount."""
    return urlencode({"mount": parse_digest(digest), "from": source}, quote_via=quote)
