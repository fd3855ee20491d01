"""How does a client authenticate to a registry? The challenges of servers, and the headers that answer them.

RFC 9110 (11.6.1, WWW-Authenticate), RFC 7617 (Basic) and the token flow of the distribution project (Bearer: a token
server, the *realm*, issues tokens for *scopes*). A credential is sent to the registry it is kept for, and to the realm
that this registry names, if TLS protects the way there; a token is sent to the registry only. Tasks of one trio run.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
import trio
from msgspec import Struct

from ..oci.errors import RegistryError
from .credentials import Credential

_SHORTEST_LIFE_S: Final = 60.0
"""The lifetime of a token that names none, and the shortest allowed one (token flow, `expires_in`)."""
_MARGIN_S: Final = 10.0
_CLIENT: Final = "overlayfs"
_SCHEME: Final = re.compile(r"\s*,*\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s+|(?=,)|$)")
_PARAMETER: Final = re.compile(
    r"\s*,*\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))\s*(?=,|$)"
)
_VISIBLE: Final = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One authentication scheme that a server accepts; `scheme` and the names of parameters are in lower case."""

    scheme: str
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request to a realm: a GET with `query`, or a POST of `form` if given. `basic` is an Authorization header."""

    realm: str
    query: tuple[tuple[str, str], ...] = ()
    form: dict[str, str] | None = None
    basic: str | None = None


class _TokenAnswer(Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    good_until: float


Ask = Callable[[TokenRequest], Awaitable[bytes]]
"""Sends a request to a realm, which may be another host, and returns the body of the answer. Raises RegistryError."""


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """The challenges of the WWW-Authenticate headers; the rest of a malformed header is ignored."""
    challenges: list[Challenge] = []
    for value in values:
        at = 0
        while found := _SCHEME.match(value, at):
            at = found.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(value, at):
                name, quoted, plain = parameter.groups()
                parameters[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                at = parameter.end()
            challenges.append(Challenge(found[1].lower(), parameters))
    return challenges


def basic(credential: Credential) -> str:
    """The Authorization header of RFC 7617."""
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


class Authenticator:
    """Answers the challenges of one registry, for one repository.

    `find` gives the credential; it is called once, in a thread, at the first challenge. One task at a time requests
    tokens; the other tasks wait for the answer and use it.
    """

    def __init__(self, registry: str, find: Callable[[], Credential | None], ask: Ask) -> None:
        self._registry = registry
        self._find = find
        self._ask = ask
        self._lock = trio.Lock()
        self._is_sought = False
        self._credential: Credential | None = None
        self._challenge: Challenge | None = None
        self._tokens: dict[frozenset[str], _Token] = {}

    async def header(self, scopes: Collection[str]) -> str | None:
        """The Authorization header to send; None before the first challenge."""
        if self._challenge is None:
            return None
        async with self._lock:
            return await self._header(self._challenge, frozenset(scopes))

    async def answer(self, challenges: list[Challenge], scopes: Collection[str], rejected: str | None) -> bool:
        """Handle a 401 to a request with the header `rejected`; whether to send the request again."""
        async with self._lock:
            wanted = frozenset(scopes)
            if self._challenge is not None and await self._header(self._challenge, wanted) != rejected:
                return True  # another task has authenticated meanwhile
            chosen = _choose(challenges)
            if chosen is None:
                return False
            self._challenge = chosen
            self._tokens.pop(wanted, None)
            offered = chosen.parameters.get("scope", "").split()
            if chosen.scheme == "bearer" and (await self._credential_of()).registry_token == "":
                self._tokens[wanted] = await self._fetch(chosen, [*sorted(wanted), *offered])
            return await self._header(chosen, wanted) != rejected

    async def _header(self, challenge: Challenge, scopes: frozenset[str]) -> str | None:
        credential = await self._credential_of()
        if challenge.scheme == "basic":
            return basic(credential) if credential.username else None
        if credential.registry_token:
            return f"Bearer {_checked(credential.registry_token, self._registry)}"
        token = self._tokens.get(scopes)
        if token is None or token.good_until < trio.current_time():
            token = self._tokens[scopes] = await self._fetch(challenge, sorted(scopes))
        return token.header

    async def _credential_of(self) -> Credential:
        """The credential; an empty one for an anonymous client."""
        if not self._is_sought:
            self._credential = await trio.to_thread.run_sync(self._find)
            self._is_sought = True
        return self._credential or Credential()

    async def _fetch(self, challenge: Challenge, scopes: list[str]) -> _Token:
        """Request a token for the scopes. Raises RegistryError."""
        request = _token_request(challenge, list(dict.fromkeys(scopes)), await self._credential_of())
        try:
            answer = msgspec.json.decode(await self._ask(request), type=_TokenAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RegistryError(f"{self._registry}: its token server's answer is not valid: {error}") from None
        token = _checked(answer.token or answer.access_token, self._registry)
        life = max(answer.expires_in or 0, _SHORTEST_LIFE_S)
        return _Token(f"Bearer {token}", trio.current_time() + life - _MARGIN_S)


def _choose(challenges: list[Challenge]) -> Challenge | None:
    """Choose a challenge; tokens are preferred, as only the realm sees the password then, and only once."""
    usable = [found for found in challenges if found.scheme == "basic" or _is_token_flow(found)]
    return min(usable, key=lambda found: found.scheme != "bearer", default=None)


def _is_token_flow(challenge: Challenge) -> bool:
    return challenge.scheme == "bearer" and bool(challenge.parameters.get("realm"))


def _token_request(challenge: Challenge, scopes: list[str], credential: Credential) -> TokenRequest:
    """The token request as the distribution project specifies: GET, or POST (OAuth 2) for an identity token."""
    realm = challenge.parameters["realm"]
    service = [("service", name)] if (name := challenge.parameters.get("service", "")) else []
    if credential.identity_token:
        form = {"grant_type": "refresh_token", "refresh_token": credential.identity_token, "client_id": _CLIENT}
        return TokenRequest(realm, (), {**form, **dict(service), "scope": " ".join(scopes)})
    query = (*service, *(("scope", scope) for scope in scopes))
    if not credential.username:
        return TokenRequest(realm, query)
    return TokenRequest(realm, (*query, ("account", credential.username)), basic=basic(credential))


def _checked(token: str, registry: str) -> str:
    """The token, after a check that it can be part of a header."""
    if not _VISIBLE.fullmatch(token):
        raise RegistryError(f"{registry}: its token server gave no usable token")
    return token
