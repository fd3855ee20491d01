"""How does a request reach a registry? Authentication, redirects, and retries after failures.

A `Connection` belongs to one endpoint and one repository. These rules hold for every request:

* The Authorization header is sent to the endpoint's own origin only (scheme, host and port), never to the target of a
  redirect or upload elsewhere. There are no cookies, and .netrc is not read.
* TLS is verified, except for a loopback endpoint that is configured as insecure.
* Plain HTTP, and redirects from a registry elsewhere to this machine, are refused.

For tasks of one trio run, which share at most `Endpoint.connections` connections.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Final, Self, TypeVar

import httpx
import trio

from overlayfs._version import __version__

from ..oci.errors import LimitError, RegistryError
from .auth import Authenticator, TokenRequest, parse_challenges
from .credentials import Credential
from .endpoints import Endpoint, Origin, Scheme
from .failures import MAX_COMPLAINT, explain, printable, refusal
from .messages import Answer, Ask, ReadBody, origin_of, receive
from .retrying import RETRIED, Retrying, retry_after_s

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS: Final = 5
_MAX_TOKEN_ANSWER: Final = 1 << 20
_HOST: Final = re.compile(rb"[A-Za-z0-9._:-]+")
_TIMEOUT: Final = httpx.Timeout(60.0, connect=30.0, pool=None)
_NO_COOKIES: Final = DefaultCookiePolicy(allowed_domains=[])

Result = TypeVar("Result")


class Failed(Exception):
    """A request failed, but a retry may succeed; `wait_s` is the wait that the server asks for."""

    def __init__(self, why: RegistryError, wait_s: float | None = None) -> None:
        super().__init__(str(why))
        self.why = why
        self.wait_s = wait_s


class Connection:
    """Sends requests to one endpoint; an asynchronous context manager."""

    def __init__(
        self,
        endpoint: Endpoint,
        find: Callable[[], Credential | None] = lambda: None,
        retrying: Retrying = Retrying(),  # noqa: B008 - immutable
    ) -> None:
        self.endpoint = endpoint
        self.retrying = retrying
        self._authenticator = Authenticator(endpoint.name, find, self._ask_realm)
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self._origin: Origin | None = endpoint.origin(endpoint.scheme) if endpoint.scheme else None
        self._choosing = trio.Lock()
        self._has_answered = False
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._exit.aclose()

    async def request(self, ask: Ask, limit: int) -> Answer:
        """The answer, after retries. Raises RegistryError without one, LimitError for more than `limit` bytes."""
        return await self.persistently(lambda: self.request_once(ask, limit))

    async def request_once(self, ask: Ask, limit: int) -> Answer:
        """As `request`, without retries, for requests that must not simply be repeated. Also raises Failed."""
        return await self.read(await self._open(ask), limit)

    @asynccontextmanager
    async def stream(self, ask: Ask) -> AsyncIterator[httpx.Response]:
        """The response with its body unread; `receive` reads it."""
        response = await self.persistently(lambda: self._open(ask))
        try:
            yield response
        finally:
            await response.aclose()

    async def persistently(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Retry until an attempt succeeds; raise the error of the last one."""
        failures = 0
        while True:
            try:
                return await attempt()
            except Failed as failed:
                failures += 1
                wait_s = self.retrying.pause_s(failures) if failed.wait_s is None else failed.wait_s
                if failures >= self.retrying.attempts:
                    raise failed.why from None
                if wait_s > self.retrying.patience_s:
                    raise RegistryError(
                        f"{failed.why}; it asks to try again in {wait_s:.0f} s", failed.why.status
                    ) from None
            await self.retrying.sleep(wait_s)

    async def _open(self, ask: Ask) -> httpx.Response:
        """The response after challenges and redirects; the caller closes it. Raises Failed, RegistryError."""
        url, redirects, is_challenged = await self._resolve(ask.url), 0, False
        while True:
            header = await self._authenticator.header(ask.scopes) if await self._is_own(url) else None
            response = await self._send(ask, url, header)
            if response.status_code == 401 and not is_challenged and await self._is_own(url):
                is_challenged = True
                refused = await self.read(response)  # gives its connection back: asking for a token needs one
                challenges = parse_challenges(refused.headers.get_list("www-authenticate"))
                if await self._authenticator.answer(challenges, ask.scopes, header):
                    continue
                response = httpx.Response(
                    401, headers=refused.headers, stream=ReadBody(refused.body), request=response.request
                )
            if response.status_code in _REDIRECTS and ask.method in ("GET", "HEAD"):
                await response.aclose()
                redirects += 1
                if redirects > _MOST_REDIRECTS:
                    raise RegistryError(f"{url.host} redirects without end", response.status_code)
                url = self.follow(response.headers.get("location", ""), str(url))
                continue
            if response.status_code in RETRIED:
                wait_s = retry_after_s(response)
                raise Failed(refusal(await self.read(response), str(url.host)), wait_s)
            return response

    async def _send(self, ask: Ask, url: httpx.URL, header: str | None) -> httpx.Response:
        """One request and the head of its response."""
        client = self._client(url)
        headers = {**ask.headers, **({"Authorization": header} if header else {})}
        if isinstance(ask.body, bytes) or ask.body is None:
            request = client.build_request(ask.method, url, headers=headers, content=ask.body)
        else:
            headers["Content-Length"] = str(ask.body.size)
            request = client.build_request(ask.method, url, headers=headers)
            request.stream = ask.body.open()
        try:
            response = await client.send(request, stream=True, auth=None)
        except httpx.TransportError as error:
            why = explain(error, url, self.endpoint)
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not self._has_answered:
                raise why from None  # more likely a wrong name than a passing fault
            raise Failed(why) from None
        self._has_answered = True
        return response

    async def read(self, response: httpx.Response, limit: int = MAX_COMPLAINT) -> Answer:
        """Read the whole body of a response and close it; of an error response only the start.

        Raises Failed, LimitError.
        """
        body, limit = bytearray(), min(limit, MAX_COMPLAINT) if response.is_error else limit

        async def take(part: bytes) -> None:
            body.extend(part)
            if len(body) > limit:
                raise LimitError(f"{response.url.host} answers with more than {limit} bytes")

        try:
            await receive(response, take)
        except httpx.TransportError as error:
            if not response.is_error:
                raise Failed(explain(error, response.url, self.endpoint)) from None
        except LimitError:
            if not response.is_error:
                raise
        return Answer(response.status_code, response.headers, bytes(body[:limit]), str(response.url))

    async def _ask_realm(self, request: TokenRequest) -> bytes:
        """Request a token from the realm that the registry names; a credential is never sent there unprotected."""
        url = self.follow(request.realm, request.realm).copy_merge_params(httpx.QueryParams(request.query))
        headers = {"Authorization": request.basic} if request.basic else {}
        content: bytes | None = None
        if request.form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            content = str(httpx.QueryParams(request.form)).encode()
        ask = Ask("GET" if content is None else "POST", str(url), (), headers, content)

        async def attempt() -> Answer:
            response = await self._send(ask, url, None)
            answer = await self.read(response, _MAX_TOKEN_ANSWER)
            if answer.status in RETRIED:
                raise Failed(refusal(answer, url.host), retry_after_s(response))
            return answer

        answer = await self.persistently(attempt)
        if answer.status != 200:
            raise refusal(answer, f"{self.endpoint.name}: its token server {url.host}")
        return answer.body

    async def _resolve(self, url: str) -> httpx.URL:
        """The full URL of a path below the root of the API."""
        return httpx.URL(f"{await self._own_origin()}/v2/{url}") if "://" not in url else httpx.URL(url)

    async def _is_own(self, url: httpx.URL) -> bool:
        return origin_of(url) == await self._own_origin()

    async def _own_origin(self) -> Origin:
        """The origin of the endpoint. If its scheme is unknown, TLS is tried first, without a credential."""
        async with self._choosing:
            if self._origin is None:
                secure = self.endpoint.origin("https")
                try:
                    await self._client(httpx.URL(str(secure))).head(f"{secure}/v2/")  # no body, which could be endless
                    scheme: Scheme = "https"
                except httpx.TransportError:
                    scheme = "http"
                self._origin = self.endpoint.origin(scheme)
            return self._origin

    def follow(self, location: str, base: str) -> httpx.URL:
        """The URL of a redirect, relative to `base`; RegistryError for a forbidden target."""
        try:
            url = httpx.URL(base).join(location)
            to = origin_of(url)
        except (httpx.InvalidURL, ValueError) as error:
            raise RegistryError(f"{self.endpoint.name} sends us to a URL that is not valid: {error}") from None
        if url.scheme not in ("https", "http") or not _HOST.fullmatch(url.raw_host) or url.userinfo or to.port > 65535:
            raise RegistryError(f"{self.endpoint.name} sends us to {printable(location)!r}, which is no place for us")
        if to.is_loopback and not self.endpoint.is_loopback:
            raise RegistryError(f"{self.endpoint.name} sends us to {to}, which is this machine")
        if to.scheme == "http" and not to.is_loopback:
            raise RegistryError(f"{self.endpoint.name} sends us to {to}, which is not protected by TLS")
        return url

    def _client(self, url: httpx.URL) -> httpx.AsyncClient:
        """The HTTP client for a URL; the one that does not verify TLS is for insecure loopback endpoints only."""
        to = origin_of(url)
        is_verified = not (self.endpoint.is_insecure and to.is_loopback)
        if is_verified not in self._clients:
            client = _new_client(self.endpoint, is_verified)
            self._exit.push_async_callback(client.aclose)
            self._clients[is_verified] = client
        return self._clients[is_verified]


def _new_client(endpoint: Endpoint, is_verified: bool) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=_trusting(endpoint.ca) if is_verified else _trusting_anybody(),
        headers={"User-Agent": f"overlayfs/{__version__}", "Accept-Encoding": "identity"},
        cookies=CookieJar(_NO_COOKIES),
        timeout=_TIMEOUT,
        limits=httpx.Limits(max_connections=endpoint.connections),
        follow_redirects=False,
        trust_env=not endpoint.is_loopback,  # a proxy would be another host on the way to this one
    )


def _trusting(ca: Path | None) -> ssl.SSLContext:
    """A TLS context that trusts the system's authorities and those in `ca`."""
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError:
            raise RegistryError(f"{ca} holds no certificate of an authority (PEM)") from None
    return context


def _trusting_anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
