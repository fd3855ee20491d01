"""What `overlayfs build` shows on a terminal."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from overlayfs.cli.container.screen import Screen
from tests.build.test_build import ON, Site
from tests.cli.container.terminals import on_terminal

_STYLE, _MOVE = re.compile(r"\x1b\[[0-9;]*m"), re.compile(r"(?:\x1b\[[0-?]*[@-~]|\r)+")


def lines(shown: bytes) -> list[str]:
    """What was ever shown, without controls of the terminal and the seconds."""
    text = _MOVE.sub("\n", _STYLE.sub("", shown.decode()))
    return [re.sub(r" +[0-9.]+s *$", "", line).rstrip() for line in text.splitlines() if line]


def built(site: Site, text: str, *words: str | Path, status: int = 0) -> list[str]:
    site.write(text)
    with on_terminal(site, "build", "-t", "made", *map(str, words), str(site.context)) as terminal:
        shown = b""
        try:
            while data := os.read(terminal.fd, 1 << 16):
                shown += data
        except OSError:  # EIO: nobody has the other end any more
            pass
        assert terminal.status() == status, shown
    return lines(shown)


def test_steps_are_displayed_on_a_terminal(site: Site) -> None:
    text = f"{ON}RUN echo loud > /dev/stderr; echo 1 > /x\nWORKDIR /w\n"
    first = built(site, text)
    assert {
        " => [stage-0] RUN echo loud > /dev/stderr; echo 1 > /x",
        " => [stage-0] WORKDIR /w",
        "[+] building (2 done)",
    } <= set(first)
    assert first[-1] == site.image().id
    again = built(site, text)
    assert len([line for line in again if line.startswith(" => CACHED [stage-0]")]) == 2
    assert not [line for line in again if line.startswith(" => [")]


def test_the_output_of_a_failed_step_is_shown_whole(site: Site) -> None:
    shown = built(
        site, f"{ON}RUN i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo $i; done; printf end; exit 3\n", status=1
    )
    begin = shown.index(
        " > [stage-0] RUN i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo $i; done; printf end; exit 3:"
    )
    assert shown[begin + 1 :] == [
        *map(str, range(1, 1001)),
        "end",
        "------",
        "overlayfs: Dockerfile:2: the command ended with status 3",
    ]
    assert any(line.startswith(" => ERROR [stage-0]") for line in shown)


def test_an_interrupted_build_is_shown_as_cancelled(site: Site) -> None:
    site.write(f"{ON}RUN echo begun; sleep 1000\n")
    with on_terminal(site, "build", str(site.context)) as terminal:
        terminal.read_until(b"# begun")
        terminal.type(b"\x03")
        assert b"CANCELED" in terminal.read_until(b"CANCELED")
        assert terminal.status() == 130
    assert os.listdir(site.store / "containers") == []


def test_a_terminal_can_be_asked_for_plain_lines(site: Site) -> None:
    assert built(site, f"{ON}RUN echo loud\n", "--progress", "plain")[:2] == ["[stage-0] RUN echo loud", "loud"]


def drawn(*written: bytes, height: int = 20) -> list[str]:
    """What the display has of a step that has written this, without its end."""
    console = Console(file=io.StringIO(), force_terminal=True, width=40, height=height)
    screen = Screen(console)
    screen.begin("1", "RUN \x1b[2J" + "x" * 100)
    for data in written:
        screen.write("1", data)
    return view_of(screen, console)


def view_of(screen: Screen, console: Console) -> list[str]:
    with console.capture() as captured:
        console.print(screen.view())
    return lines(captured.get().encode())


def test_output_of_a_step_is_drawn_without_controls() -> None:
    shown = drawn(b"old 1%\rnew 2%\r\n\x1b[31mred\x1b[0m\a \x1b]0;title\x07\xff\n", b"unfin", b"ished")
    assert shown[0].startswith("[+] building")
    assert shown[1].startswith(r" => RUN \x1b[2Jxxx")
    assert shown[1].endswith("…")
    assert shown[2:] == [" => => # new 2%", " => => # red\\x07 \N{REPLACEMENT CHARACTER}", " => => # unfinished"]


def test_the_last_lines_fit_into_the_terminal() -> None:
    data = b"".join(b"%d\n" % number for number in range(100))
    assert drawn(data)[2:] == [f" => => # {number}" for number in range(94, 100)]
    assert drawn(data, height=4)[2:] == [" => => # 99"]
    assert len(drawn(data, height=2)) == 2


def test_of_a_huge_output_the_end_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(Console(file=io.StringIO())) as screen:
        screen.begin("1", "RUN yes")
        screen.write("1", b"first\n" + (b"y" * 1023 + b"\n") * (17 << 10) + b"last\n")
        screen.end("1", has_failed=True)
    shown = capsys.readouterr().err
    assert shown.startswith("------\n > RUN yes:\n[the beginning is left out]\nyyy")
    assert shown.endswith("yyy\nlast\n------\n")
    assert len(shown) < 9 << 20


def test_downloads_of_a_step_are_drawn() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=20)
    screen = Screen(console)
    screen.begin("1", "pulling x")
    screen.work("1", 0, "layer", 2048)
    screen.work("1", 1, "gone", None)
    screen.advance("1", 0, 1024)
    screen.done("1", 1)
    assert view_of(screen, console)[2:] == [" => => # layer  1.0 KiB / 2.0 KiB"]
