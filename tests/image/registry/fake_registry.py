"""A registry in this process, as obedient or as hostile as a test wants it; it writes down what it is sent."""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import trio

from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import Manifest, parse
from overlayfs.image.registry.retrying import Retrying
from overlayfs.image.registry.transfer import Access
from overlayfs.image.store.store import Image, Store


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@dataclass
class Reply:
    """`cut`: so many bytes of the body are sent, and then the connection is closed."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None


async def at_once(seconds: float) -> None:
    """Stands in for the clock: nothing is waited for."""
    await trio.lowlevel.checkpoint()


ACCESS: Final = Access(insecure=True, retrying=Retrying(sleep=at_once))
"""How tests reach a registry of this process: without TLS, and with retries that follow at once."""

Rule = Callable[[Request], Reply | None]
"""Answers a request in place of the registry, or leaves it (None)."""


class FakeRegistry:
    """Blobs, manifests and uploads in dictionaries. `rules` are asked first; what they raise is a closed connection."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytes] = {}
        self.repositories: dict[str, set[str]] = {}
        self.requests: list[Request] = []
        self.rules: list[Rule] = []
        self.under_way = 0
        self.most_under_way = 0
        self.lock = threading.Lock()
        self.server = _Server((host, 0), _Handler)
        self.server.registry = self
        self.name = f"{host}:{self.server.server_port}"
        self.url = f"http://{self.name}"

    def publish(self, store: Store, image: Image, repository: str, *versions: str) -> None:
        """Have an image of a store."""
        data = store.read_blob(image.descriptor)
        for version in (*versions, image.descriptor.digest):
            self.manifests[repository, version] = (image.descriptor.media_type, data)
        manifest = parse(data, Manifest, "manifest")
        for blob in (manifest.config, *manifest.layers):
            self.blobs[blob.digest] = store.blob_path(blob.digest).read_bytes()
            self.repositories.setdefault(repository, set()).add(blob.digest)

    def sent(self, method: str, pattern: str = "") -> list[Request]:
        """The requests so far of a method, whose path a pattern is found in."""
        return [seen for seen in self.requests if seen.method == method and re.search(pattern, seen.path)]

    def answer(self, request: Request) -> Reply:
        with self.lock:
            self.requests.append(request)
        for rule in list(self.rules):
            if (reply := rule(request)) is not None:
                return reply
        if request.path == "/v2/":
            return Reply()
        found = re.fullmatch(r"/v2/(.+?)/(manifests|blobs/uploads|blobs|tags)/(.*)", request.path)
        if not found:
            return Reply(404)
        repository, kind, rest = found.groups()
        return getattr(self, f"_{kind.replace('/', '_')}")(request, repository, rest)  # type: ignore[no-any-return]

    def _manifests(self, request: Request, repository: str, version: str) -> Reply:
        if request.method == "PUT":
            digest = digest_of(request.body)
            for name in (version, digest):
                self.manifests[repository, name] = (request.headers["content-type"], request.body)
            return Reply(201, {"Docker-Content-Digest": digest})
        if (repository, version) not in self.manifests:
            return error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        media_type, data = self.manifests[repository, version]
        return Reply(200, {"Content-Type": media_type, "Docker-Content-Digest": digest_of(data)}, data)

    def _blobs(self, request: Request, repository: str, digest: str) -> Reply:
        if digest not in self.repositories.get(repository, set()):
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        data = self.blobs[digest]
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if not wanted:
            return Reply(200, {}, data)
        start = int(wanted[1])
        return Reply(206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:])

    def _blobs_uploads(self, request: Request, repository: str, session: str) -> Reply:
        if request.method == "POST":
            return self._begin(request, repository)
        if session not in self.uploads:
            return error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown")
        if request.method == "GET":
            return self._progress(204, repository, session)
        place = request.headers.get("content-range", "")
        if place and int(place.partition("-")[0]) != len(self.uploads[session]):
            return self._progress(416, repository, session)
        self.uploads[session] += request.body
        if request.method == "PATCH":
            return self._progress(202, repository, session)
        data = self.uploads.pop(session)
        if digest_of(data) != request.query["digest"]:
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.blobs[digest_of(data)] = data
        self.repositories.setdefault(repository, set()).add(digest_of(data))
        return Reply(201)

    def _begin(self, request: Request, repository: str) -> Reply:
        digest = request.query.get("mount")
        if digest in self.repositories.get(request.query.get("from", ""), set()):
            self.repositories.setdefault(repository, set()).add(str(digest))
            return Reply(201)
        session = f"s{len(self.requests)}"
        self.uploads[session] = b""
        return self._progress(202, repository, session)

    def _progress(self, status: int, repository: str, session: str) -> Reply:
        end = max(0, len(self.uploads[session]) - 1)
        return Reply(status, {"Location": f"/v2/{repository}/blobs/uploads/{session}", "Range": f"0-{end}"})

    def _tags(self, request: Request, repository: str, rest: str) -> Reply:
        names = sorted({version for name, version in self.manifests if name == repository and ":" not in version})
        first = int(request.query.get("after", 0))
        page = names[first : first + 2]
        more = {"Link": f'</v2/{repository}/tags/list?after={first + 2}>; rel="next"'} if names[first + 2 :] else {}
        return Reply(200, more, json.dumps({"name": repository, "tags": page}).encode())


def error(status: int, code: str, message: str) -> Reply:
    return Reply(status, {}, json.dumps({"errors": [{"code": code, "message": message}]}).encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    registry: FakeRegistry

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no failure of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 20

    def _serve(self) -> None:
        registry = self.server.registry
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        split = urlsplit(self.path)
        query = {name: " ".join(values) for name, values in parse_qs(split.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        with registry.lock:
            registry.under_way += 1
            registry.most_under_way = max(registry.most_under_way, registry.under_way)
        try:
            self._send(registry.answer(Request(self.command, split.path, query, headers, body)))
        except ConnectionError:
            self.close_connection = True
        finally:
            with registry.lock:
                registry.under_way -= 1

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        if reply.status == 204:
            del headers["Content-Length"]
        for name, value in headers.items():
            for each in value.split("\n"):
                self.send_header(name, each)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.cut])
        if reply.cut is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = _serve  # noqa: N815 - the names of the base class

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - as the base class has it
        """Quiet."""


@contextmanager
def store_in_memory() -> Iterator[Store]:
    """A store of its own where fsync costs nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="overlayfs-registry-", dir="/dev/shm") as directory,
        Store.open(Path(directory) / "store") as store,
    ):
        yield store


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[FakeRegistry]:
    """A fake registry that answers until the end of the context."""
    registry = FakeRegistry(host)
    thread = threading.Thread(target=registry.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield registry
    finally:
        registry.server.shutdown()
        thread.join()
        registry.server.server_close()


def once(rule: Rule) -> Rule:
    """The rule, for the first request that it has an answer to."""
    answered: list[Reply] = []

    def first(request: Request) -> Reply | None:
        if answered or (reply := rule(request)) is None:
            return None
        answered.append(reply)
        return reply

    return first


def times(count: int, rule: Rule) -> Rule:
    """The rule, for so many requests that it has an answer to."""
    rules = [once(rule) for _ in range(count)]
    return lambda request: next((reply for each in rules if (reply := each(request)) is not None), None)


def on(method: str, pattern: str, reply: Reply) -> Rule:
    """A fixed reply to requests of a method whose path a pattern is found in."""
    return lambda request: reply if request.method == method and re.search(pattern, request.path) else None
