"""What is executed: the image's configuration, and what the command line says instead."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from overlayfs.container.process import (
    DEFAULT_PATH,
    CannotRunError,
    NotThereError,
    Overrides,
    Process,
    check_hostname,
    command_of,
    find_program,
    process_of,
)
from overlayfs.container.root_paths import Inside
from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.oci.errors import InvalidError

CONFIG = RunConfig(entrypoint=["/entry", "-x"], cmd=["a", "b"], env=["A=1", "PATH=/p:/bin"], working_dir="/work")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("bin/sh", "p/tool", "bin/tool", "entry", "work/local"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch(0o755)
        (root / name).chmod(0o755)
    return root


def process(root: Path, config: RunConfig, overrides: Overrides, caller: Mapping[str, str] | None = None) -> Process:
    with Inside(os.fsencode(root)) as inside:
        return process_of(config, overrides, inside, "host", caller or {})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (Overrides(), ("/entry", "-x", "a", "b")),
        (Overrides(("c",)), ("/entry", "-x", "c")),
        (Overrides(entrypoint="/other"), ("/other",)),
        (Overrides(("c",), entrypoint="/other"), ("/other", "c")),
        (Overrides(("c",), entrypoint=""), ("c",)),
    ],
)
def test_words_are_combined_as_docker_does(overrides: Overrides, words: tuple[str, ...]) -> None:
    assert command_of(CONFIG, overrides) == words


@pytest.mark.parametrize(
    ("config", "overrides"),
    [(RunConfig(), Overrides()), (CONFIG, Overrides(entrypoint="")), (RunConfig(cmd=[]), Overrides())],
)
def test_no_command_at_all_is_an_error(config: RunConfig, overrides: Overrides) -> None:
    with pytest.raises(InvalidError, match="say what to run"):
        command_of(config, overrides)


def test_nul_in_the_command_is_refused() -> None:
    with pytest.raises(InvalidError, match="NUL"):
        command_of(RunConfig(cmd=["a\0b"]), Overrides())


def test_environment_is_the_images_then_the_command_lines(root: Path) -> None:
    overrides = Overrides(environment=("A=2", "B=x=y", "MINE", "ABSENT"))
    caller = {"MINE": "m", "SECRET": "s", "TERM": "vt100"}
    assert process(root, CONFIG, overrides, caller).environment == {
        "PATH": "/p:/bin",
        "HOME": "/",
        "HOSTNAME": "host",
        "TERM": "vt100",
        "A": "2",
        "B": "x=y",
        "MINE": "m",
    }


def test_path_and_home_have_defaults(root: Path) -> None:
    environment = process(root, RunConfig(cmd=["sh"]), Overrides()).environment
    assert environment == {"PATH": DEFAULT_PATH, "HOME": "/", "HOSTNAME": "host"}


@pytest.mark.parametrize("name", ["web", "web.example", "a-b_c.1", "x" * 64, "A.B"])
def test_hostname(name: str) -> None:
    check_hostname(name)


@pytest.mark.parametrize("name", ["-x", "x-", "a..b", ".a", "a.", "a b", "a\n", "x" * 65, "ü", "a/b", "--rm", "a.-b"])
def test_bad_hostname_is_refused(name: str) -> None:
    with pytest.raises(InvalidError, match="is no host name") as refused:
        check_hostname(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("item", ["=x", "A=\0"])
def test_bad_variable_is_refused(root: Path, item: str) -> None:
    with pytest.raises(InvalidError, match="is no environment variable"):
        process(root, RunConfig(cmd=["sh"], env=[item]), Overrides())


def test_empty_variable_is_none_in_an_image_and_refused_from_a_person(root: Path) -> None:
    with_empty = RunConfig(cmd=["sh"], env=["", "A=b"])
    assert process(root, with_empty, Overrides()).environment["A"] == "b"
    with pytest.raises(InvalidError, match="is no environment variable"):
        process(root, with_empty, Overrides(environment=("",)))


@pytest.mark.parametrize(
    ("configured", "asked", "directory"),
    [
        ("", "", "/"),
        ("/work", "", "/work"),
        ("work/../w", "", "/w"),
        ("/work", "/tmp//x/", "/tmp/x"),
        ("//x", "", "/x"),
    ],
)
def test_working_directory(root: Path, configured: str, asked: str, directory: str) -> None:
    config = RunConfig(cmd=["/bin/sh"], working_dir=configured)
    assert process(root, config, Overrides(working_directory=asked)).directory == directory


def find(root: Path, name: str, path: str = "/p:/bin", directory: str = "/work") -> str:
    with Inside(os.fsencode(root)) as inside:
        return find_program(inside, name, path, directory)


def test_program_is_looked_for_along_the_path(root: Path) -> None:
    assert find(root, "tool") == "/p/tool"
    assert find(root, "sh") == "/bin/sh"
    assert find(root, "./local") == "/work/./local"
    assert find(root, "local", path="/bin:") == "/work/./local"
    (root / "p/tool").chmod(0o644)
    assert find(root, "tool") == "/bin/tool"


def test_absolute_links_are_followed_in_the_image(root: Path) -> None:
    (root / "usr").mkdir()
    (root / "usr/bin").symlink_to("/bin")
    (root / "bin/python").symlink_to("/bin/tool")
    assert find(root, "python", path="/usr/bin") == "/usr/bin/python"
    (root / "bin/out").symlink_to("../../../../../../bin/ls")  # not in the image
    with pytest.raises(NotThereError):
        find(root, "out")


def test_what_cannot_be_executed_is_told_apart_from_what_is_not_there(root: Path) -> None:
    (root / "bin/text").touch(0o644)
    os.mkfifo(root / "bin/fifo", 0o755)
    for name, why in (("text", "is not executable"), ("fifo", "is not executable"), ("/bin", "is a directory")):
        with pytest.raises(CannotRunError, match=why) as caught:
            find(root, name)
        assert not isinstance(caught.value, NotThereError)
    for name in ("nothing", "/nothing", "", "/bin/sh/x"):
        with pytest.raises(NotThereError):
            find(root, name)
