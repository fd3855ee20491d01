"""Programs on terminals: `run -it`, `exec -it` and `attach`, by a terminal like that of a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.store.store import Store
from tests.cli.container.shop import Shop, await_that, descendants
from tests.cli.container.terminals import Terminal, on_terminal
from tests.container.small import image_of, programs, small_image
from tests.prepared import Prepared

ENDLESS = "while :; do sleep 0.05; done"
WAYS = ("bwrap", "runc", "exec")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path = tmp_path_factory.mktemp("shop") / "store"
    with Store.open(path) as store:
        small_image(store)
        image_of(store, "screen", RunConfig(cmd=["sh"]), dict(programs("stty")), base=store.find("small"))
    with Prepared() as prepared:
        yield Shop(path, prepared)


def shell(shop: Shop, way: str, *words: str, size: tuple[int, int] = (24, 80)) -> AbstractContextManager[Terminal]:
    """`sh` with these words on a terminal: in a container of its own by one of the runtimes, or in a running one."""
    if way != "exec":
        return on_terminal(shop, "run", "--rm", "-it", "--runtime", way, "screen", "sh", *words, size=size)
    shop.run("run", "-d", "--name", "box", "screen", "sh", "-c", ENDLESS)
    return on_terminal(shop, "exec", "-it", "box", "sh", *words, size=size)


@pytest.mark.parametrize("way", WAYS)
def test_program_has_the_terminal_its_ctrl_c_and_we_its_status(live: Shop, way: str) -> None:
    # it says again and again how far it is: with a signal the terminal drops what is on its way to be shown
    loop = "while [ $n -lt 2 ]; do echo at $n; sleep 0.05; done"
    script = f"n=0; trap 'n=$((n + 1))' INT; test -t 0 && test -t 1 || exit; {loop}; exit 6"
    with shell(live, way, "-c", script) as terminal:
        for number in (b"0", b"1"):
            terminal.read_until(b"at " + number)
            terminal.type(b"\x03")
        assert terminal.status() == 6


@pytest.mark.parametrize("way", WAYS)
def test_program_learns_the_size_of_the_terminal(live: Shop, way: str) -> None:
    script = f"trap 'stty size' WINCH; stty size; echo ready; {ENDLESS}"
    with shell(live, way, "-c", script, size=(33, 77)) as terminal:
        terminal.read_until(b"ready")
        terminal.resize(44, 99)
        terminal.read_until(b"44 99\r\n")


def test_size_is_known_from_the_start(live: Shop) -> None:
    for way in WAYS:
        with shell(live, way, "-c", "stty size", size=(33, 77)) as terminal:
            terminal.read_until(b"33 77\r\n")


@pytest.mark.parametrize("way", ["bwrap", "runc"])
def test_program_ends_when_its_terminal_goes(live: Shop, way: str) -> None:
    with shell(live, way, "-c", f"trap 'exit 6' HUP; echo ready; {ENDLESS}") as terminal:
        terminal.read_until(b"ready")
        terminal.hang_up()
        assert terminal.status() == 6


def test_shell_has_job_control(live: Shop) -> None:
    with on_terminal(live, "run", "--rm", "--env", "PS1=:", "small", "sh", "-i") as terminal:
        terminal.type(b"sleep 3333\n")
        terminal.read_until(b"sleep 3333\r\n")
        await_that(lambda: any(b"3333" in command_line(pid) for pid in descendants(terminal.process.pid)))
        terminal.type(b"\x03")
        terminal.read_until(b"^C\r\n:")  # what is typed before would be thrown away
        terminal.type(b"echo st$((40+2))ill; exit 4\n")
        said = terminal.read_until(b"st42ill")
        assert b"job control turned off" not in said and b"can't access tty" not in said
        assert terminal.status() == 4


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_attached_terminal_has_our_size_and_is_left_by_its_keys(live: Shop) -> None:
    live.run("run", "-d", "-it", "--name", "box", "screen", "sh", "-c", "while read -r x; do stty size; done; exit 3")
    with on_terminal(live, "attach", "box", size=(33, 77)) as terminal:
        terminal.type(b"x\n")
        terminal.read_until(b"33 77\r\n")
        terminal.type(b"\x10\x11")
        assert terminal.status() == 0
    with on_terminal(live, "attach", "box", size=(44, 99)) as terminal:
        terminal.type(b"x\n")
        terminal.read_until(b"44 99\r\n")
        terminal.type(b"\x04")
        assert terminal.status() == 3


def test_what_is_shown_on_runcs_terminal_is_logged(live: Shop) -> None:
    words = ("--name", "box", "--runtime", "runc", "screen", "sh", "-c")
    with on_terminal(live, "run", *words, "read x; test -t 1 && echo $x; exit 3") as terminal:
        terminal.type(b"typed\n")
        assert terminal.status() == 3
        assert terminal.read_until(b"typed\r\ntyped\r\n")
    assert live.run("logs", "box") == "typed\ntyped\n"
    with on_terminal(live, "run", "--runtime", "bwrap", "--name", "direct", "screen", "pwd") as terminal:
        terminal.status()
    assert "under bwrap on a terminal" in live.refuses("logs", "direct")


def test_program_has_a_terminal_where_we_have_none(live: Shop) -> None:
    done = live.call("run", "--rm", "-t", "small", "sh", "-c", "test -t 0 && test -t 1 && echo said; exit 3")
    assert (done.status, done.out, done.err) == (3, "said\n", "")
    assert live.names == []
    assert "is not in the image" in live.refuses("run", "--rm", "-t", "small", "nope", status=127)
    assert "-it needs a terminal" in live.refuses("run", "--rm", "-it", "small", "sh", status=125)
    assert "needs runc" in live.refuses("run", "--rm", "-t", "--runtime", "bwrap", "small", "sh", status=125)


def test_terminal_of_a_program_that_reads_none_of_it_makes_signals(live: Shop) -> None:
    live.run("create", "--name", "box", "-t", "small", "sh", "-c", f"trap 'exit 9' INT; echo ready; {ENDLESS}")
    with on_terminal(live, "start", "--attach", "box") as terminal:
        terminal.read_until(b"ready")
        terminal.type(b"\x03")
        assert terminal.status() == 9
