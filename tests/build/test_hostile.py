"""Contexts, archives and Dockerfiles of strangers; secrets; builds that are killed."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Final

import pytest

from overlayfs.image.make.draft import Draft
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Store
from overlayfs.tree.mount_table import mount_entries
from tests.build.test_build import ON, Site
from tests.cli.people import COMMAND
from tests.prepared import PATIENCE_S

FOR_EVER: Final = str(100_000 + os.getpid()).encode()
SECRET: Final = "a-secret-that-nobody-sees"


# -- the context


@pytest.mark.parametrize("source", ["../outside", "d/../../outside", "/../outside", "d/../../../../../etc/passwd"])
def test_a_path_out_of_the_context_is_refused(site: Site, source: str) -> None:
    (site.context.parent / "outside").write_text(SECRET)
    (site.context / "d").mkdir()
    message = site.refuses(f"{ON}COPY {source} /x\n")
    assert "leads out of the build context" in message or "is not in the build context" in message


@pytest.mark.parametrize("target", ["/etc/shadow", "../outside", "d/../../outside"])
def test_a_symlink_out_of_the_context_is_resolved_within(site: Site, target: str) -> None:
    (site.context.parent / "outside").write_text(SECRET)
    (site.context / "d").mkdir()
    (site.context / "link").symlink_to(target)
    assert "is not in the build context" in site.refuses(f"{ON}COPY link /x\n")
    assert "is not in the build context" in site.refuses(f"{ON}COPY link/* /x/\n")


def test_a_symlink_to_a_directory_outside_gives_nothing(site: Site) -> None:
    (site.context.parent / "outside").mkdir()
    (site.context.parent / "outside/f").write_text(SECRET)
    (site.context / "link").symlink_to("../outside")
    assert "is not in the build context" in site.refuses(f"{ON}COPY link/f /x\n")
    site.build(f"{ON}COPY . /x\n")
    assert site.tree()["/x/link"][4] == "../outside"


def test_a_symlink_of_the_image_leads_nowhere_outside(site: Site, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    site.build(
        f"{ON}RUN ln -s {tmp_path}/victim /out && mkdir -p {tmp_path}/victim\n"
        f"RUN ln -s ../../../../../../../{tmp_path}/victim /up\n"
        "COPY a /out/\nCOPY a /up/b\nWORKDIR /out/w\n",
        a="1",
    )
    assert os.listdir(tmp_path / "victim") == []
    assert {f"{tmp_path}/victim/{name}" for name in ("a", "b", "w")} <= site.tree().keys()


def test_sockets_and_fifos_of_the_context(site: Site) -> None:
    os.mkfifo(site.context / "fifo")
    site.build(f"{ON}COPY fifo /x\n")
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.getcwd()
        os.chdir(site.context)
        try:
            listening.bind("socket")
        finally:
            os.chdir(before)
        assert "is a socket" in site.refuses(f"{ON}COPY socket /x\n")


@pytest.fixture(params=["directory", "tar"])
def context(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Callable[[], Path]:
    """The context of the site, as it is or packed."""

    def packed() -> Path:
        if request.param == "directory":
            return site.context
        with tarfile.open(tmp_path / "context.tar", "w") as out:
            out.add(site.context, "")
        return tmp_path / "context.tar"

    return packed


@pytest.mark.parametrize("words", [(), ("-f", "Special")])
@pytest.mark.parametrize("is_relative", [False, True])
def test_a_dockerfile_is_no_file_of_the_host(
    site: Site, context: Callable[[], Path], words: tuple[str, ...], is_relative: bool
) -> None:
    outside = site.context.parent / "outside"
    outside.write_text(f"{SECRET}\n")
    (site.context / (words[-1] if words else "Dockerfile")).symlink_to("../outside" if is_relative else outside)
    done = site.call(*words, context())
    assert done.status == 1
    assert "is no file, or leads out of the build context" in done.err
    assert SECRET not in done.err


def test_a_symlink_to_a_dockerfile_in_the_context(site: Site, context: Callable[[], Path]) -> None:
    (site.context / "d").mkdir()
    (site.context / "d/real").write_text(f"{ON}RUN echo 1 > /x\n")
    (site.context / "Dockerfile").symlink_to("/d/real")
    (site.context / "Containerfile").symlink_to("/etc/passwd")  # is not there
    assert site.call("-t", "made", context()).status == 0
    assert site.text("/x") == "1\n"


@pytest.mark.parametrize("name", [".dockerignore", "Dockerfile.dockerignore"])
def test_an_ignore_file_is_no_file_of_the_host(site: Site, context: Callable[[], Path], name: str) -> None:
    (site.context.parent / "outside").write_text("a\n")
    (site.context / name).symlink_to("../outside")
    site.write(f"{ON}COPY a /x\n", a="1")
    assert site.call("-t", "made", context()).status == 0
    assert site.text("/x") == "1"


def test_a_dockerfile_elsewhere_that_the_user_names(site: Site, tmp_path: Path) -> None:
    (tmp_path / "real").write_text(f"{ON}COPY a /x\n")
    (tmp_path / "link").symlink_to("real")
    site.write("FROM none\n", a="1")
    assert site.call("-t", "made", "-f", tmp_path / "link", site.context).status == 0
    assert site.text("/x") == "1"


# -- archives


def archive(path: Path, *members: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as out:
        for member in members:
            out.addfile(member, io.BytesIO(b"x" * member.size))


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize("name", ["../../../tmp/escaped", "/../escaped", "a/../../escaped"])
def test_an_archive_that_leads_out_is_refused(site: Site, name: str) -> None:
    archive(site.context / "t.tar", member("fine"), member(name, size=1))
    assert "t.tar" in site.refuses(f"{ON}ADD t.tar /x/\n")


def test_links_of_an_archive_stay_in_the_image(site: Site, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("as it was")
    archive(
        site.context / "t.tar",
        member("link", tarfile.SYMTYPE, f"{tmp_path}"),
        member("link/victim", size=3),
        member("hard", tarfile.LNKTYPE, "link/victim"),
    )
    site.build(f"{ON}RUN mkdir -p {tmp_path}\nADD t.tar /x/\n")
    assert (tmp_path / "victim").read_text() == "as it was"
    assert site.text(f"{tmp_path}/victim") == "xxx"


def test_an_archive_may_replace_a_link_that_it_has_followed(site: Site) -> None:
    archive(site.context / "t.tar", member("l/one"), member("l", tarfile.SYMTYPE, "second"), member("l/two"))
    site.build(f"{ON}RUN mkdir -p /x/first /x/second && ln -s first /x/l\nADD t.tar /x/\n")
    assert {"/x/first/one", "/x/second/two"} <= site.tree().keys()


def test_a_hard_link_to_a_file_outside_of_an_archive_is_refused(site: Site) -> None:
    archive(site.context / "t.tar", member("hard", tarfile.LNKTYPE, "../etc/passwd"))
    site.refuses(f"{ON}ADD t.tar /x/\n")


def test_a_broken_archive_is_refused(site: Site) -> None:
    archive(site.context / "t.tar", member("a", size=5000))
    os.truncate(site.context / "t.tar", 3000)
    assert "ends in the middle" in site.refuses(f"{ON}ADD t.tar /x/\n")


def test_whiteouts_of_an_archive_delete_nothing(site: Site) -> None:
    archive(site.context / "t.tar", member("etc/.wh.passwd"))
    site.refuses(f"{ON}ADD t.tar /\n")


def test_a_bomb_is_stopped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERLAYFS_LAYER_LIMIT", "1M")
    archive(site.context / "t.tar", member("a", size=3 << 20))
    assert "1048576" in site.refuses(f"{ON}ADD t.tar /x/\n")


# -- the ignore file, and long Dockerfiles


def test_an_ignored_dockerfile_is_used_and_not_copied(site: Site) -> None:
    (site.context / ".dockerignore").write_text("*\n")
    site.build(f"{ON}RUN echo 1 > /x\n")
    assert "is not in the build context" in site.refuses(f"{ON}COPY Dockerfile /x\n")


def test_a_dockerfile_of_ten_thousand_lines(site: Site) -> None:
    site.build(ON + "".join(f"LABEL l{number}={number}\n" for number in range(10_000)))
    assert len(site.image().config.config.labels) == 10_000


# -- downloads


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """Start a server that gives one client these bytes and hangs up; its URL."""
    with ExitStack() as stack:

        def start(answer: bytes) -> str:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                with listening.accept()[0] as client:
                    while not client.recv(1 << 16).endswith(b"\r\n\r\n"):
                        pass
                    with suppress(OSError):  # the client has refused the rest
                        client.sendall(answer)

            thread = Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return f"http://127.0.0.1:{listening.getsockname()[1]}/f"

        yield start


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello",
        b"no HTTP\r\n",
        b"",
    ],
)
def test_a_download_that_is_cut_short_is_refused(site: Site, answering: Callable[[bytes], str], answer: bytes) -> None:
    assert "could not be fetched" in site.refuses(f"{ON}ADD {answering(answer)} /x\n")


def test_a_download_has_the_limit_of_a_layer(
    site: Site, answering: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERLAYFS_LAYER_LIMIT", "1M")
    url = answering(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2 << 20))
    assert f"{url}: 'f' makes it take more than 1048576 bytes" in site.refuses(f"{ON}ADD {url} /x\n")


# -- heredocs


@pytest.mark.parametrize("kind", ["absolute", "relative"])
@pytest.mark.parametrize("is_trigger", [False, True])
def test_the_name_of_a_heredoc_is_no_path_of_the_host(site: Site, tmp_path: Path, kind: str, is_trigger: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    name = str(victim) if kind == "absolute" else "../../../../victim"
    script = f"RUN <<{name}\n#!/bin/sh\n{name}\n"
    if is_trigger:
        with Store.open(site.store) as store:  # a trigger as no Dockerfile here writes it
            draft = Draft.on(store, store.find("small"))
            draft.raw.setdefault("config", {})["OnBuild"] = [script]
            store.keep(draft.write(store), Reference.parse("base"))
        message = site.refuses("FROM base\n")
    else:
        message = site.refuses(ON + script)
    assert f"the heredoc {name} is run as a file of that name, which has no slash" in message
    assert victim.read_text() == "as it was"


@pytest.mark.parametrize("name", [".", ".."])
def test_a_heredoc_called_like_a_directory_is_refused(site: Site, name: str) -> None:
    assert f"the heredoc {name} is run as a file" in site.refuses(f"{ON}RUN <<{name}\n#!/bin/sh\n{name}\n")


# -- secrets


def test_a_secret_is_in_no_file_of_the_store(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("TOKEN", SECRET)
    text = (
        f"{ON}RUN --mount=type=secret,id=s cat /run/secrets/s > /dev/null\n"
        'RUN --mount=type=secret,id=s,target=/s,mode=0444 --mount=type=secret,id=e,env=TOKEN test -n "$TOKEN" && '
        "test -s /s && echo yes > /x\n"
    )
    words = ("--secret", f"id=s,src={tmp_path}/secret", "--secret", "id=e,env=TOKEN")
    site.build(text, *words)
    assert site.text("/x") == "yes\n"
    assert "/run/secrets" not in site.tree() or site.tree()["/run/secrets"][0] == tarfile.DIRTYPE
    found = subprocess.run(["grep", "-rlaF", SECRET, site.store], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    (tmp_path / "secret").write_text("another")
    monkeypatch.setenv("TOKEN", "another")
    assert site.build(text, *words).count("(cached)") == 2


def test_a_missing_secret(site: Site) -> None:
    site.build(f"{ON}RUN --mount=type=secret,id=s test ! -e /run/secrets/s\n")
    assert "is required" in site.refuses(f"{ON}RUN --mount=type=secret,id=s,required=true true\n")


# -- builds that are killed


def processes_of(store: Path) -> list[str]:
    """The command lines of live processes that name the store, or are programs of a RUN."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if (os.fsencode(store) in words or b"sleep\0" + FOR_EVER in words) and int(pid) != os.getpid():
            found.append(words.decode("utf-8", "replace"))
    return found


@pytest.mark.parametrize(
    "moment", [pytest.param(at, marks=[] if at in (4, 11, 18) else [pytest.mark.long]) for at in range(21)]
)
def test_a_killed_build_leaves_no_half_image(site: Site, moment: int) -> None:
    """The moments are spread over the build: when it has written so many lines, and two a little later."""
    line, later = divmod(moment, 3)
    site.write(
        f"FROM small AS other\nRUN sleep 1; touch /o\n{ON}RUN touch /a\nCOPY a /b\nRUN echo 2 > /c\n"
        f"COPY --from=other /o /o\nRUN sleep {FOR_EVER.decode()}\n",
        a="1",
    )
    before = site.names()
    build = subprocess.Popen(
        [*COMMAND, "--store", site.store, "build", "-t", "made", site.context],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert build.stderr is not None
    for _ in range(line):
        build.stderr.readline()
    time.sleep(later * 0.04)
    build.kill()
    build.wait()
    build.stderr.close()
    deadline = time.monotonic() + PATIENCE_S
    while processes_of(site.store) and time.monotonic() < deadline:
        os.sched_yield()
    assert processes_of(site.store) == []
    assert all(os.fsencode(site.store) not in entry.mountpoint for entry in mount_entries())
    assert site.names() == before
    site.build(f"{ON}RUN touch /a\nCOPY a /b\n", a="1")
    assert os.listdir(site.store / "containers") == os.listdir(site.store / "tmp") == []


def test_a_fork_bomb_ends_at_the_limit(site: Site) -> None:
    bomb = f"while :; do sleep {FOR_EVER.decode()} & done"
    assert "Dockerfile:2: the command ended" in site.refuses(f"{ON}RUN {bomb}\n", "--pids-limit", "30")
    assert processes_of(site.store) == []
    site.build(f"{ON}RUN for n in 1 2 3; do sleep 0 & done; wait; echo 1 > /x\n", "--pids-limit", "30")
    assert site.text("/x") == "1\n"


def test_runc_does_not_run_what_a_killed_build_could_not_end(site: Site) -> None:
    site.write(f"{ON}RUN true\n")
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    hidden = ["unshare", "--mount", "sh", "-ec", 'mount --bind /dev/null "$0"; exec "$@"', bwrap]
    words: list[str | Path] = [*hidden, *COMMAND, "--store", site.store, "build", site.context]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert "Dockerfile:2: RUN: bwrap is not installed: install the package bubblewrap" in done.stderr
    assert done.returncode == 1


def test_an_interrupted_build_ends_quietly(site: Site) -> None:
    site.write(f"{ON}RUN echo begun; sleep 1000\n")
    build = subprocess.Popen(
        [*COMMAND, "--store", site.store, "build", site.context],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert build.stderr is not None
    while "begun" not in build.stderr.readline().split():
        pass
    os.killpg(build.pid, signal.SIGINT)
    with build.stderr:
        rest = build.stderr.read()
    assert build.wait() == 130
    assert "Traceback" not in rest
    assert os.listdir(site.store / "containers") == []
