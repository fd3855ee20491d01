"""Builds of an ordinary user give the layers that root's give; what they keep can be removed."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from overlayfs.image.store.store import Store
from tests.build.building import fill
from tests.cli.container import test_run_as_user
from tests.cli.container.test_run_as_user import USER, Home
from tests.cli.people import run

prepared = test_run_as_user.prepared  # the user's
STEPS: Final = """\
FROM small AS one
WORKDIR /w
RUN id -u > id; touch a; chown 33:44 a; mkdir -m 2750 d; chown bob d; ln -s a l; ln a h
USER bob
RUN touch /tmp/b; ln -s b /tmp/c; mkdir -m 700 /tmp/d; touch /tmp/d/e; id > /tmp/id
USER root
RUN rm /etc/group; rm -r /tmp/d; mkdir -m 0 /closed; touch /closed/f
COPY --chown=bob:50 a e /x/
COPY --chown=7 d link /y/
COPY --chown=bob <<EOF /z
text
EOF
ADD t.tar.gz /t
RUN --mount=type=cache,target=/c,uid=33,gid=44,mode=700 stat -c '%u:%g %a' /c > /cache; mkdir -p /c/roots
USER bob
RUN --mount=type=cache,target=/c,uid=33,gid=44 mkdir -p -m 700 /c/bobs/own; touch /c/bobs/own/f; ls /c > /tmp/ls
RUN --mount=type=secret,id=s,uid=33 cat /run/secrets/s > /tmp/secret; stat -c %u /run/secrets/s >> /tmp/secret
USER 0
RUN --mount=type=bind,target=/m,rw mkdir -m 700 /m/new; touch /m/new/f; chown 33:44 /m/new; stat -c %u:%g /m/new >/b
FROM small
COPY --from=one /w /w
COPY --from=one --chown=44:33 /tmp /moved
COPY --from=one /x /y /z /t /cache /b /copied/
RUN chown -R 12:13 /copied/in
"""
Members = dict[str, tuple[object, ...]]


@pytest.fixture
def context(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A context of the user's; no times are in what is built from it."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path = home.path / "context"
    path.mkdir()
    fill(path)
    (path / "Dockerfile").write_text(STEPS)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", path], check=True)
    yield path
    subprocess.run(["rm", "-r", path], check=True)


def words(context: Path) -> list[str | Path]:
    secret = f"id=s,src={context}/a"
    return ["build", "-q", "--compression", "none", "--secret", secret, "-t", "made", context]


def layers(store: Path, archive: Path) -> list[Members]:
    """What each layer of `made` has, by path; `archive` is the image as `save` wrote it."""
    run("--store", store, "load", "-q", "-i", archive)
    with Store.open(store) as opened:
        return [_members(opened.blob_path(layer.digest)) for layer in opened.find("made").manifest.layers]


def _members(layer: Path) -> Members:
    with tarfile.open(layer) as archive:
        return {member.name: _member(archive, member) for member in archive}


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[object, ...]:
    content = archive.extractfile(member) if member.isreg() else None
    data = b"" if content is None else content.read(1000)
    return (member.type, member.uid, member.gid, oct(member.mode), member.linkname, member.mtime, data)


def test_the_layers_are_those_of_root(home: Home, machine: Path, context: Path, tmp_path: Path) -> None:
    home.run(*words(context))
    home.run("save", "-q", "made", "-o", home.path / "made.tar")
    ours = layers(tmp_path / "store", home.path / "made.tar")
    run("--store", machine / "roots", *words(context))
    run("--store", machine / "roots", "save", "-q", "made", "-o", tmp_path / "made.tar")
    theirs = layers(tmp_path / "others", tmp_path / "made.tar")
    assert ours == theirs
    assert [layer["copied/cache"][-1] for layer in ours if "copied/cache" in layer] == [b"33:44 700\n"]
    found = home.run("run", "--rm", "made", "sh", "-c", "cat /moved/secret /moved/ls /copied/b")
    assert found == "hi\n33\nbobs\nroots\n33:44\n"


def test_a_user_can_remove_what_builds_keep(home: Home, context: Path) -> None:
    home.run(*words(context))
    assert os.listdir(home.path / "store/containers") == os.listdir(home.path / "store/tmp") == []
    (cache,) = (home.path / "store/build/mounts").iterdir()
    assert {path.name: path.stat().st_uid for path in cache.iterdir()} == {"roots": USER, "bobs": 300032}
    home.run("prune", "--build")
    assert os.listdir(home.path / "store/build") == []


def test_a_failed_step_leaves_nothing_of_other_users(home: Home, context: Path) -> None:
    text = "FROM small\nUSER bob\nRUN mkdir -p -m 700 /tmp/d/e && touch /tmp/d/e/f && false\n"
    (context / "Dockerfile").write_text(text)
    assert "ended with status 1" in home.call("build", "-q", context).err
    assert os.listdir(home.path / "store/containers") == []


def test_users_need_subordinate_ids(poor: Home, top: Path) -> None:
    path = top / "poor"
    path.mkdir()
    for step, message in (
        ("RUN id -u > /x; touch /y; ls -ln /y /etc/passwd", ""),
        ("USER bob\nRUN true", "RUN: user 33:44 cannot be here: /etc/subuid and /etc/subgid give you no ids"),
        ("COPY --chown=bob Dockerfile /x", "COPY: user 33:44 cannot be here"),
        ("RUN --mount=type=cache,target=/new,uid=33 true", "RUN: user 33:0 cannot be here"),
    ):
        (path / "Dockerfile").write_text(f"FROM small\n{step}\n")
        done = poor.call("build", "-q", path)
        assert (done.status, message in done.err) == (1 if message else 0, True), done.err
    assert os.listdir(poor.path / "store/containers") == []


def test_an_agent_of_the_user(home: Home, top: Path) -> None:
    """Its socket belongs to the user; in the step it belongs to whom the mount says."""
    path = top / "agents"
    path.mkdir()
    (path / "Dockerfile").write_text(
        "FROM small\nUSER bob\nRUN --mount=type=ssh,required,uid=33 stat -c '%u %F' $SSH_AUTH_SOCK > /tmp/x\n"
    )
    with subprocess.Popen(
        ["ssh-agent", "-D", "-a", home.path / "agent"], stdout=subprocess.PIPE, user=USER, group=USER, extra_groups=[]
    ) as agent:
        try:
            assert agent.stdout is not None
            agent.stdout.readline()  # it listens now
            home.run("build", "-q", "--ssh", f"default={home.path}/agent", "-t", "made", path)
        finally:
            agent.terminate()
    assert home.run("run", "--rm", "made", "cat", "/tmp/x") == "33 socket\n"


def test_the_archive_of_a_context_is_the_users(home: Home, top: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, text in (("Dockerfile", b"FROM small\nCOPY a /x\n"), ("a", b"1")):
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid = len(text), 12, 13
            archive.addfile(info, io.BytesIO(text))
    (top / "context.tar").write_bytes(data.getvalue())
    home.run("build", "-q", "-t", "made", top / "context.tar")
    assert home.run("run", "--rm", "made", "stat", "-c", "%u", "/x") == "0\n"
