"""pull, push, login, logout and search-tags as people run them, against the real docker registry."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.store.store import Store
from tests.cli.people import COMMAND, answer, run
from tests.image.making import put, tar
from tests.image.registry.docker_registry import PASSWORD, USER, Running, docker_registry, htpasswd
from tests.prepared import Done, call

LAYERS = (tar({"etc/os": b"debian"}), tar({"etc/os": b"ours"}))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry that wants a password."""
    directory = tmp_path_factory.mktemp("registry")
    with docker_registry(directory, auth=htpasswd(directory)) as running:
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DOCKER_CONFIG", "XDG_CONFIG_HOME", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("OVERLAYFS_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def image(home: Path) -> str:
    """The digest of an image that the store has as `here`."""
    with Store.open(home / "store") as store:
        return put(store, "here", *LAYERS).digest


def log_in(registry: Running, password: str = PASSWORD) -> Done:
    words = ("login", "--insecure", "--username", USER, "--password-stdin", registry.name)
    return call(*words, typed=f"{password}\n")


def test_login_push_search_pull_logout(registry: Running, home: Path, image: str) -> None:
    name = f"{registry.name}/team/app:1.0"
    refused = run("push", "--insecure", "here", name, status=1)
    assert f"overlayfs login {registry.name}" in refused.stderr

    done = log_in(registry)
    assert done.out == f"logged in to {registry.name} as us; kept in {home}/.docker/config.json\n"
    assert (home / ".docker/config.json").stat().st_mode & 0o777 == 0o600

    assert run("push", "--insecure", "here", name).stdout == f"{name}: blobs: 3 sent, {image}\n"
    again = answer("push", "-q", "--insecure", "here", name)
    assert again == {"Name": name, "Digest": image, "Blobs": {"Sent": 0, "Mounted": 0, "Exists": 3}}
    assert run("push", "--insecure", "-q", "here", f"{registry.name}/team/app:2").stdout.endswith("app:2\n")
    assert sorted(run("search-tags", "--insecure", name).stdout.split()) == ["1.0", "2"]
    assert answer("search-tags", "--insecure", "--filter", "1.*", name)["Tags"] == ["1.0"]

    pulled = run("--store", home / "a", "pull", "--insecure", name)
    assert pulled.stdout.startswith(f"{name}: linux/amd64, ") and pulled.stdout.endswith(f", {image}\n")
    found = answer("--store", home / "b", "pull", "--insecure", "--no-unpack", name)
    assert (found["Name"], found["Digest"], found["Platform"]) == (name, image, "linux/amd64")
    assert (len(os.listdir(home / "a/layers")), len(os.listdir(home / "b/layers"))) == (2, 0)

    assert run("logout", registry.name).stdout.startswith(f"logged out of {registry.name}")
    assert run("pull", "--insecure", name, status=1).stderr.startswith(f"overlayfs: {name}: access denied")


def test_wrong_password_is_not_kept(registry: Running, home: Path) -> None:
    done = log_in(registry, "wrong")
    assert done.status == 1
    assert done.err == f"overlayfs: {registry.name} does not take this user name and password\n"
    assert not (home / ".docker").exists()


def test_password_is_asked_at_a_terminal_and_not_shown(registry: Running, home: Path) -> None:
    ours, theirs = pty.openpty()
    words = [*COMMAND, "login", "--insecure", registry.name]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 60
    for prompt, typed in ((b"User name", USER), (b"Password", PASSWORD), (b"kept in", "")):
        while prompt not in shown and time.monotonic() < deadline:
            shown += os.read(ours, 1000)
        os.write(ours, f"{typed}\n".encode())
    assert process.wait(60) == 0
    os.close(ours)
    assert PASSWORD.encode() not in shown
    assert json.loads((home / ".docker/config.json").read_text())["auths"].keys() == {registry.name}


def test_logout_of_all(home: Path) -> None:
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text(
        '{"auths": {"a.example": {"auth": "YTpi"}, "b.example": {"auth": "YTpi"}}}'
    )
    assert len(run("logout", "--all").stdout.splitlines()) == 2
    assert json.loads((home / ".docker/config.json").read_text()) == {"auths": {}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pull", "--insecure", "registry.example.com/x"), "insecure is for loopback only"),
        (("push", "nothing"), "no image 'nothing'"),
        (("login", "nowhere"), "no registry's name"),
        (("login", "-u", "us", "localhost:1"), "no terminal to ask for the password"),
        (("search-tags", "--insecure", "127.0.0.1:1/x"), "Connection refused"),
    ],
)
def test_errors_are_one_line(words: tuple[str, ...], said: str) -> None:
    done = run(*words, status=1)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_image_without_a_name_needs_one_to_be_pushed(home: Path) -> None:
    with Store.open(home / "store") as store:
        image = put(store, None, *LAYERS)
    assert "give a name to push it under" in run("push", image.id, status=1).stderr


def test_usage(home: Path) -> None:
    assert "exclude each other" in run("pull", "--platform", "linux/amd64", "--all-platforms", "x", status=2).stderr
