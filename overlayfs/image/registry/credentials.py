"""Which credentials does the user have for a registry? Those that docker's and podman's tools keep, and that `login`
keeps.

Read, in this order: `$REGISTRY_AUTH_FILE` alone if it is set; otherwise `$XDG_RUNTIME_DIR/containers/auth.json`,
`$XDG_CONFIG_HOME/containers/auth.json`, and docker's `$DOCKER_CONFIG/config.json` (containers-auth.json(5); docker's
"login" and "credential helpers"). A file may name programs that keep the secrets: docker-credential-NAME.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..oci.errors import ImageError, InvalidError
from ..oci.reference import DEFAULT_REGISTRY

_DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"
"""The key under which docker keeps the credentials of docker.io."""
_DOCKER_HUB_NAMES: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_HELPER_PATIENCE_S: Final = 60
_TOKEN_USER: Final = "<token>"
"""The user name by which a helper marks a secret as an identity token."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential, never shown to anybody: a password, an identity token (for access tokens) or a registry token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


def find_credential(registry: str, repository: str = "") -> Credential | None:
    """The credential kept for a registry (`host[:port]`) or for a repository in it; None: stay anonymous."""
    for path in _files():
        if found := _Kept.read(path).find(registry, repository):
            return found
    return None


def keep_credential(registry: str, credential: Credential) -> str:
    """Keep a credential in the file that lists the registry already, or else in the standard one; where it is kept."""
    path = next((path for path in _files() if _Kept.read(path).has(registry)), _standard_file())
    kept = _Kept.read(path)
    if helper := kept.helper(registry):
        _call_helper(helper, "store", json.dumps(_helper_entry(registry, credential)))
        return f"docker-credential-{helper}"
    with _changing(path) as document:
        _members(document, "auths")[_key(registry)] = {"auth": _encode(credential)}
    return str(path)


def forget_credential(registry: str) -> list[str]:
    """Remove the credentials of a registry; the files and helpers that had one."""
    places: list[str] = []
    for path in dict.fromkeys([*_files(), _standard_file()]):
        kept = _Kept.read(path)
        if (helper := kept.helper(registry)) and kept.ask_helper(registry):
            _call_helper(helper, "erase", _key(registry))
            places.append(f"docker-credential-{helper}")
        if keys := [key for key in kept.auths if _same(key, registry)]:
            with _changing(path) as document:
                for key in keys:
                    _members(document, "auths").pop(key, None)
            places.append(str(path))
    return places


def known_registries() -> list[str]:
    """The registries that the files list; the helpers are not asked."""
    keys = (key for path in _files() for key in _Kept.read(path).auths)
    return sorted({_host(key) for key in keys})


def _files() -> Iterator[Path]:
    """The files to read, by descending precedence."""
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    yield Path(runtime, "containers/auth.json") if runtime else Path(f"/run/containers/{os.getuid()}/auth.json")
    yield Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "containers/auth.json")
    yield _docker_file()


def _docker_file() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")


def _standard_file() -> Path:
    """The file for new entries: docker's, which outlives the session and is read by podman's tools too."""
    named = os.environ.get("REGISTRY_AUTH_FILE")
    return Path(named) if named else _docker_file()


@dataclass(frozen=True, slots=True)
class _Kept:
    """One parsed file; a file that does not exist is empty."""

    path: Path
    auths: dict[str, dict[str, Any]]
    helpers: dict[str, str]
    store: str

    @classmethod
    def read(cls, path: Path) -> _Kept:
        document = _load(path)
        auths = {key: entry for key, entry in _members(document, "auths").items() if isinstance(entry, dict)}
        helpers = {key: str(name) for key, name in _members(document, "credHelpers").items()}
        return cls(path, auths, helpers, str(document.get("credsStore") or ""))

    def has(self, registry: str) -> bool:
        return any(_same(key, registry) for key in (*self.auths, *self.helpers))

    def helper(self, registry: str) -> str:
        """The name of the helper for a registry; empty if there is none."""
        return next((name for key, name in self.helpers.items() if _same(key, registry)), self.store)

    def find(self, registry: str, repository: str) -> Credential | None:
        if any(_same(key, registry) for key in self.helpers):
            return self.ask_helper(registry)
        for name in _names(registry, repository):
            for key, entry in self.auths.items():
                if _same(key, name) and (found := self._decode(entry, key)):
                    return found
        return self.ask_helper(registry) if self.store else None

    def ask_helper(self, registry: str) -> Credential | None:
        """The credential that the helper keeps; None if it has none for the registry."""
        answer = _call_helper(self.helper(registry), "get", _key(registry))
        if answer is None:
            return None
        try:
            entry = json.loads(answer)
            username, secret = str(entry["Username"]), str(entry["Secret"])
        except (ValueError, KeyError, TypeError):
            raise InvalidError(f"docker-credential-{self.helper(registry)} gave no credential in JSON") from None
        return Credential(identity_token=secret) if username == _TOKEN_USER else Credential(username, secret)

    def _decode(self, entry: dict[str, Any], key: str) -> Credential | None:
        """The credential of an entry of `auths`; None for an empty one, as tools leave it beside a helper."""
        username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
        if auth := entry.get("auth"):
            try:
                username, colon, password = base64.b64decode(str(auth), validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                colon = ""
            if not colon:
                raise InvalidError(f"{self.path}: the entry of {key} is damaged; log in again")
        tokens = str(entry.get("identitytoken") or ""), str(entry.get("registrytoken") or "")
        found = Credential(username, password.rstrip("\0"), *tokens)
        return found if found != Credential() else None


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes() or b"{}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{path} is not valid JSON: {error}; mend or remove it") from None
    if not isinstance(document, dict):
        raise InvalidError(f"{path} is not a JSON object: mend or remove it")
    return document


def _members(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The member, an object; it is made if missing."""
    if not isinstance(document.get(name), dict):
        document[name] = {}
    members: dict[str, Any] = document[name]
    return members


def _names(registry: str, repository: str) -> Iterator[str]:
    """The possible keys of an entry for a repository, the most specific first."""
    parts = repository.split("/") if repository else []
    for count in range(len(parts), -1, -1):
        yield "/".join([registry, *parts[:count]])


def _key(registry: str) -> str:
    """The key that docker's tools use for a registry."""
    return _DOCKER_HUB_KEY if registry in _DOCKER_HUB_NAMES else registry


def _same(key: str, name: str) -> bool:
    """Whether a key of a file means `name`; keys in older files are URLs, whose path is ignored."""
    if key == _DOCKER_HUB_KEY:
        return name == DEFAULT_REGISTRY
    return (_host(key) if "://" in key or "/" not in key else key) == name


def _host(key: str) -> str:
    """The registry that a key belongs to."""
    host = key.rpartition("://")[2].partition("/")[0]
    return DEFAULT_REGISTRY if host in _DOCKER_HUB_NAMES else host


def _encode(credential: Credential) -> str:
    return base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()


def _helper_entry(registry: str, credential: Credential) -> dict[str, str]:
    return {"ServerURL": _key(registry), "Username": credential.username, "Secret": credential.password}


def _call_helper(name: str, verb: str, text: str) -> str | None:
    """Run a credential helper with `text` on standard input; None if it does not have the requested credential."""
    if not _HELPER_NAME.fullmatch(name):
        raise InvalidError(f"{name!r} is no name of a credential helper")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, verb], input=text, capture_output=True, text=True, timeout=_HELPER_PATIENCE_S, check=False
        )
    except FileNotFoundError:
        raise ImageError(f"{program}, which keeps the credentials, is not installed") from None
    except subprocess.TimeoutExpired:
        raise ImageError(f"{program} {verb} did not answer in {_HELPER_PATIENCE_S} s") from None
    if done.returncode == 0:
        return done.stdout
    said = (done.stdout.strip() or done.stderr.strip()).replace("\n", "; ")
    if verb == "get" and "not found" in said:  # what the protocol says: "credentials not found in native keychain"
        return None
    raise ImageError(f"{program} {verb} failed: {said or f'exit status {done.returncode}'}")


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Any]]:
    """Change the document of a file under a lock; the file is replaced atomically and gets mode 0600."""
    path = path.resolve()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as undo:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        undo.callback(os.close, directory)
        fcntl.flock(directory, fcntl.LOCK_EX)
        document = _load(path)
        yield document
        staged, name = tempfile.mkstemp(prefix=".overlayfs-", dir=path.parent)  # 0600
        undo.callback(Path(name).unlink, missing_ok=True)
        with os.fdopen(staged, "wb") as file:
            file.write(json.dumps(document, indent="\t").encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(name, path)
        os.fsync(directory)
