"""Short options against docker's: each means the same here, or is refused; none is taken for something else."""

from __future__ import annotations

from typing import Any, Final

import pytest
import typer

from overlayfs.cli.app import app
from overlayfs.cli.commands import declare
from tests.cli.people import run

DOCKER: Final = {
    "run": {
        "a": "--attach",
        "c": "--cpu-shares",
        "d": "--detach",
        "e": "--env",
        "h": "--hostname",
        "i": "--interactive",
        "l": "--label",
        "m": "--memory",
        "p": "--publish",
        "P": "--publish-all",
        "q": "--quiet",
        "t": "--tty",
        "u": "--user",
        "v": "--volume",
        "w": "--workdir",
    },
    "ps": {"a": "--all", "f": "--filter", "l": "--latest", "n": "--last", "q": "--quiet", "s": "--size"},
    "rm": {"f": "--force", "l": "--link", "v": "--volumes"},
    "images": {"a": "--all", "f": "--filter", "q": "--quiet"},
    "rmi": {"f": "--force"},
    "prune": {"a": "--all", "f": "--force"},
    "load": {"i": "--input", "q": "--quiet"},
    "save": {"o": "--output"},
    "import": {"c": "--change", "m": "--message"},
    "export": {"o": "--output"},
    "pull": {"a": "--all-tags", "q": "--quiet"},
    "push": {"a": "--all-tags", "q": "--quiet"},
    "login": {"p": "--password", "u": "--username"},
    "commit": {"a": "--author", "c": "--change", "m": "--message", "p": "--pause"},
    "history": {"H": "--human", "q": "--quiet"},
    "inspect": {"f": "--format", "s": "--size"},
    "cp": {"a": "--archive", "L": "--follow-link", "q": "--quiet"},
    "stats": {"a": "--all"},
    "build": {"c": "--cpu-shares", "f": "--file", "m": "--memory", "o": "--output", "q": "--quiet", "t": "--tag"},
}
"""The commands that both have, and docker's short options (docs.docker.com/reference/cli)."""

PAIRS: Final = [(command, letter) for command, letters in DOCKER.items() for letter in letters]


def long_name(command: str, letter: str) -> str | None:
    """What a short option of ours is called in full."""
    declare(None)
    ours: Any = typer.main.get_command(app)
    for parameter in ours.commands[command].params:
        if f"-{letter}" in parameter.opts:
            return str(parameter.opts[0])
    return None


@pytest.mark.parametrize(("command", "letter"), PAIRS)
def test_short_option_means_what_it_means_to_docker_or_is_refused(command: str, letter: str) -> None:
    known = long_name(command, letter)
    if known is not None:
        assert known == DOCKER[command][letter]
        return
    done = run(command, f"-{letter}", "x", status=2)
    assert (done.stdout, done.stderr) == ("", f"overlayfs: No such option: -{letter}\n")


@pytest.mark.parametrize("letter", "dDHlv")
def test_option_before_the_command_is_refused_too(letter: str) -> None:
    done = run(f"-{letter}", "ps", status=2)
    assert (done.stdout, done.stderr) == ("", f"overlayfs: No such option: -{letter}\n")


def test_options_that_are_joined_are_refused_by_the_one_that_is_unknown() -> None:
    assert run("run", "-Dit", "x", status=2).stderr == "overlayfs: No such option: -D\n"


def test_help_of_run_is_in_full() -> None:
    assert run("run", "-h", status=2).stderr == "overlayfs: Option '-h' requires an argument.\n"
    assert "-h, --hostname NAME" in run("run", "--help").stdout
