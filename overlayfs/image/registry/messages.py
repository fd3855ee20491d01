"""What is sent to a server and received from it? Requests, answers, and the reading of a body in parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import httpx
import trio

from .endpoints import Origin


class Body(Protocol):
    """The body of a request; `open` gives its bytes again for each attempt."""

    @property
    def size(self) -> int: ...

    def open(self) -> httpx.AsyncByteStream: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: a URL, or a path below the root of the API, and the scopes that its token needs."""

    method: str
    url: str
    scopes: Collection[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Body | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that has been read completely."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: str


class ReadBody(httpx.AsyncByteStream):
    """A body that has been read already."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


async def receive(response: httpx.Response, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Pass the parts of a body to `take` as they arrive, then close the response. Errors of `take` end it.

    Raises httpx.TransportError if the body breaks off.
    """
    failure: Exception | None = None
    try:
        with trio.CancelScope() as reading:
            async for part in response.aiter_raw():
                if failure is not None:
                    continue  # until the read below is cancelled: a generator is not left half-way
                try:
                    with trio.CancelScope(shield=True):
                        await take(part)
                except Exception as error:  # noqa: BLE001 - raised below
                    failure = error
                    reading.cancel()
    finally:
        await response.aclose()
    if failure is not None:
        raise failure


def origin_of(url: httpx.URL) -> Origin:
    return Origin(url.scheme, url.host.lower(), url.port or {"https": 443, "http": 80}.get(url.scheme, 0))
