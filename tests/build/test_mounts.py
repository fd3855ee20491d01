"""`RUN --mount` of agents and caches, with a real agent of ssh."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.build import caches
from overlayfs.build.run_mounts import MountPlan
from tests.build.test_build import ON, Site
from tests.container.small import programs
from tests.crash.forgetful import ForgetfulDisk


def test_cache_that_begins_with_files_outlives_a_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(_sandbox: object, top: Path, _plan: object) -> None:
        (top / "cache").mkdir()
        (top / "cache/file").write_text("of the stage")

    disk, path = ForgetfulDisk(tmp_path), tmp_path / "mounts/key"
    monkeypatch.setattr(caches, "_fill", filled)
    monkeypatch.setattr(caches, "sync_all", lambda _directory: disk.keep_all())
    caches._make(NotImplemented, path, MountPlan("cache", {}, lowers=[tmp_path]))
    disk.lose_power()
    assert (path / "file").read_text() == "of the stage"


# -- agents


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """The socket of an agent with one key, of which others know nothing."""
    with agent_at(tmp_path / "agent") as path:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "the-key", "-f", tmp_path / "key"], check=True
        )
        environ = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", tmp_path / "key"], check=True, env=environ)
        yield path


class agent_at:  # noqa: N801 - a context manager
    """An agent without keys that listens at a path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)

    def __enter__(self) -> Path:
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it listens now
        return self._path

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with self._process:
            pass


def write_programs(site: Site, *names: str) -> str:
    """Instructions that put programs of this machine into the image."""
    for path, content in programs(*names).items():
        target = site.context / "root" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(0o755)
    return f"{ON}COPY root /\n"


def test_every_user_reaches_the_agent(site: Site, agent: Path) -> None:
    site.build(
        f"{write_programs(site, 'ssh-add')}"
        "RUN --mount=type=ssh,required ssh-add -l > /tmp/roots; echo $SSH_AUTH_SOCK >> /tmp/roots\n"
        "USER bob\n"
        "RUN --mount=type=ssh,uid=33,gid=50,mode=660 stat -c '%u:%g %a' $SSH_AUTH_SOCK > /tmp/bobs; "
        "ssh-add -l >> /tmp/bobs\n"
        "RUN --mount=type=ssh ssh-add -l > /tmp/none 2>&1 || true\n"
        "RUN echo ${SSH_AUTH_SOCK:-no agent} > /tmp/after\n",
        "--ssh",
        f"default={agent}",
    )
    roots, bobs = site.text("/tmp/roots"), site.text("/tmp/bobs")
    assert "the-key" in roots and roots.endswith("/run/buildkit/ssh_agent.0\n")
    assert bobs.startswith("33:50 660\n") and "the-key" in bobs
    assert "Permission denied" in site.text("/tmp/none")
    assert site.text("/tmp/after") == "no agent\n"
    assert not [path for path in site.tree() if "buildkit" in path]


def test_two_agents_have_sockets_of_their_own(site: Site, agent: Path, tmp_path: Path) -> None:
    with agent_at(tmp_path / "empty") as empty:
        site.build(
            f"{write_programs(site, 'ssh-add')}"
            "RUN --mount=type=ssh --mount=type=ssh,id=other,target=/other ssh-add -l > /x; "
            "SSH_AUTH_SOCK=/other ssh-add -l >> /x; ls /run/buildkit >> /x\n",
            "--ssh",
            f"default={agent}",
            "--ssh",
            f"other={empty}",
        )
    lines = site.text("/x").splitlines()
    assert "the-key" in lines[0]
    assert lines[1:] == ["The agent has no identities.", "ssh_agent.0"]


def test_a_step_does_without_an_agent_unless_it_is_required(site: Site, tmp_path: Path) -> None:
    site.build(f"{ON}RUN --mount=type=ssh echo ${{SSH_AUTH_SOCK:-none}} > /x\n")
    assert site.text("/x") == "none\n"
    assert "no ssh agent 'a': --ssh a" in site.refuses(f"{ON}RUN --mount=type=ssh,id=a,required true\n")
    assert "no socket of an agent" in site.refuses(ON, "--ssh", f"default={tmp_path}/none")


# -- caches


def test_a_cache_begins_with_files_of_a_stage(site: Site) -> None:
    mount = "--mount=type=cache,target=/c,from=seed,source=/s"
    site.build(
        f"{ON[:-1]} AS seed\nRUN mkdir -p /s/d && echo 1 > /s/d/f && chown 33:44 /s/d/f\n{ON}"
        f"RUN {mount} cat /c/d/f > /x; stat -c %u:%g /c/d/f >> /x; echo 2 > /c/d/f\n"
        f"RUN {mount} cat /c/d/f > /y\n"
    )
    assert (site.text("/x"), site.text("/y")) == ("1\n33:44\n", "2\n")


def test_instead_of_a_private_cache_in_use_there_is_another(site: Site) -> None:
    text = f"{ON}RUN --mount=type=cache,target=/c,id=i,sharing=private ls /c > /x; touch /c/f\n"
    site.build(text)
    (cache,) = (site.store / "build/mounts").iterdir()
    fd = os.open(cache, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        site.build(text, "--no-cache")
    finally:
        os.close(fd)
    assert site.text("/x") == ""
    site.build(text, "--no-cache")
    assert site.text("/x") == "f\n"
