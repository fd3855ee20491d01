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
        "run --name shown small -- echo a; printf b; exit 2",
        "logs shown",
        "rm shown",
    ],
    "running": [
        "run -d --name live small sleep 1000",
        "exec live -- echo a; exit 6",
        "exec -e A=b -w /tmp -u bob live -- echo $A; pwd; id -u",
        "exec live /missing",
        "cp {top}/shared/file live:/tmp/copied",
        "exec live cat /tmp/copied",
        "port live",
        "top live -o args",
        "kill -s KILL live",
        "wait live",
        "exec live pwd",
        "cp live:/tmp/copied {top}/{who}",
        "rm live",
    ],
    "ended in order": [
        "run -d --name live -v /data small -- trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done",
        "pause live",
        "ps --filter status=paused --format {{.Names}}",
        "inspect --format {{.State.Status}} live",
        "unpause live",
        "stop live",
        "logs live",
        "logs --tail 1 live",
        "wait live",
        "port live",
        "rename live done",
        "ps -a --format {{.Names}}",
        "inspect --format {{.State.Status}}:{{.State.ExitCode}}:{{.State.Running}} done",
        "rm -v done",
        "volume ls -q",
        "stop done",
        "logs done",
    ],
    "odd moments": [
        "run -d --name deaf --stop-timeout 1 small -- trap '' TERM; while :; do sleep 0.1; done",
        "stop deaf",
        "run -d --name one small -- exit 3",
        "run -d --name two small -- exit 4",
        "wait deaf one two",
        "start -a one",
        "kill one",
        "attach one",
        "run -d --name box small sleep 1000",
        "kill -s SIGUSR1 box",
        "kill --signal 12 box",
        "kill -s 99 box",
        "inspect --format {{.State.Status}} box",
        "start -a box two",
        "kill --signal 9 box",
        "wait box",
        "restart box",
        "exec box -- kill -9 $$",
        "exec -i box cat",
        "pause box",
        "exec box pwd",
        "unpause box",
        "pause deaf",
        "unpause deaf",
        "cp {top}/shared box:/tmp/",
        "cp box:/tmp/shared/file {top}/{who}",
        "cp box:/missing {top}/{who}",
        "stop -t 0 box",
        "cp box:/etc/passwd {top}/{who}",
        "cp {top}/shared/file box:/tmp/again",
        "start box",
        "exec box cat /tmp/again",
        "rm -f -v box",
        "rm -f box",
        "rm box",
        "exec box id",
        "rm -f deaf",
        "create --name new --label a=b small pwd",
        "kill new",
        "wait new",
        "logs new",
        "rename new one",
        "restart new",
        "container prune -f --filter label=a",
        "ps -a --filter name=new --format {{.Names}}",
    ],
    "health": [
        "run -d --name well --health-cmd true --health-interval 1h small sleep 1000",
        "healthcheck run well",
        "run -d --name ill --health-cmd false --health-retries 1 --health-interval 1h small sleep 1000",
        "healthcheck run ill",
        "run -d --name unchecked small sleep 1000",
        "healthcheck run unchecked",
        "rm -f well",
        "rm -f ill",
        "rm -f unchecked",
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
_NEW = ("create", "run -d", "container prune")  # these print IDs


class Difference(NamedTuple):
    """What both do, the exit status and what is printed, and why it is not the same."""

    ours: tuple[int, str]
    podmans: tuple[int, str]
    why: str


# What differs from podman 4.3: the case of RUNS, or the line of a story.
DIFFERENCES: dict[str, Difference] = {
    "unknown option": Difference((2, ""), (125, ""), "every command of ours ends with 2 after wrong usage"),
    "killed": Difference(
        (137, ""),
        (0, ""),
        "podman's program is process 1 and cannot kill itself; with bwrap it is a child of process 1",
    ),
    "directory": Difference((0, "/new/dir\n"), (126, ""), "a missing working directory is made here, as docker does"),
    "numbers": Difference(
        (0, "uid=7 gid=8 groups=8\n"),
        (0, "uid=7(7) gid=8(8) groups=8(8)\n"),
        "podman adds lines for the numbers to the image's /etc/passwd and /etc/group",
    ),
    "unknown user": Difference((125, ""), (126, ""), "the program was not run: 125"),
    "host name": Difference((0, "h\n"), (0, "h"), "podman's /etc/hostname has no line end"),
    "run --name one small pwd": Difference((0, "/\n"), (125, ""), "the program runs in that container again"),
    "inspect --type container two": Difference(
        (1, ""), (125, "[]\n"), "podman prints an empty list; commands of ours that run nothing fail with 1"
    ),
    "top live -o args": Difference(
        (1, ""), (125, ""), "podman takes them for options of a ps in the image; here ps must show PIDs, as with docker"
    ),
    "exec live pwd": Difference((125, ""), (255, ""), "the program was not run: 125"),
    "exec box pwd": Difference((125, ""), (255, ""), "the program was not run: 125"),
    "volume inspect v": Difference((1, ""), (125, "[]\n"), "as inspect"),
}
_FAILING = (
    *("stop done", "logs done", "kill one", "attach one", "kill -s 99 box", "start -a box two", "pause deaf"),
    *("unpause deaf", "cp box:/missing {top}/{who}", "kill new", "rename new one"),
)
DIFFERENCES |= dict.fromkeys(_FAILING, Difference((1, ""), (125, ""), "commands of ours that run nothing fail with 1"))


_CASES = [pytest.param(name, marks=() if index < 4 else pytest.mark.long) for index, name in enumerate(RUNS)]


@pytest.mark.parametrize("case", _CASES)
def test_run_is_as_podmans(case: str, both: Both, top: Path) -> None:
    compare(both, case, RUNS[case], top)


@pytest.mark.long
@pytest.mark.parametrize("case", STORIES)
def test_story_is_as_podmans(case: str, both: Both, top: Path) -> None:
    for line in STORIES[case]:
        compare(both, line, line, top)


def compare(both: Both, case: str, line: str, top: Path) -> None:
    """Give both the command, and expect the same of them, or what the table says of the case."""
    ours = both.ours(line.replace("{top}", str(top)).replace("{who}", "ours"))
    podmans = both.theirs(line.replace("{top}", str(top)).replace("{who}", "podmans"))
    if line.startswith(_NEW):
        ours, podmans = ((status, str(len(out))) for status, out in (ours, podmans))
    known = DIFFERENCES.get(case)
    assert (ours, podmans) == ((known.ours, known.podmans) if known else (ours, ours)), line
