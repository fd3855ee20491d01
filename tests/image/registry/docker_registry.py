"""The real registry of docker (docker-registry, 2.8) on a port of its own: plain, with passwords, TLS, or tokens."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.image.registry.fake_registry import FakeRegistry, Reply, Request

USER, PASSWORD = "us", "hunter2"


@dataclass(frozen=True)
class Running:
    """`name` is `127.0.0.1:PORT`; `log` is where the registry writes what it was asked."""

    name: str
    log: Path


@contextmanager
def docker_registry(directory: Path, http: str = "", auth: str = "", storage: str = "") -> Iterator[Running]:
    """Run a registry whose data is in `directory`; the arguments are YAML of those sections, in flow style."""
    config = directory / "config.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: info, accesslog: {disabled: false}}\n"
        f"http: {{addr: '127.0.0.1:0', secret: s{http}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}, delete: {{enabled: true}}{storage}}}\n"
        f"{auth}\n"
    )
    log = directory / "log"
    with open(log, "wb") as out:
        # it takes every REGISTRY_… for configuration, so also the REGISTRY_AUTH_FILE of podman's tools
        environ = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=out, stderr=out, env=environ)
        try:
            yield Running(_await_address(log, process), log)
        finally:
            process.terminate()
            process.wait()


def _await_address(log: Path, process: subprocess.Popen[bytes]) -> str:
    """The address that the registry's log names once it listens."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def htpasswd(directory: Path) -> str:
    """The section of a registry that knows one user."""
    done = subprocess.run(["htpasswd", "-Bbn", USER, PASSWORD], capture_output=True, check=True)
    (directory / "htpasswd").write_bytes(done.stdout)
    return f"auth: {{htpasswd: {{realm: here, path: {directory}/htpasswd}}}}"


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate that vouches for itself and 127.0.0.1, and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(["openssl", *words.split(), "-out", cert, "-keyout", key], capture_output=True, check=True)
    return cert, key


def token_section(directory: Path, realm: str) -> str:
    cert, _ = certificate(directory)
    return f"auth: {{token: {{realm: '{realm}', service: registry, issuer: tests, rootcertbundle: {cert}}}}}"


def token_server(directory: Path, server: FakeRegistry) -> None:
    """Have a fake registry give the tokens that `token_section` believes: RS256, the certificate in x5c."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    body = "".join(line for line in cert.read_text().splitlines() if "-----" not in line)
    expected = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"

    def answer(request: Request) -> Reply | None:
        if request.path != "/token":
            return None
        if request.headers.get("authorization") != expected:
            return Reply(401)
        scopes = re.findall(r"repository:([^:]+):([a-z,]+)", request.query.get("scope", "")) if request.query else []
        access = [{"type": "repository", "name": name, "actions": actions.split(",")} for name, actions in scopes]
        now = int(time.time())
        claims = {"iss": "tests", "sub": USER, "aud": "registry", "exp": now + 300, "nbf": now - 10, "iat": now}
        token = _sign({"typ": "JWT", "alg": "RS256", "x5c": [body]}, {**claims, "jti": "x", "access": access}, key)
        return Reply(200, {}, json.dumps({"token": token, "expires_in": 300}).encode())

    server.rules.append(answer)


def _sign(header: dict[str, object], claims: dict[str, object], key: Path) -> str:
    signed = b".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
    command = ["openssl", "dgst", "-sha256", "-sign", str(key)]
    signature = subprocess.run(command, input=signed, capture_output=True, check=True).stdout
    return b".".join((signed, _base64(signature))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
