"""Where a process logs, and that nothing that goes wrong there reaches what logs."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs import _log
from overlayfs._log import Log
from overlayfs.fuse import looping

log = Log("a.module")


@pytest.fixture(autouse=True)
def target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_log, "_target", _log._Target())


@pytest.fixture
def system_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(_log, "_SYSTEM_LOG", str(tmp_path / "log"))
    yield tmp_path / "log"
    connected = getattr(_log._target.write, "__self__", None)
    if isinstance(connected, _log._SystemLog):
        connected._connection.close()


def listen(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(path))
    made.setblocking(False)
    return made


def fail() -> None:
    raise ValueError("first")


def test_file_gets_what_is_of_its_level_or_above(tmp_path: Path) -> None:
    _log.to_file(str(tmp_path / "log"), _log.INFO)
    log.debug("too much")
    log.info("100%")
    log.warning("%s of %d", "one", 2)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first.endswith(f" overlayfs[{os.getpid()}] INFO a.module: 100%")
    assert second.endswith(" WARNING a.module: one of 2")


def test_exception_is_shown_with_its_places_and_causes(tmp_path: Path) -> None:
    _log.to_file(str(tmp_path / "log"), _log.INFO)
    try:
        try:
            fail()
        except ValueError as error:
            raise ExceptionGroup("several", [KeyError("within")]) from error
    except ExceptionGroup:
        log.exception("it ends")
    text = (tmp_path / "log").read_text()
    assert "ERROR a.module: it ends\n" in text
    assert ", in fail\nValueError: first\n" in text
    assert text.index("ValueError: first") < text.index("ExceptionGroup: several") < text.index("KeyError: 'within'")


def test_name_that_is_no_text_is_escaped(tmp_path: Path) -> None:
    _log.to_file(str(tmp_path / "log"), _log.INFO)
    log.info("%s", os.fsdecode(b"\xff"))
    assert (tmp_path / "log").read_bytes().endswith(b": \\udcff\n")


def test_system_log_gets_priority_and_text(system_log: Path) -> None:
    with listen(system_log) as server:
        _log.to_system_log(_log.INFO)
        log.error("broken")
        message = server.recv(4096)
    assert message.startswith(b"<11>")
    assert message.endswith(b" ERROR a.module: broken\0")


def test_system_log_that_was_restarted_is_found_again(system_log: Path) -> None:
    with listen(system_log):
        _log.to_system_log(_log.INFO)
    log.info("nobody listens")
    system_log.unlink()
    with listen(system_log) as server:
        log.info("again")
        assert server.recv(4096).endswith(b"again\0")


def test_system_log_that_is_absent_is_an_error_of_its_set_up(system_log: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _log.to_system_log(_log.INFO)


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_text_that_cannot_be_made_raises_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log.warning("%d", "no number")
    log.warning("%s", Unprintable())
    log.warning("still here")
    assert capsys.readouterr().err.splitlines()[-1].endswith("WARNING a.module: still here")


@pytest.mark.parametrize(("level", "shown"), [(logging.CRITICAL, "ERROR"), (logging.INFO + 5, "INFO")])
def test_what_libraries_log_goes_the_same_way(level: int, shown: str, tmp_path: Path) -> None:
    _log.to_file(str(tmp_path / "log"), _log.INFO)
    looping._Forwarding().handle(logging.LogRecord("trio", level, __file__, 1, "%d tasks", (3,), None))
    assert (tmp_path / "log").read_text().endswith(f" {shown} trio: 3 tasks\n")
