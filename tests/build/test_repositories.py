"""Git repositories as contexts: of a server, and of this machine."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from tests.build.test_build import ON, Site


def git(repository: Path, *words: str | Path) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=b", "-c", "protocol.file.allow=always"]
    return subprocess.check_output(["git", "-C", repository, *settings, *words], text=True).strip()


def make(path: Path, **files: str) -> Path:
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    return commit(path, **files)


def commit(path: Path, **files: str) -> Path:
    for name, text in files.items():
        place = path / name.replace("__", "/")
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    git(path, "add", ".")
    git(path, "commit", "-qm", "c")
    return path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory of repositories, and the URL at which `git daemon` serves them."""
    top = tmp_path / "served"
    top.mkdir()
    words: list[str | Path] = ["git", "daemon", "--inetd", "--export-all", f"--base-path={top}", top]

    def serve() -> None:
        with suppress(OSError):  # it is shut down
            while True:
                with listening.accept()[0] as client:
                    subprocess.run(
                        words, stdin=client.fileno(), stdout=client.fileno(), stderr=subprocess.DEVNULL, check=False
                    )

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=serve)
        thread.start()
        yield top, f"git://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_branch_commit_and_subdirectory_of_a_server(site: Site, served: tuple[Path, str]) -> None:
    top, url = served
    repository = make(top / "r", Dockerfile=f"{ON}COPY a /x\n", a="1", sub__Dockerfile=f"{ON}COPY . /y\n", sub__b="2")
    old = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-qb", "other")
    commit(repository, a="3")
    found = {}
    for reference in ("", "#main", f"#{old[:8]}"):
        assert site.call("-t", "made", f"{url}/r{reference}").status == 0
        found[reference] = site.text("/x")
    assert list(found.values()) == ["3", "1", "1"]
    assert site.call("-t", "made", f"{url}/r#:sub").status == 0
    assert {path for path in site.tree() if path.startswith("/y")} == {"/y", "/y/Dockerfile", "/y/b"}
    for reference in ("#none", "#main:../..", "#:Dockerfile"):
        assert site.call(f"{url}/r{reference}").status == 1


def test_a_repository_of_this_machine(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = make(tmp_path / "r", Dockerfile=f"{ON}COPY a /x\n", a="1")
    git(repository, "tag", "v1")
    commit(repository, a="2")
    (repository / "a").write_text("3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook
    for context, content in (("r", "3"), ("r#HEAD", "2"), (f"{repository}#v1", "1"), (f"file://{repository}", "2")):
        assert site.call("-t", "made", context).status == 0
        assert site.text("/x") == content
    assert "is not in the build context" in site.refuses(f"{ON}ADD file://{repository} /x\n")


def test_submodules_are_fetched(site: Site, served: tuple[Path, str]) -> None:
    top, url = served
    make(top / "s", inner="1")
    repository = make(top / "r", Dockerfile=f"{ON}COPY . /x\n")
    git(repository, "submodule", "add", "-q", "../s", "d/s")
    commit(repository)
    assert site.call("-t", "made", f"{url}/r").status == 0
    found = {path for path in site.tree() if path.startswith("/x/")}
    assert found == {"/x/Dockerfile", "/x/.gitmodules", "/x/d", "/x/d/s", "/x/d/s/inner"}


def test_a_submodule_is_no_repository_of_the_host(
    site: Site, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, url = served
    make(tmp_path / "private", secret="1")
    repository = make(top / "r", Dockerfile=f"{ON}COPY . /x\n")
    git(repository, "submodule", "add", "-q", tmp_path / "private", "s")
    commit(repository)
    (tmp_path / ".gitconfig").write_text('[protocol "file"]\nallow = always\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "file:git")
    done = site.call(f"{url}/r")
    assert (done.status, "'file' not allowed" in done.err) == (1, True), done.err


def test_symlinks_of_a_subdirectory_stay_in_it(site: Site, tmp_path: Path) -> None:
    repository = make(tmp_path / "r", secret="1", sub__Dockerfile=f"{ON}COPY link /x\n", d__Dockerfile=ON)
    (repository / "sub/link").symlink_to("../secret")
    (repository / "out").symlink_to("/etc")
    (repository / "inner").symlink_to("d")
    commit(repository)
    done = site.call(f"{repository}#:sub")
    assert "'link' is not in the build context" in done.err
    assert "'out' is no directory of the repository" in site.call(f"{repository}#:out").err
    assert site.call(f"{repository}#:inner").status == 0


@pytest.mark.parametrize("reference", ["--upload-pack=touch /tmp/x", "-x", "--help:d"])
def test_references_are_no_options_of_git(site: Site, tmp_path: Path, reference: str) -> None:
    repository = make(tmp_path / "r", Dockerfile=ON)
    assert "is no repository" in site.call(f"{repository}#{reference}").err


def test_git_has_to_be_installed(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = site.call("git://127.0.0.1/r")
    assert (done.status, done.err) == (1, "overlayfs: git is not installed\n")
