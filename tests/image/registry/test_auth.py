"""Challenges and the answers to them; where a credential or token goes, and where never."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from overlayfs.image.oci.errors import ImageError, RegistryError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.registry.auth import Challenge, parse_challenges
from overlayfs.image.registry.connection import Connection
from overlayfs.image.registry.credentials import Credential
from overlayfs.image.registry.endpoints import Endpoint
from overlayfs.image.registry.repository import check_login
from overlayfs.image.registry.transfer import pull, push, tags
from overlayfs.image.store.store import Store
from tests.image.making import put, tar, whole
from tests.image.registry.fake_registry import (
    ACCESS,
    FakeRegistry,
    Reply,
    Request,
    Rule,
    on,
    once,
    serving,
)

SECRET = "hunter2"
BASIC = f"Basic {base64.b64encode(f'us:{SECRET}'.encode()).decode()}"
LAYERS = (tar({"a": b"b"}), tar({"c": b"d"}))


def needs_basic(request: Request) -> Reply | None:
    if request.headers.get("authorization") == BASIC:
        return None
    return Reply(401, {"WWW-Authenticate": 'Basic realm="here"'})


class TokenServer:
    """Gives tokens that name their scopes, and wants them at a registry."""

    def __init__(self, realm: str, *, life_s: int | None = 300) -> None:
        self.realm = realm
        self.life_s = life_s
        self.given: list[tuple[str, str]] = []  # the header or form that a token was asked with, the scopes
        self.revoked: set[str] = set()

    def __call__(self, request: Request) -> Reply | None:
        """The rule of the token server."""
        if request.path != "/token":
            return None
        scopes = request.query.get("scope", "")
        self.given.append((request.headers.get("authorization", request.body.decode()), scopes))
        token = f"t{len(self.given)}-{scopes.replace(' ', '+')}"
        return Reply(200, {}, json.dumps({"token": token, "expires_in": self.life_s}).encode())

    def wanted(self, request: Request) -> Reply | None:
        """The rule of the registry."""
        header = request.headers.get("authorization", "")
        if header.startswith("Bearer t") and header not in self.revoked:
            return None
        challenge = f'Bearer realm="{self.realm}/token",service="s",scope="repository:app:pull"'
        return Reply(401, {"WWW-Authenticate": challenge})


def log_in(path: Path, *registries: str) -> None:
    entry = {"auth": base64.b64encode(f"us:{SECRET}".encode()).decode()}
    path.write_text(json.dumps({"auths": dict.fromkeys(registries, entry)}))


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    with serving("localhost") as registry:
        yield registry


@pytest.fixture
def theirs(fake: FakeRegistry, theirs: Store) -> Store:
    """With an image, which the fake registry has as app:1."""
    fake.publish(theirs, put(theirs, "x:1", *LAYERS), "app", "1")
    return theirs


def name(fake: FakeRegistry, text: str = "app:1") -> Reference:
    return Reference.parse(f"{fake.name}/{text}")


def secrets_in(*registries: FakeRegistry) -> list[Request]:
    """The requests in which the password can be read."""
    encoded = BASIC.removeprefix("Basic ")
    return [
        seen
        for registry in registries
        for seen in registry.requests
        if SECRET in str(seen) or encoded in str(seen) or "Bearer" in str(seen)
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['Basic realm="a b"'], [Challenge("basic", {"realm": "a b"})]),
        (["BEARER Realm=x"], [Challenge("bearer", {"realm": "x"})]),
        (["Negotiate"], [Challenge("negotiate", {})]),
        (
            ['Negotiate, Bearer realm="https://a/t",service="s, t",scope="x:y:pull,push", Basic realm=z'],
            [
                Challenge("negotiate", {}),
                Challenge("bearer", {"realm": "https://a/t", "service": "s, t", "scope": "x:y:pull,push"}),
                Challenge("basic", {"realm": "z"}),
            ],
        ),
        (
            ["Basic realm=a", "Bearer realm=b"],
            [Challenge("basic", {"realm": "a"}), Challenge("bearer", {"realm": "b"})],
        ),
        ([r'Basic realm="a\"b"'], [Challenge("basic", {"realm": 'a"b'})]),
        ([""], []),
        (['"'], []),
    ],
)
def test_challenges_are_read(values: list[str], expected: list[Challenge]) -> None:
    assert parse_challenges(values) == expected


def test_challenge_of_any_shape_ends() -> None:
    for text in (
        "Basic " * 2000,
        "=" * 4000,
        "a=" * 4000,
        'Bearer realm="' + "\\" * 4001,
        "," * 4000,
        "Bearer a=b," * 2000,
    ):
        parse_challenges([text])


def test_anonymous_pull_looks_for_no_credential(
    store: Store, theirs: Store, fake: FakeRegistry, credentials_file: Path
) -> None:
    credentials_file.write_text("damaged")
    trio.run(pull, store, name(fake), None, ACCESS)
    assert all("authorization" not in seen.headers for seen in fake.requests)


def test_basic(store: Store, theirs: Store, fake: FakeRegistry, credentials_file: Path) -> None:
    fake.rules.append(needs_basic)
    with pytest.raises(RegistryError, match=f"overlayfs login {fake.name}") as raised:
        trio.run(pull, store, name(fake), None, ACCESS)
    assert raised.value.status == 401
    log_in(credentials_file, fake.name)
    trio.run(pull, store, name(fake), None, ACCESS)


def test_wrong_password_is_sent_once(store: Store, fake: FakeRegistry, credentials_file: Path) -> None:
    log_in(credentials_file, fake.name)
    fake.rules.append(on("GET", "", Reply(401, {"WWW-Authenticate": "Basic realm=x"})))
    with pytest.raises(RegistryError, match="access denied"):
        trio.run(pull, store, name(fake), None, ACCESS)
    assert len(fake.requests) == 2


def test_tokens_of_a_token_server(
    store: Store, theirs: Store, fake: FakeRegistry, other: FakeRegistry, credentials_file: Path
) -> None:
    tokens = TokenServer(other.url)
    fake.rules.append(tokens.wanted)
    other.rules.append(tokens)
    log_in(credentials_file, fake.name)
    trio.run(pull, store, name(fake), None, ACCESS)
    assert tokens.given == [(BASIC, "repository:app:pull")]
    assert other.requests[0].query["service"] == "s"
    assert {seen.headers.get("authorization") for seen in fake.requests} == {None, "Bearer t1-repository:app:pull"}
    trio.run(push, theirs, theirs.find("x:1"), name(fake, "app:2"), ACCESS)
    assert ("app", "2") in fake.manifests
    assert BASIC not in str(fake.requests)


def test_anonymous_token(store: Store, theirs: Store, fake: FakeRegistry, other: FakeRegistry) -> None:
    tokens = TokenServer(other.url)
    fake.rules.append(tokens.wanted)
    other.rules.append(tokens)
    trio.run(pull, store, name(fake), None, ACCESS)
    assert tokens.given == [("", "repository:app:pull")]


def test_identity_token_is_exchanged(
    store: Store, theirs: Store, fake: FakeRegistry, other: FakeRegistry, credentials_file: Path
) -> None:
    credentials_file.write_text(json.dumps({"auths": {fake.name: {"identitytoken": "it&1"}}}))
    tokens = TokenServer(other.url)
    fake.rules.append(tokens.wanted)
    other.rules.append(tokens)
    trio.run(pull, store, name(fake), None, ACCESS)
    (request,) = other.requests
    assert request.method == "POST"
    assert "refresh_token=it%261" in request.body.decode()
    assert "it" not in str([seen.headers.get("authorization") for seen in fake.requests]).replace("repository", "")


def test_registry_token_is_sent_as_it_is(
    store: Store, theirs: Store, fake: FakeRegistry, credentials_file: Path
) -> None:
    credentials_file.write_text(json.dumps({"auths": {fake.name: {"registrytoken": "t0"}}}))
    fake.rules.append(TokenServer("http://127.0.0.1:1").wanted)
    trio.run(pull, store, name(fake), None, ACCESS)


def test_revoked_token_is_replaced(store: Store, theirs: Store, fake: FakeRegistry, other: FakeRegistry) -> None:
    tokens = TokenServer(other.url)
    fake.rules.append(tokens.wanted)
    other.rules.append(tokens)

    def revoke(request: Request) -> None:
        if "/blobs/" in request.path:
            tokens.revoked.add("Bearer t1-repository:app:pull")

    fake.rules.insert(0, revoke)
    trio.run(pull, store, name(fake), None, ACCESS)
    assert len(tokens.given) == 2


def test_token_that_expires_is_replaced_before_it_is_refused() -> None:
    now = trio.testing.MockClock(autojump_threshold=0)
    asked: list[str] = []

    async def main() -> None:
        from overlayfs.image.registry.auth import Authenticator, TokenRequest

        async def ask(request: TokenRequest) -> bytes:
            asked.append(request.realm)
            return b'{"token": "t%d", "expires_in": 100}' % len(asked)

        authenticator = Authenticator("r", lambda: None, ask)
        assert await authenticator.header(["s"]) is None
        assert await authenticator.answer([Challenge("bearer", {"realm": "x"})], ["s"], None)
        await trio.sleep(80)
        assert await authenticator.header(["s"]) == "Bearer t1"
        await trio.sleep(15)
        assert await authenticator.header(["s"]) == "Bearer t2"

    trio.run(main, clock=now)


def test_many_blobs_share_a_token(store: Store, theirs: Store, fake: FakeRegistry, other: FakeRegistry) -> None:
    """All of them may be refused at once: then no connection is left but those that the refused ones give back."""
    image = put(theirs, None, *(tar({f"f{number}": b"x"}) for number in range(10)))
    fake.publish(theirs, image, "app", "1")
    tokens = TokenServer(other.url)
    fake.rules += [lambda request: tokens.wanted(request) if "blobs" in request.path else None]
    other.rules.append(tokens)
    trio.run(pull, store, name(fake), None, ACCESS)
    assert len(tokens.given) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"nonsense",
        b'{"token": "a b"}',
        b'{"token": "a\\r\\nX: y"}',
        b'{"token": 7}',
        b"x" * 2_000_000,
    ],
)
def test_token_that_is_none(store: Store, fake: FakeRegistry, other: FakeRegistry, body: bytes) -> None:
    fake.rules.append(TokenServer(other.url).wanted)
    other.rules.append(on("GET", "/token", Reply(200, {}, body)))
    with pytest.raises(Exception, match=r"token|answers with more") as raised:
        trio.run(pull, store, name(fake), None, ACCESS)
    assert "image.oci.errors" in type(raised.value).__module__


def test_token_server_that_refuses(
    store: Store, fake: FakeRegistry, other: FakeRegistry, credentials_file: Path
) -> None:
    log_in(credentials_file, fake.name)
    fake.rules.append(TokenServer(other.url).wanted)
    other.rules.append(on("GET", "/token", Reply(401, {}, b'{"errors":[{"message":"incorrect\\u001b[31m password"}]}')))
    with pytest.raises(RegistryError, match=r"incorrect\\x1b\[31m password"):
        trio.run(pull, store, name(fake), None, ACCESS)


def test_login_is_checked(fake: FakeRegistry, other: FakeRegistry) -> None:
    endpoint = Endpoint(fake.name, "127.0.0.1", fake.server.server_port, "http", is_insecure=True)
    trio.run(check_login, endpoint, Credential("us", SECRET))
    fake.rules.append(needs_basic)
    trio.run(check_login, endpoint, Credential("us", SECRET))
    with pytest.raises(RegistryError, match="does not take"):
        trio.run(check_login, endpoint, Credential("us", "wrong"))
    tokens = TokenServer(other.url)
    fake.rules[:] = [tokens.wanted]
    other.rules.append(tokens)
    trio.run(check_login, endpoint, Credential("us", SECRET))
    assert tokens.given == [(BASIC, "repository:app:pull")]


# where credentials must not go


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_to_another_host_takes_no_credential(
    store: Store, theirs: Store, fake: FakeRegistry, other: FakeRegistry, credentials_file: Path, status: int
) -> None:
    log_in(credentials_file, fake.name, other.name)
    other.blobs, other.repositories = fake.blobs, fake.repositories
    fake.rules.append(needs_basic)

    def redirect(request: Request) -> Reply | None:
        return Reply(status, {"Location": other.url + request.path}) if "/blobs/" in request.path else None

    fake.rules.append(redirect)
    image = trio.run(pull, store, name(fake), None, ACCESS)
    assert whole(store, image) == whole(theirs, theirs.find("x:1"))
    assert len(other.requests) == 3
    assert secrets_in(other) == []


def test_challenge_of_another_host_is_not_answered(
    store: Store, theirs: Store, fake: FakeRegistry, other: FakeRegistry, credentials_file: Path
) -> None:
    log_in(credentials_file, fake.name, other.name)
    other.rules.append(needs_basic)
    fake.rules.append(on("GET", "/blobs/", Reply(307, {"Location": f"{other.url}/v2/app/blobs/x"})))
    with pytest.raises(RegistryError, match="access denied"):
        trio.run(pull, store, name(fake), None, ACCESS)
    assert secrets_in(fake, other) == []


def test_upload_elsewhere_takes_no_credential(
    theirs: Store, fake: FakeRegistry, other: FakeRegistry, credentials_file: Path
) -> None:
    log_in(credentials_file, fake.name, other.name)
    other.uploads["s"] = b""
    fake.blobs.clear()
    fake.repositories.clear()

    def send_elsewhere(request: Request) -> Reply | None:
        return Reply(202, {"Location": f"{other.url}/v2/app/blobs/uploads/s"}) if request.method == "POST" else None

    fake.rules += [needs_basic, send_elsewhere]
    with pytest.raises(ImageError, match="the upload of"):
        trio.run(push, theirs, theirs.find("x:1"), name(fake, "app:2"), ACCESS)
    assert other.requests
    assert secrets_in(other) == []


def test_mirror_gets_its_own_credential_only(
    store: Store, theirs: Store, fake: FakeRegistry, other: FakeRegistry, credentials_file: Path
) -> None:
    from overlayfs.image.registry.endpoints import Registries, Section

    log_in(credentials_file, fake.name)
    fake.rules.append(needs_basic)
    other.rules.append(needs_basic)
    registries = Registries({fake.name: Section(mirrors=[other.url], insecure=True)})
    trio.run(pull, store, name(fake), None, replace(ACCESS, registries=registries))
    assert other.requests
    assert secrets_in(other) == []


def test_next_page_elsewhere_takes_no_credential(
    fake: FakeRegistry, other: FakeRegistry, credentials_file: Path
) -> None:
    log_in(credentials_file, fake.name, other.name)
    more = {"Link": f'<{other.url}/v2/app/tags/list>; rel="next"'}
    fake.rules += [needs_basic, on("GET", "tags", Reply(200, more, b'{"tags": ["a"]}'))]
    trio.run(lambda: tags(name(fake), ACCESS))
    assert secrets_in(other) == []


def test_token_server_is_not_followed_elsewhere(
    store: Store, fake: FakeRegistry, other: FakeRegistry, credentials_file: Path
) -> None:
    log_in(credentials_file, fake.name)
    tokens = TokenServer(fake.url)
    fake.rules += [on("GET", "/token", Reply(307, {"Location": f"{other.url}/token"})), tokens.wanted]
    with pytest.raises(RegistryError, match="token server"):
        trio.run(pull, store, name(fake), None, ACCESS)
    assert other.requests == []


def elsewhere(to: str) -> Rule:
    return on("GET", "", Reply(401, {"WWW-Authenticate": f'Bearer realm="{to}"'}))


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.example.com/token",
        "http://localhost.example.com/token",
        "http://us@127.0.0.1.example.com/token",
        "ftp://127.0.0.1/token",
        "/token",
        "//127.0.0.1/token",
        "https://",
        "http://[/",
        "https://user:pass@auth.example.com/token",
    ],
)
def test_realm_that_is_no_place_for_a_password(
    store: Store, fake: FakeRegistry, credentials_file: Path, realm: str
) -> None:
    log_in(credentials_file, fake.name)
    fake.rules.append(elsewhere(realm))
    with pytest.raises(RegistryError, match="sends us to"):
        trio.run(pull, store, name(fake), None, ACCESS)
    assert secrets_in(fake) == []


@pytest.mark.parametrize(
    ("location", "allowed"),
    [
        ("https://storage.example.com/x?y=z", True),
        ("/v2/x", True),
        ("../x", True),
        ("http://storage.example.com/x", False),
        ("http://registry.example.com/x", False),
        ("http://127.0.0.1/x", False),
        ("https://localhost/x", False),
        ("https://[::1]/x", False),
        ("file:///etc/passwd", False),
        ("https://us:them@storage.example.com/x", False),
        ("https:///x", True),  # without a host it is relative
        ("https://a b/", False),
        ("https://storage.example.com:99999/", False),
    ],
)
def test_where_a_registry_elsewhere_may_send_us(location: str, allowed: bool) -> None:
    connection = Connection(Endpoint("registry.example.com", "registry.example.com"))
    if allowed:
        assert connection.follow(location, "https://registry.example.com/v2/y/").scheme == "https"
    else:
        with pytest.raises(RegistryError, match="sends us to"):
            connection.follow(location, "https://registry.example.com/v2/y/")


def test_proxy_is_not_asked_for_loopback(
    store: Store,
    theirs: Store,
    fake: FakeRegistry,
    other: FakeRegistry,
    credentials_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log_in(credentials_file, fake.name)
    fake.rules.append(needs_basic)
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, other.url)
    trio.run(pull, store, name(fake), None, ACCESS)
    assert other.requests == []


def test_netrc_and_cookies_do_not_exist(
    store: Store, theirs: Store, fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login us password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    fake.rules.append(once(on("GET", "manifests", Reply(503, {"Set-Cookie": "a=b; Path=/"}))))
    trio.run(pull, store, name(fake), None, ACCESS)
    assert all("cookie" not in seen.headers and "authorization" not in seen.headers for seen in fake.requests)
