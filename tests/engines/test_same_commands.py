"""The same container commands, given to podman and to us: the exit status and what is printed are equal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from overlayfs.image.store.store import Store
from tests.cli.container.shop import Shop
from tests.container.small import small_image
from tests.engines.podman import Podman
from tests.prepared import Prepared


class Both(NamedTuple):
    """Podman and us, each with its own storage and the image `small`."""

    podman: Podman
    shop: Shop

    def theirs(self, command: str) -> tuple[int, str]:
        done = self.podman.call(*words_of(command))
        return done.returncode, done.stdout.replace("\r\n", "\n")

    def ours(self, command: str) -> tuple[int, str]:
        done = self.shop.call(*words_of(command))
        return done.status, done.out.replace("\r\n", "\n")


def words_of(command: str) -> list[str]:
    """The words; what follows ` -- ` is one word, the script of a shell."""
    words, _, script = command.partition(" -- ")
    return [*words.split(), *(["sh", "-c", script] if script else [])]


@pytest.fixture(scope="module")
def both(top: Path) -> Iterator[Both]:
    with Store.open(top / "store") as store:
        small_image(store)
    podman = Podman(top / "podman", None)
    try:
        with Prepared() as prepared:
            shop = Shop(top / "store", prepared)
            shop.run("save", "-q", "small", "-o", top / "small.tar")
            podman("load", "-q", "-i", top / "small.tar")
            (top / "variables").write_text("# a comment\nA=1\nB=two words\n")
            (top / "shared").mkdir()
            (top / "shared/file").write_text("shared\n")
            yield Both(podman, shop)
    finally:
        podman.close()


RUNS = {
    "status 0": "run --rm small -- echo a",
    "status 3": "run --rm small -- exit 3",
    "unknown option": "run --rm --unknown small",
    "not executable": "run --rm small /etc/passwd",
    "not found": "run --rm small /missing",
    "killed": "run --rm small -- kill -9 $$",
    "variable": "run --rm -e A=b small -- echo $A",
    "variables of a file": "run --rm --env-file {top}/variables small -- echo $A$B",
    "directory": "run --rm -w /new/dir small pwd",
    "user": "run --rm -u bob small id",
    "numbers": "run --rm -u 7:8 small id",
    "unknown user": "run --rm -u nobody-here small id",
    "entrypoint": "run --rm --entrypoint /bin/pwd small",
    "host name": "run --rm --hostname h small cat /etc/hostname",
    "read-only": "run --rm --read-only small touch /file",
    "tmpfs": "run --rm --read-only --tmpfs /t small -- echo a >/t/f; cat /t/f",
    "bind": "run --rm -v {top}/shared:/s small cat /s/file",
    "read-only bind": "run --rm -v {top}/shared:/s:ro small touch /s/new",
}

STORIES = {
    "a life": [
        "create --name one --label a=b small -- exit 4",
        "ps -a --format {{.Names}}",
        "inspect --type container --format {{.State.Status}} one",
        "start -a one",
        "wait one",
        "run --name one small pwd",
        "rename one two",
        "rm two",
        "inspect --type container two",
    ],
    "running": [
        "run -d --name live small sleep 1000",
        "exec live -- echo a; exit 6",
        "exec -e A=b -w /tmp -u bob live -- echo $A; pwd; id -u",
        "exec live /missing",
        "cp {top}/shared/file live:/tmp/copied",
        "exec live cat /tmp/copied",
        "port live",
        "kill -s KILL live",
        "wait live",
        "exec live pwd",
        "rm live",
    ],
    "volumes": [
        "volume create v",
        "run --rm -v v:/v small -- echo kept >/v/f",
        "run --rm -v v:/v small cat /v/f",
        "volume ls -q",
        "volume rm v",
        "volume inspect v",
    ],
}
_NEW = ("create", "run -d")  # these print a new ID


# What differs from podman 4.3, and why: the case of RUNS, or the line of a story.
DIFFERENCES = {
    "unknown option": "podman 125; every command of ours ends with 2 after wrong usage",
    "killed": "podman's program is process 1 and cannot kill itself; with bwrap it is a child of process 1",
    "directory": "podman refuses a missing working directory (126); it is made here",
    "numbers": "podman adds a line for the number to the image's /etc/passwd",
    "unknown user": "podman 126; here 125, for the program was not run",
    "host name": "podman's /etc/hostname has no line end",
    "inspect --type container --format {{.State.Status}} one": "inspect has no --format: wrong usage",
    "run --name one small pwd": "podman refuses a name that is taken; here the program runs in that container again",
    "exec live pwd": "podman 255; here 125, for the program was not run",
    "inspect --type container two": "as `volume inspect v`",
    "volume inspect v": "podman prints an empty list and ends with 125; here nothing is printed, and 1 is the status",
}


_CASES = [pytest.param(name, marks=() if index < 4 else pytest.mark.long) for index, name in enumerate(RUNS)]


@pytest.mark.parametrize("case", _CASES)
def test_run_is_as_podmans(case: str, both: Both, top: Path) -> None:
    command = RUNS[case].replace("{top}", str(top))
    assert (both.ours(command) == both.theirs(command)) is (case not in DIFFERENCES)


@pytest.mark.long
@pytest.mark.parametrize("case", STORIES)
def test_story_is_as_podmans(case: str, both: Both, top: Path) -> None:
    for line in STORIES[case]:
        command = line.replace("{top}", str(top))
        (status, out), (their_status, their_out) = both.ours(command), both.theirs(command)
        if line.startswith(_NEW):
            out, their_out = str(len(out)), str(len(their_out))
        assert ((status, out) == (their_status, their_out)) is (line not in DIFFERENCES), line
