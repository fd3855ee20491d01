"""Credentials of docker's and podman's tools: where they are found, and how a login is kept."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from overlayfs.image.oci.errors import ImageError, InvalidError
from overlayfs.image.registry.credentials import (
    Credential,
    find_credential,
    forget_credential,
    keep_credential,
    known_registries,
)

US = Credential("us", "pass:word")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def write(path: Path, **members: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(members))
    return path


def test_nothing_is_kept(home: Path) -> None:
    assert find_credential("r.example") is None
    assert known_registries() == []
    assert forget_credential("r.example") == []


def test_strongest_file_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".docker/config.json", auths={"r.example": auth("d:1"), "d.example": auth("d:2")})
    write(home / "run/containers/auth.json", auths={"r.example": auth("p:3")})
    assert find_credential("r.example") == Credential("p", "3")
    assert find_credential("d.example") == Credential("d", "2")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write(home / "only.json", auths={"o.example": auth("o:4")})))
    assert find_credential("r.example") is None
    assert find_credential("o.example") == Credential("o", "4")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (auth("us:pass:word"), US),
        (auth("us:pass:word\0\0"), US),
        ({"username": "us", "password": "pass:word"}, US),
        ({"identitytoken": "it"}, Credential(identity_token="it")),
        ({**auth("us:"), "identitytoken": "it"}, Credential("us", identity_token="it")),
        ({"registrytoken": "rt"}, Credential(registry_token="rt")),
        ({}, None),
        ({"auth": ""}, None),
    ],
)
def test_spellings_of_an_entry(home: Path, entry: dict[str, str], expected: Credential | None) -> None:
    write(home / ".docker/config.json", auths={"r.example": entry})
    assert find_credential("r.example") == expected


@pytest.mark.parametrize("key", ["r.example", "https://r.example", "https://r.example/v1/", "http://r.example/v2/"])
def test_spellings_of_a_registry(home: Path, key: str) -> None:
    write(home / ".docker/config.json", auths={key: auth("us:pass:word")})
    assert find_credential("r.example") == US
    assert find_credential("r.example:5000") is None
    assert find_credential("example") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_spellings_of_docker_hub(home: Path, key: str) -> None:
    write(home / ".docker/config.json", auths={key: auth("us:pass:word")})
    assert find_credential("docker.io", "library/debian") == US


def test_entry_for_a_repository_is_stronger(home: Path) -> None:
    auths = {"r.example": auth("a:1"), "r.example/team": auth("b:2"), "r.example/team/app": auth("c:3")}
    write(home / "run/containers/auth.json", auths=auths)
    assert find_credential("r.example", "team/app") == Credential("c", "3")
    assert find_credential("r.example", "team/other") == Credential("b", "2")
    assert find_credential("r.example", "teamwork") == Credential("a", "1")


@pytest.mark.parametrize("text", ["{", "[]", "nonsense", '{"auths": {"r.example": {"auth": "%%%"}}}'])
def test_damaged_file_is_named_and_no_secret_shown(home: Path, text: str) -> None:
    path = write(home / ".docker/config.json")
    path.write_text(text)
    with pytest.raises(InvalidError, match=str(path)) as raised:
        find_credential("r.example")
    assert "%%%" not in str(raised.value)


def test_secrets_are_not_in_a_repr() -> None:
    assert "pass:word" not in repr(US)


# login and logout


def test_login_is_kept_for_docker_and_others_0600(home: Path) -> None:
    path = write(home / ".docker/config.json", auths={"o.example": auth("o:1")}, detachKeys="ctrl-x", psFormat="table")
    path.chmod(0o644)
    assert keep_credential("r.example", US) == str(path)
    assert path.stat().st_mode & 0o7777 == 0o600
    document = json.loads(path.read_text())
    assert document["detachKeys"] == "ctrl-x"
    assert document["auths"] == {"o.example": auth("o:1"), "r.example": auth("us:pass:word")}
    assert os.listdir(path.parent) == ["config.json"]
    assert find_credential("r.example") == US


def test_login_makes_its_directory_private(home: Path) -> None:
    keep_credential("docker.io", US)
    assert (home / ".docker").stat().st_mode & 0o7777 == 0o700
    document = json.loads((home / ".docker/config.json").read_text())
    assert list(document["auths"]) == ["https://index.docker.io/v1/"]
    assert known_registries() == ["docker.io"]


def test_login_replaces_what_is_kept_in_a_stronger_file(home: Path) -> None:
    path = write(home / "run/containers/auth.json", auths={"r.example": auth("old:1")})
    assert keep_credential("r.example", US) == str(path)
    assert find_credential("r.example") == US


def test_login_writes_through_a_symlink(home: Path) -> None:
    real = write(home / "dotfiles/docker.json")
    (home / ".docker").mkdir()
    (home / ".docker/config.json").symlink_to(real)
    keep_credential("r.example", US)
    assert (home / ".docker/config.json").is_symlink()
    assert "r.example" in json.loads(real.read_text())["auths"]


def test_logout_forgets_everywhere(home: Path) -> None:
    docker = write(home / ".docker/config.json", auths={"https://r.example/v1/": auth("a:1"), "x": auth("b:2")})
    podman = write(home / "run/containers/auth.json", auths={"r.example": auth("c:3")})
    assert forget_credential("r.example") == [str(podman), str(docker)]
    assert find_credential("r.example") is None
    assert json.loads(docker.read_text()) == {"auths": {"x": auth("b:2")}}


# credential helpers

HELPER = """#!/bin/sh
echo "$1" >>"$HOME/calls"
cat >"$HOME/input-$1"
case "$1" in
get) if grep -q r.example "$HOME/input-get"; then cat "$HOME/secret"; else
     echo "credentials not found in native keychain"; exit 1; fi;;
esac
"""


@pytest.fixture
def helper(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (home / "bin").mkdir()
    (home / "bin/docker-credential-safe").write_text(HELPER)
    (home / "bin/docker-credential-safe").chmod(0o755)
    (home / "secret").write_text(json.dumps({"ServerURL": "r.example", "Username": "us", "Secret": "pass:word"}))
    monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")
    return home / "secret"


@pytest.mark.parametrize("members", [{"credHelpers": {"r.example": "safe"}}, {"credsStore": "safe"}])
def test_helper_gives_the_credential(home: Path, helper: Path, members: dict[str, Any]) -> None:
    write(home / ".docker/config.json", auths={"r.example": {}}, **members)
    assert find_credential("r.example") == US
    assert (home / "input-get").read_text() == "r.example"
    assert find_credential("other.test") is None


def test_helper_gives_an_identity_token(home: Path, helper: Path) -> None:
    write(home / ".docker/config.json", credsStore="safe")
    helper.write_text(json.dumps({"Username": "<token>", "Secret": "it"}))
    assert find_credential("r.example") == Credential(identity_token="it")


def test_login_and_logout_use_the_helper(home: Path, helper: Path) -> None:
    path = write(home / ".docker/config.json", credsStore="safe")
    assert keep_credential("r.example", US) == "docker-credential-safe"
    stored = json.loads((home / "input-store").read_text())
    assert stored == {"ServerURL": "r.example", "Username": "us", "Secret": "pass:word"}
    assert "word" not in path.read_text()
    assert forget_credential("r.example") == ["docker-credential-safe"]
    assert (home / "input-erase").read_text() == "r.example"


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("missing", "", "docker-credential-missing, which keeps the credentials, is not installed"),
        ("../../bin/sh", "", "no name of a credential helper"),
        ("safe", "no json", "no credential in JSON"),
        ("safe", '{"Username": "us"}', "no credential in JSON"),
    ],
)
def test_helper_that_does_not_help(home: Path, helper: Path, name: str, answer: str, said: str) -> None:
    helper.write_text(answer)
    write(home / ".docker/config.json", credsStore=name)
    with pytest.raises(ImageError, match=said):
        find_credential("r.example")
