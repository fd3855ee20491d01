"""The locks of an upper, and what is said by and to whoever has them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs.overlay import claim as claims
from overlayfs.overlay.claim import LET_GO, SOCKET, Claim, Standing, claim
from overlayfs.overlay.layer import UPPER_INDEX, Layer, open_layer
from overlayfs.overlay.options import MountError
from overlayfs.tree.mount_table import mount_entries

NOWHERE = Standing(b"0:0", None)


@contextlib.contextmanager
def directories(base: Path) -> Iterator[tuple[Layer, Layer]]:
    with contextlib.ExitStack() as stack:
        layers = []
        for name in ("upper", "work"):
            (base / name).mkdir(exist_ok=True)
            layers.append(open_layer(UPPER_INDEX, os.fsencode(base / name)))
            stack.callback(os.close, layers[-1].root_fd)
        yield layers[0], layers[1]


@contextlib.contextmanager
def held(base: Path, answers: Callable[[Claim, socket.socket], object]) -> Iterator[None]:
    """The directories are claimed by one who answers the first to come in this way, and then releases them."""

    def serve(mine: Claim) -> None:
        assert mine.listener is not None
        connection = mine.accept()
        with connection:
            answers(mine, connection)

    with directories(base) as layers:
        mine = claim(*layers)
        mine.listen()
        thread = threading.Thread(target=serve, args=(mine,))
        thread.start()
        try:
            yield
        finally:
            thread.join()
            mine.release()


def let_go(mine: Claim, connection: socket.socket) -> None:
    connection.sendall(NOWHERE.to_line())
    assert connection.recv(100) == LET_GO
    mine.release()


def test_holder_whose_mount_stands_nowhere_lets_go(tmp_path: Path) -> None:
    with held(tmp_path, let_go), directories(tmp_path) as layers:
        claim(*layers).release()


def test_holder_that_ends_is_waited_for(tmp_path: Path) -> None:
    with held(tmp_path, lambda mine, _: mine.release()), directories(tmp_path) as layers:
        claim(*layers).release()


def say(line: bytes) -> Callable[[Claim, socket.socket], object]:
    def answer(_: Claim, connection: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):  # nobody reads on
            connection.sendall(line)
            assert connection.recv(100) == b""

    return answer


REFUSALS = {
    "stands elsewhere": (
        Standing(b"0:0", b"/a b/mount").to_line(),
        r"the mount at /a b/mount in the mount namespace of process \d+",
    ),
    "not JSON": (b"go away\n", "of another version"),
    "another document": (b'["device"]\n', "of another version"),
    "device is a number": (b'{"device": 5, "mountpoint": null}\n', "of another version"),
    "endless line": (b"x" * 100_000, "of another version"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_holder_keeps_the_directories(case: str, tmp_path: Path) -> None:
    line, reason = REFUSALS[case]
    said = rf"^upperdir: {re.escape(str(tmp_path))}/upper is in use by .*{reason}"
    with held(tmp_path, say(line)), directories(tmp_path) as layers, pytest.raises(MountError, match=said):
        claim(*layers)


def test_holder_on_whose_mount_we_look_is_refused_by_the_kernel_s_word(tmp_path: Path) -> None:
    """Whatever it says of itself: the device of its mount is in our own table."""
    answer = say(Standing(mount_entries()[0].device, None).to_line())
    said = "is in use by the mount at /"
    with held(tmp_path, answer), directories(tmp_path) as layers, pytest.raises(MountError, match=said):
        claim(*layers)


def test_holder_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_ANSWER_WITHIN_S", 0.05)
    answer, said = say(b""), "which does not answer"
    with held(tmp_path, answer), directories(tmp_path) as layers, pytest.raises(MountError, match=said):
        claim(*layers)


def test_holder_that_changes_its_mind_says_why(tmp_path: Path) -> None:
    def keep(_: Claim, connection: socket.socket) -> None:
        connection.sendall(NOWHERE.to_line())
        assert connection.recv(100) == LET_GO
        connection.sendall(b"it is mounted again\n")

    with held(tmp_path, keep), directories(tmp_path) as layers, pytest.raises(MountError, match="mounted again"):
        claim(*layers)


def leave_socket(work: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(work / os.fsdecode(SOCKET)))


LEFTOVERS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda work: None,
    "socket": leave_socket,
    "file": lambda work: (work / os.fsdecode(SOCKET)).touch(),
    "symlink": lambda work: (work / os.fsdecode(SOCKET)).symlink_to("nowhere"),
    "fifo": lambda work: os.mkfifo(work / os.fsdecode(SOCKET)),
    "directory": lambda work: (work / os.fsdecode(SOCKET)).mkdir(),
}


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_nobody_to_ask_is_refused(leftover: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_PATIENCE_S", 0)
    with directories(tmp_path) as layers, directories(tmp_path) as others:
        LEFTOVERS[leftover](tmp_path / "work")
        fcntl.flock(others[1].root_fd, fcntl.LOCK_SH)
        with pytest.raises(MountError, match=r"^workdir: .*/work is in use by another mount$"):
            claim(*layers)
        fcntl.flock(others[0].root_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not left locked by the one that was refused


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_leftover_in_the_socket_s_place_stops_nobody(leftover: str, tmp_path: Path) -> None:
    with directories(tmp_path) as layers:
        LEFTOVERS[leftover](tmp_path / "work")
        mine = claim(*layers)
        mine.listen()
        assert (mine.listener is None) == (leftover == "directory")
        mine.release()


def test_workdir_with_a_long_path_has_a_socket(tmp_path: Path) -> None:
    base = tmp_path.joinpath(*["d" * 200] * 5)
    base.mkdir(parents=True)
    with held(base, let_go), directories(base) as layers:
        claim(*layers).release()
    assert os.listdir(base / "work") == []


def test_socket_can_be_done_without(tmp_path: Path) -> None:
    """Where descriptors are scarce it is the first to go; the locks stay."""
    closed: list[object] = []
    with directories(tmp_path) as layers, directories(tmp_path) as others:
        mine = claim(*layers)
        mine.listen()
        listener = mine.listener
        mine.before_closing = closed.append
        assert (mine.stop_listening(), mine.stop_listening(), closed) == (True, False, [listener])
        assert os.listdir(tmp_path / "work") == []
        with pytest.raises(BlockingIOError):
            fcntl.flock(others[0].root_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine.release()


def test_holder_of_another_user_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may say that it lets go, and then nothing for ever."""
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    monkeypatch.setattr(claims, "_TRUSTED_UIDS", ())
    with (
        held(tmp_path, lambda _mine, connection: connection.recv(1)),
        directories(tmp_path) as (upper, work),
        pytest.raises(MountError, match=r"in use by process \d+ of the user \d+"),
    ):
        claim(upper, work)
