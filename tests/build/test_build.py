"""`overlayfs build` on real mounts: the cache, reproducible images, flags, contexts, and errors."""

from __future__ import annotations

import fcntl
import io
import json
import lzma
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Final

import pytest

from overlayfs.image.archive.rootfs import export_image
from overlayfs.image.oci.errors import InUseError
from overlayfs.image.store.store import Image, Store
from tests.build.building import Facts, base_image, fill, tree_of
from tests.cli.people import COMMAND
from tests.image.registry.docker_registry import docker_registry
from tests.prepared import Done, Prepared

ON: Final = "FROM small\n"


class Site:
    """A store with a small image, and a context."""

    def __init__(self, top: Path, prepared: Prepared) -> None:
        self.store, self.context = top / "store", top / "context"
        self.prepared = prepared
        self.context.mkdir()
        with Store.open(self.store) as store:
            from overlayfs.image.oci.reference import Reference

            base_image(store, top, Reference.parse("small"))

    def write(self, text: str, **files: str) -> None:
        (self.context / "Dockerfile").write_text(text)
        for name, content in files.items():
            (self.context / name).write_text(content)

    def call(self, *words: str | Path, typed: str = "") -> Done:
        return self.prepared.call("--store", self.store, "build", *words, typed=typed)

    def build(self, text: str, *words: str | Path, **files: str) -> str:
        """Build the Dockerfile with these files in the context; what is reported on the way."""
        self.write(text, **files)
        done = self.call("-t", "made", *words, self.context)
        assert done.status == 0, done.err
        return done.err

    def refuses(self, text: str, *words: str | Path, **files: str) -> str:
        """The last line that says why not; nothing is left behind."""
        self.write(text, **files)
        before = self.names()
        done = self.call("-t", "refused", *words, self.context)
        assert (done.status, done.out) == (1, "")
        assert "Traceback" not in done.err
        assert "(this is a bug)" not in done.err
        assert self.names() == before
        assert os.listdir(self.store / "containers") == os.listdir(self.store / "tmp") == []
        return done.err.splitlines()[-1]

    def names(self) -> list[str]:
        with Store.open(self.store) as store:
            return sorted(str(entry.reference or entry.descriptor.digest) for entry in store.entries())

    def image(self, name: str = "made") -> Image:
        with Store.open(self.store) as store:
            return store.find(name)

    def tree(self, name: str = "made") -> Facts:
        with Store.open(self.store) as store:
            return tree_of(store, store.find(name))

    def text(self, path: str) -> str:
        """The content of a file of the image."""
        content = self.tree()[path][-1]
        assert isinstance(content, bytes)
        return content.decode()


# -- the cache


def test_a_second_build_runs_nothing_and_gives_the_same_image(site: Site) -> None:
    text = f"{ON}ENV A=1\nRUN echo $A > /x\nCOPY a /y\nLABEL b=2\n"
    site.build(text, a="1")
    first = site.image()
    os.utime(site.context / "a", (1, 1))
    report = site.build(text)
    assert report.count("(cached)") == 2
    assert site.image().digest == first.digest


@pytest.mark.parametrize(
    ("change", "cached"),
    [
        ({"a": "2"}, 1),  # the content of what is copied
        ({"text": f"{ON}RUN echo 2 > /x\nCOPY a /y\n"}, 0),
        ({"text": f"{ON}RUN echo 1 > /x\nCOPY a /z\n"}, 1),
        ({"b": "unrelated"}, 2),
    ],
)
def test_the_cache_is_keyed_by_content(site: Site, change: dict[str, str], cached: int) -> None:
    text = f"{ON}RUN echo 1 > /x\nCOPY a /y\n"
    site.build(text, a="1")
    changed = change.pop("text", text)
    assert site.build(changed, **change).count("(cached)") == cached


def test_an_argument_counts_from_its_declaration_on(site: Site) -> None:
    text = f"{ON}RUN echo 1 > /x\nARG A\nRUN echo $A > /y\n"
    site.build(text, "--build-arg", "A=1")
    assert site.build(text, "--build-arg", "A=2").count("(cached)") == 1
    assert site.text("/y") == "2\n"


def test_no_cache_runs_every_step_anew(site: Site) -> None:
    site.build(f"{ON}RUN echo 1 > /x\n")
    assert "(cached)" not in site.build(f"{ON}RUN echo 1 > /x\n", "--no-cache")


def test_pruned_layers_are_built_again(site: Site) -> None:
    site.build(f"{ON}RUN echo 1 > /x\n")
    assert site.prepared.call("--store", site.store, "rmi", "made").status == 0
    assert site.prepared.call("--store", site.store, "prune").status == 0
    assert "(cached)" not in site.build(f"{ON}RUN echo 1 > /x\n")
    assert site.text("/x") == "1\n"


def test_equal_input_gives_an_equal_digest(
    site: Site, tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    text = f"{ON}WORKDIR /w\nRUN mkdir d && echo 1 > d/x && ln d/x y\nCOPY a .\nCOPY <<E /z\nz\nE\nENV A=1\n"
    site.build(text, a="1")
    (tmp_path / "other").mkdir()
    with Store.open(site.store) as store:
        base = store.find("small")
        from overlayfs.image.archive.save import save

        with open(tmp_path / "small.tar", "wb") as out:
            save(store, [base], out)
    other = Site.__new__(Site)
    other.store, other.context, other.prepared = tmp_path / "other" / "store", tmp_path / "other", prepared
    assert prepared.call("--store", other.store, "load", "-i", tmp_path / "small.tar").status == 0
    other.build(text, a="1")
    assert other.image().digest == site.image().digest


# -- stages


def test_stages_that_nothing_needs_are_not_built(site: Site) -> None:
    report = site.build(f"FROM small AS bad\nRUN false\n{ON}RUN echo 1 > /x\n")
    assert "[bad]" not in report


def test_stages_give_files_to_each_other(site: Site) -> None:
    site.build(
        "FROM small AS a\nRUN echo 1 > /1\nFROM small AS b\nRUN echo 2 > /2\n"
        "FROM scratch\nCOPY --from=a /1 /\nCOPY --from=b /2 /\n"
    )
    assert {path: facts[-1] for path, facts in site.tree().items() if path != "/."} == {"/1": b"1\n", "/2": b"2\n"}


def test_triggers_of_the_base_run_first(site: Site) -> None:
    site.build(f"{ON}ONBUILD COPY a /a\nONBUILD RUN cat /a > /b\n", "-t", "base", a="1")
    site.build("FROM base\nRUN cat /b > /c\n")
    assert site.text("/c") == "1"
    with Store.open(site.store) as store:
        assert b"OnBuild" not in store.read_blob(site.image().manifest.config)


def test_a_trigger_can_name_another_image(site: Site) -> None:
    site.build(f"{ON}ONBUILD COPY --from=small /etc/passwd /x\n", "-t", "base")
    site.build("FROM base\n")
    assert site.tree()["/x"] == site.tree()["/etc/passwd"]


def test_triggers_have_heredocs(site: Site) -> None:
    site.build(f"{ON}ONBUILD RUN <<E\necho 1 > /x\nE\nONBUILD COPY <<-F <<'G' /d/\n\t$a\n\tF\n$a\nG\n", "-t", "base")
    site.build("FROM base\n")
    assert [site.text(path) for path in ("/x", "/d/F", "/d/G")] == ["1\n", "\n", "$a\n"]


def test_a_stage_inherits_the_arguments_of_its_base(site: Site) -> None:
    text = "FROM small AS one\nARG A=1\nFROM one\nRUN echo $A > /x\nFROM small AS other\nRUN echo $A > /x\n"
    site.build(text, "--target", "1")
    assert site.text("/x") == "1\n"
    site.build(text, "--target", "1", "--build-arg", "A=2")
    assert site.text("/x") == "2\n"
    site.build(text)
    assert site.text("/x") == "\n"


def test_hard_links_are_copied_as_such(site: Site) -> None:
    (site.context / "d").mkdir()
    (site.context / "d/a").write_text("1")
    (site.context / "d/b").hardlink_to(site.context / "d/a")
    site.build(f"{ON[:-1]} AS one\nCOPY d /d\nRUN ln /d/b /d/c\n{ON}COPY --from=one --parents --chown=5 /d /e/\n")
    found = [site.tree()[f"/e/d/{name}"] for name in "abc"]
    assert [(kind, uid, target) for kind, _, uid, _, target, _ in found] == [
        (tarfile.REGTYPE, 5, ""),
        (tarfile.LNKTYPE, 5, "e/d/a"),
        (tarfile.LNKTYPE, 5, "e/d/a"),
    ]


# -- flags that buildah 1.28 does not know


def test_heredocs(site: Site) -> None:
    site.build(
        f"{ON}ARG A=1\n"
        "RUN <<E\necho one > /one\nset -e\necho $A >> /one\nE\n"
        "RUN cat <<E > /two\n$A\nE\n"
        "RUN <<E\n#!/bin/cat\nscript\nE\n"
        "COPY <<E <<'F' /d/\n$A\nE\n$A\nF\n"
        "RUN <<-E\n\techo tab > /tab\n\tE\n"
    )
    texts = [site.text(path) for path in ("/one", "/two", "/d/E", "/d/F", "/tab")]
    assert texts == ["one\n1\n", "1\n", "1\n", "$A\n", "tab\n"]


def test_parents_and_excluded_files(site: Site) -> None:
    fill(site.context)
    site.build(f"{ON}COPY --parents d/deep/c ./e/./deep /p/\nCOPY --exclude=deep --exclude=*.txt --link d *.txt /q/\n")
    found = {path for path in site.tree() if path.startswith(("/p", "/q")) and path != "/proc"}
    assert found == {"/p", "/p/d", "/p/d/deep", "/p/d/deep/c", "/p/deep", "/p/deep/d", "/q", "/q/b"}


def test_hosts_that_are_added(site: Site) -> None:
    site.build(f"{ON}RUN cat /etc/hosts > /x\n", "--add-host", "here:192.0.2.1", "--add-host", "there:2001:db8::1")
    assert {"192.0.2.1\there", "2001:db8::1\tthere"} <= set(site.text("/x").splitlines())
    assert "is no host" in site.refuses(ON, "--add-host", "here")


def test_memory_to_work_in_has_a_size(site: Site) -> None:
    site.build(f"{ON}RUN --mount=type=tmpfs,target=/m,size=1m stat -f -c '%b %S' /m > /x\n")
    blocks, size = map(int, site.text("/x").split())
    assert blocks * size == 1 << 20
    assert "'1x' is no size" in site.refuses(f"{ON}RUN --mount=type=tmpfs,target=/m,size=1x true\n")


def test_a_network_of_its_own(site: Site) -> None:
    text = f"{ON}RUN --network=none cat /proc/net/dev > /x\nRUN cat /proc/net/dev > /y\n"
    site.build(text)
    assert site.text("/x") != site.text("/y")
    site.build(text, "--network", "none")
    assert site.text("/x").count(":") == site.text("/y").count(":") == 1
    assert site.refuses(f"{ON}RUN --network=bad true\n").endswith("--network=bad: one of default, host, none")


def test_a_writable_bind_is_thrown_away(site: Site) -> None:
    site.build(f"{ON}RUN --mount=type=bind,target=/m,rw echo 1 > /m/new && cat /m/a > /x\n", a="1")
    assert site.text("/x") == "1"
    assert not (site.context / "new").exists()
    assert "ended with status" in site.refuses(f"{ON}RUN --mount=type=bind,target=/m touch /m/new\n")


def test_a_bind_shows_what_copy_would_copy(site: Site) -> None:
    """No ignored file, whatever of the context is mounted; a file there that changes runs no step again."""
    for name in ("keep", "secret", "d/keep", "d/secret", "e/secret", "e/keep"):
        (site.context / name).parent.mkdir(exist_ok=True)
        (site.context / name).write_text("1")
    (site.context / "d/keep").chmod(0o751)
    (site.context / "link").symlink_to("d/keep")
    (site.context / ".dockerignore").write_text("**/secret\ne\n!e/keep\n.dockerignore\nDockerfile\n")
    text = (
        f"{ON}COPY . /copied\nRUN --mount=target=/m --mount=target=/n,source=d,rw --mount=target=/o,source=link "
        "cd /m && ls -laR > /x && ls /n > /y && echo 2 > /n/new && cat /n/new /o > /z && cd /copied && ls -laR > /w\n"
    )
    site.build(text)
    lines = [[line.split() for line in site.text(path).splitlines()] for path in ("/x", "/w")]
    names = [[(words[0], words[-1]) for words in listed if words and words[-1] not in (".", "..")] for listed in lines]
    assert names[0] == names[1]
    assert ("-rwxr-x--x", "keep") in names[0]
    assert "secret" not in site.text("/x")
    assert (site.text("/y"), site.text("/z")) == ("keep\n", "2\n1")
    (site.context / "d/secret").write_text("2")
    assert site.build(text).count("(cached)") == 2
    assert "or ignored" in site.refuses(f"{ON}RUN --mount=target=/m,source=d/secret true\n")
    assert not (site.context / "d/new").exists()


def test_health_checks_have_the_shell_of_the_image(site: Site) -> None:
    site.build(f'{ON}SHELL ["/bin/sh", "-x", "-c"]\nHEALTHCHECK CMD a  b\n')
    with Store.open(site.store) as store:
        config = json.loads(store.read_blob(site.image().manifest.config))["config"]
    assert config["Healthcheck"]["Test"] == ["CMD-SHELL", "a  b"]


def test_a_cache_outlives_the_build(site: Site) -> None:
    step = f"{ON}RUN --mount=type=cache,target=/c,id=i echo x >> /c/f && cat /c/f > /x\n"
    site.build(step)
    site.build(step, "--no-cache")
    assert site.text("/x") == "x\nx\n"
    assert "/c/f" not in site.tree()


@pytest.mark.parametrize(("sharing", "is_locked"), [("locked", True), ("private", True), ("shared", False)])
def test_a_step_has_a_cache_that_is_not_shared_alone(site: Site, sharing: str, is_locked: bool) -> None:
    mounts = f"--mount=type=cache,target=/c,sharing={sharing} --mount=type=cache,target=/d,id=/c,sharing={sharing}"
    site.build(f"{ON}RUN {mounts} true\n")
    (cache,) = (site.store / "build/mounts").iterdir()
    os.mkfifo(cache / "gate")
    site.write(f"{ON}RUN {mounts} echo begun; cat /c/gate > /x\n")
    words: list[str | Path] = [*COMMAND, "--store", site.store, "build", "-t", "made", site.context]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        while build.stderr.readline().strip() != "begun":
            assert build.poll() is None
        is_free = _can_lock(cache)
        with Store.open(site.store) as store, pytest.raises(InUseError), store.alone(0):  # so that nobody prunes
            pass
        (cache / "gate").write_text("1\n")
        build.stderr.read()
    assert (site.text("/x"), is_free) == ("1\n", not is_locked)
    assert _can_lock(cache)


def _can_lock(directory: Path) -> bool:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_squash_and_labels_and_iidfile(site: Site, tmp_path: Path) -> None:
    site.build(f"{ON}RUN echo 1 > /x\n", "--squash", "--label", "a=b", "--iidfile", tmp_path / "id")
    image = site.image()
    assert (len(image.manifest.layers), image.config.config.labels) == (1, {"a": "b"})
    assert (tmp_path / "id").read_text() == image.id


def test_the_tree_is_written_out(site: Site, tmp_path: Path) -> None:
    site.build("FROM scratch\nCOPY a /d/a\n", "-o", tmp_path / "out", "-o", tmp_path / "out", a="1")
    assert (tmp_path / "out/d/a").read_text() == "1"
    site.build("FROM scratch\nCOPY a /d/a\n", "-o", f"type=tar,dest={tmp_path}/out.tar")
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert "d/a" in archive.getnames()


@pytest.mark.parametrize("output", ["-", "type=tar,dest=-"])
def test_a_tar_on_standard_output_is_alone_there(site: Site, tmp_path: Path, output: str) -> None:
    site.write("FROM scratch\nCOPY a /d/a\n", a="1")
    with open(tmp_path / "out.tar", "wb") as out:
        words: list[str | Path] = [*COMMAND, "--store", site.store, "build", "-t", "made", "-o", output, site.context]
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True, check=True
        )
    exported = io.BytesIO()
    with Store.open(site.store) as store:
        export_image(store, store.find("made"), exported)
    assert (tmp_path / "out.tar").read_bytes() == exported.getvalue()
    assert done.stderr.splitlines()[-1] == site.image().id


@pytest.mark.parametrize("output", ["type=tar", "type=oci,dest=x"])
def test_an_unknown_output_is_refused_before_the_work(site: Site, output: str) -> None:
    assert f"--output '{output}' is not" in site.refuses(ON, "-o", output)


# -- base images of a registry


def test_a_base_image_is_pulled_anew_if_asked_for(
    site: Site, tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "overlayfs").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with docker_registry(tmp_path / "registry") as registry:
        (tmp_path / "overlayfs/registries.toml").write_text(f'[registry."{registry.name}"]\ninsecure = true\n')
        base, found = f"{registry.name}/base", []
        for text, words in (("1", ()), ("2", ()), ("2", ("--pull",)), ("2", ())):
            site.build(f"{ON}RUN echo {text} > /x\n", "-t", base)
            assert prepared.call("--store", site.store, "push", "-q", base).status == 0
            found.append(_x_on(base, tmp_path / "other", prepared, *words))
    assert found == [b"1\n", b"1\n", b"2\n", b"2\n"]


def _x_on(base: str, store: Path, prepared: Prepared, *words: str) -> object:
    """The content of /x in an image that another store builds on this base."""
    done = prepared.call("--store", store, "build", "-t", "made", *words, "-", typed=f"FROM {base}\nENV A=1\n")
    assert done.status == 0, done.err
    with Store.open(store) as opened:
        return tree_of(opened, opened.find("made"))["/x"][-1]


# -- contexts


def test_the_dockerfile_alone_from_standard_input(site: Site) -> None:
    done = site.call("-t", "made", "-", typed=f"{ON}RUN echo 1 > /x\n")
    assert done.status == 0, done.err
    assert site.text("/x") == "1\n"


def test_the_dockerfile_from_standard_input_with_a_context(site: Site) -> None:
    site.write("FROM none\n", a="1")
    assert site.call("-t", "made", "-f", "-", site.context, typed=f"{ON}COPY a /x\n").status == 0
    assert site.text("/x") == "1"


@pytest.mark.parametrize("compression", ["gz", "bz2"])
def test_a_tar_as_context(site: Site, tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"context.tar.{compression}"
    with tarfile.open(path, f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, text in (("Dockerfile", f"{ON}COPY a /x\n"), ("a", "1")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    assert site.call("-t", "made", path).status == 0
    assert site.text("/x") == "1"
    with open(path, "rb") as typed:
        words: list[str | Path] = [*COMMAND, "--store", site.store, "build", "-q", "-t", "typed", "-"]
        subprocess.run(words, stdin=typed, stdout=subprocess.DEVNULL, check=True)
    assert site.image("typed").digest == site.image().digest


@pytest.mark.parametrize("damaged", [lzma.compress(b"x" * 4096)[:-20], b"\xfd7zXZ\0 no xz", b"BZh9 no bzip2 at all"])
def test_a_damaged_tar_as_context_is_named(site: Site, tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "context.tar"
    path.write_bytes(damaged)
    done = site.call(path)
    assert (done.status, f"overlayfs: {path}" in done.err, "damaged" in done.err) == (1, True, True), done.err


def _repository(path: Path, **files: str) -> str:
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"]):
        subprocess.run(["git", "-C", path, *words], check=True)
    return f"{path}/.git"


def test_a_git_repository_as_source(site: Site, tmp_path: Path, httpd: str) -> None:
    url = _repository(tmp_path / "served/r", a="1")
    subprocess.run(["git", "-C", url, "update-server-info"], check=True)
    site.build(f"{ON}ADD {httpd}/r/.git /r\n")
    assert {path for path in site.tree() if path.startswith("/r/")} == {"/r/a"}
    assert site.tree()["/r/a"][1] == "0o644"
    said = subprocess.run(["git", "-C", url, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    site.build(f"{ON}ADD --checksum={said.stdout[:7]} {httpd}/r/.git /r\n")
    assert "is another commit" in site.refuses(f"{ON}ADD --checksum={'0' * 7} {httpd}/r/.git /r\n")


@pytest.fixture
def httpd(tmp_path: Path) -> Iterator[str]:
    """A server of the files in `served`."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "served").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_fetched_and_checked(site: Site, tmp_path: Path, httpd: str) -> None:
    (tmp_path / "served/f").write_text("hello")
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    site.build(f"{ON}ARG SUM={digest}\nADD --checksum=sha256:$SUM {httpd}/f /x/\n")
    assert site.tree()["/x/f"][1:4] == ("0o600", 0, 0)
    assert "has another content" in site.refuses(f"{ON}ADD --checksum=sha256:{'0' * 64} {httpd}/f /x/\n")
    assert "could not be fetched" in site.refuses(f"{ON}ADD {httpd}/none /x/\n")


def test_an_archive_of_a_url_is_unpacked_if_asked_for(site: Site, tmp_path: Path, httpd: str) -> None:
    with tarfile.open(tmp_path / "served/t.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("in"))
    site.build(f"{ON}ADD {httpd}/t.tar.gz /x/\nADD --unpack=true {httpd}/t.tar.gz /y/\n")
    assert {path for path in site.tree() if path.startswith(("/x/", "/y/"))} == {"/x/t.tar.gz", "/y/in"}


# -- errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM small\nRUN false\n", "Dockerfile:2: the command ended with status 1"),
        ("FROM small\nRUN exit 7\n", "Dockerfile:2: the command ended with status 7"),
        ('FROM small\nRUN ["nothing"]\n', "Dockerfile:2: RUN: 'nothing' is not in the image"),
        ("FROM small\nCOPY none /x\n", "Dockerfile:2: COPY: 'none' is not in the build context"),
        ("FROM small\nCOPY *.none /x\n", "Dockerfile:2: COPY: '*.none' is not in the build context"),
        ("FROM small\nUSER nobody-here\nRUN true\n", "Dockerfile:3: RUN: the image has no user 'nobody-here'"),
        ("FROM small\nCOPY --chown=none a /x\n", "Dockerfile:2: COPY: the image has no user 'none'"),
        ("FROM small\nCOPY --chmod=u+y a /x\n", "Dockerfile:2: COPY: --chmod=u+y"),
        ("FROM small\nCOPY a a /x\n", "Dockerfile:2: COPY: several files need a directory: write /x/"),
        ("FROM small\nCOPY a /etc/passwd/x\n", "Dockerfile:2: COPY: '/etc/passwd' in the image is no directory"),
        ("FROM small\nENV A\n", "Dockerfile:2:1: 'A' is not NAME=VALUE"),
        ("FROM small\nARG 1=2\n", "Dockerfile:2:1: '1=2' is no ARG"),
        ("FROM small\nRUN --mount=type=cache,target=/c,size=1 true\n", "Dockerfile:2: --mount=type=cache has no"),
        ("FROM small\nRUN --mount=type=none true\n", "Dockerfile:2: --mount: unknown type 'none'"),
        ("FROM small\nCOPY --from=1 a /x\nFROM small\nFROM small\n", None),
        ("FROM small\nHEALTHCHECK --retries=x CMD y\n", "Dockerfile:2:1: --retries=x is no number"),
        (f"FROM small\nHEALTHCHECK --retries={'9' * 5000} CMD y\n", "Dockerfile:2:1: --retries=9999"),
        (f"FROM small\nHEALTHCHECK --timeout={'9' * 400}s CMD y\n", "Dockerfile:2:1: --timeout=9999"),
    ],
)
def test_errors_name_their_place(site: Site, text: str, message: str | None) -> None:
    if message is None:
        text, message = text.rsplit("FROM", 2)[0] + "FROM small\n", "Dockerfile:2:"
        site.write(text, a="1")
        done = site.call("--target", "0", site.context)
        assert done.err.startswith("overlayfs: Dockerfile:2:")
        return
    assert f"overlayfs: {message}" in site.refuses(text, a="1")


def test_the_container_of_a_failed_command_is_kept(site: Site) -> None:
    site.write(f"{ON}RUN echo 1 > /x && false\n")
    done = site.call("--keep", site.context)
    assert done.status == 1
    (name,) = os.listdir(site.store / "containers")
    assert f"overlayfs commit {name}" in done.err
    assert site.prepared.call("--store", site.store, "commit", name, "made").status == 0
    assert site.text("/x") == "1\n"
    assert site.prepared.call("--store", site.store, "rm", name).status == 0


def test_unused_arguments_are_reported(site: Site) -> None:
    assert "no ARG of the Dockerfile is called A" in site.build(ON, "--build-arg", "A=1")


def test_output_of_a_quiet_build_is_shown_only_if_it_fails(site: Site) -> None:
    assert site.build(f"{ON}RUN echo loud\n", "-q") == ""
    site.write(f"{ON}RUN echo loud; false\n")
    assert "loud\n" in site.call("-q", site.context).err
