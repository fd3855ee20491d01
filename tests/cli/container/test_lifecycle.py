"""What commands make of a container that starts, ends or goes while they look at it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from overlayfs.cli.container import containers as commands
from overlayfs.cli.container import lifecycle
from overlayfs.cli.container.attaching import LogRequest, show_logs
from overlayfs.cli.container.mount_image import _hand_over, _Plan
from overlayfs.cli.container.running import LOG, STATUS
from overlayfs.cli.container.under_runc import running_under_runc
from overlayfs.cli.mounts.mount import Request
from overlayfs.container.containers import BUNDLE, Container, Containers
from overlayfs.container.health import Health
from overlayfs.container.live.attach import connect
from overlayfs.container.live.signals import Ends, once_free, send
from overlayfs.container.live.status import status_of
from overlayfs.image.oci.errors import InUseError, InvalidError
from overlayfs.image.store.lowers import lower_keys
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from overlayfs.image.store.uses import Process, Use
from tests.container.small import small_image


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


@pytest.fixture
def containers(store: Store) -> Containers:
    return Containers(store)


@pytest.fixture
def made(store: Store, containers: Containers) -> Container:
    """A container that this process uses."""
    image = small_image(store)
    unpack_image(store, image)
    return containers.create("box", image, lower_keys(store, image))


@pytest.fixture
def others() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes, which live until they are killed."""
    with ExitStack() as stack:
        words = [sys.executable, "-c", "input()"]
        found = [stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE)) for _ in range(2)]
        for process in found:
            stack.callback(process.kill)
        yield found


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_status_is_known_of_a_container_that_ends_after_its_record_was_read(
    store: Store,
    containers: Containers,
    made: Container,
    others: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = replace(made, process=Process.of(others[0].pid))
    end(others[0])
    containers.release(made, 2)
    find, reads = Containers.find, [read]

    def find_late(self: Containers, text: str) -> Container:
        return reads.pop() if reads else find(self, text)

    monkeypatch.setattr(Containers, "find", find_late)
    assert lifecycle.wait_for(store.path, "box") == 2


def test_status_is_known_of_a_run_that_begins_after_it_is_awaited(
    store: Store, containers: Containers, made: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> bool:
        (containers.directory(made) / STATUS).write_text("7")
        return True

    monkeypatch.setattr(Ends, "wait", run)
    assert lifecycle.wait_for(store.path, "box") == 7


def test_run_has_not_ended_when_the_command_that_started_it_has(
    containers: Containers, made: Container, others: list[subprocess.Popen[bytes]]
) -> None:
    command, keeper = others
    started = containers.change(made, process=Process.of(command.pid))
    ends = Ends(containers, [started])
    containers.change(started, process=Process.of(keeper.pid))
    end(command)
    assert not ends.wait(started, time.monotonic())
    end(keeper)
    assert ends.wait(started, None)


@pytest.mark.parametrize("until", [float("inf"), 1e12])
def test_container_is_awaited_however_long_that_may_take(
    containers: Containers, made: Container, others: list[subprocess.Popen[bytes]], until: float
) -> None:
    running = containers.change(made, process=Process.of(others[0].pid))
    ends = Ends(containers, [running])
    end(others[0])
    assert ends.wait(running, until)


def test_run_has_not_ended_when_the_command_that_started_it_has_before_it_is_awaited(
    store: Store,
    containers: Containers,
    made: Container,
    others: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command, keeper = others
    started = containers.change(made, process=Process.of(command.pid))
    containers.change(started, process=Process.of(keeper.pid))
    end(command)
    assert not Ends(containers, [started]).wait(started, time.monotonic())
    find, reads, awaited = Containers.find, [started], []

    def find_early(self: Containers, text: str) -> Container:
        return reads.pop() if reads else find(self, text)

    def wait(_ends: Ends, container: Container, _until: float | None) -> bool:
        awaited.append(container.process)
        return True

    monkeypatch.setattr(Containers, "find", find_early)
    monkeypatch.setattr(Ends, "wait", wait)
    lifecycle.wait_for(store.path, "box")
    assert awaited == [Process.of(keeper.pid)]


def test_next_run_is_not_awaited(
    containers: Containers, made: Container, others: list[subprocess.Popen[bytes]]
) -> None:
    keeper, next_keeper = others
    running = containers.change(made, process=Process.of(keeper.pid))
    ends = Ends(containers, [running])
    containers.change(running, process=Process.of(next_keeper.pid), started=running.started + 1)
    end(keeper)
    assert ends.wait(running, None)


def test_keeper_whose_command_was_killed_leaves_the_container_to_the_next_run(
    containers: Containers, made: Container, others: list[subprocess.Popen[bytes]]
) -> None:
    command, _ = others
    started = containers.change(made, process=Process.of(command.pid))
    end(command)
    claimed = containers.claim(started, None)
    with pytest.raises(InUseError, match="another process uses"):
        containers.change(started, is_detached=True)
    containers.release(started, 1)
    assert containers.again(made) == claimed


def test_container_is_free_after_a_mount_that_ended_at_once(
    store: Store, containers: Containers, made: Container, others: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    use = Use(made.process, made.layers, made.manifest, str(tmp_path)) if made.process else None
    assert use is not None
    plan = _Plan(Request((str(tmp_path),)), use, store.path, made, store.record_mount(use))
    end(others[0])
    _hand_over(store, plan, others[0].pid)
    assert not containers.again(made).is_in_use and not store.mounts()


def test_daemon_of_a_mounted_container_is_not_killed(
    containers: Containers, made: Container, others: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    mounted = containers.change(made, process=Process.of(others[0].pid), mountpoint=str(tmp_path))
    with pytest.raises(InvalidError, match="box is mounted"):
        send(mounted, tmp_path, signal.SIGKILL)
    assert others[0].poll() is None


def test_process_that_has_the_pid_of_one_in_another_pid_namespace_is_not_touched(
    store: Store,
    containers: Containers,
    made: Container,
    others: list[subprocess.Popen[bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    elsewhere = replace(Process.of(others[0].pid), pid_namespace=1)
    containers.change(made, process=elsewhere)
    tried: list[Callable[[], bool]] = [
        lambda: lifecycle.kill(store.path, ["box"], "KILL"),
        lambda: lifecycle.wait(store.path, ["box"]),
        lambda: commands.remove(store.path, ["box"], force=True, with_volumes=False),
    ]
    for command in tried:
        assert not command()
        assert "in another pid namespace" in capsys.readouterr().err
    with pytest.raises(InvalidError, match="in another pid namespace"):
        running_under_runc(store.path, "box")
    with pytest.raises(InvalidError, match="in another pid namespace"):
        lifecycle.stop(store.path, ["box"], 0)
    assert others[0].poll() is None and containers.again(made).process == elsewhere


def test_process_of_another_pid_namespace_with_our_pid_is_another_one(containers: Containers, made: Container) -> None:
    containers.change(made, process=replace(Process.of(os.getpid()), pid_namespace=1))
    with pytest.raises(InUseError, match="box is running"):
        containers.claim(made, None)


def test_container_whose_program_is_not_there_yet_is_said_to_start_or_end(
    store: Store, containers: Containers, made: Container
) -> None:
    containers.change(made, is_detached=True)
    bundle = containers.directory(made) / BUNDLE
    with pytest.raises(InvalidError, match="box is just starting or ending"):
        running_under_runc(store.path, "box")
    with pytest.raises(InvalidError, match="starting or ending"):
        connect(bundle)
    bundle.mkdir()
    with pytest.raises(InvalidError, match="starting or ending"):
        connect(bundle)


def test_copy_leaves_what_is_known_of_the_last_run(containers: Containers, made: Container) -> None:
    checked = containers.change(made, health=Health())
    containers.release(checked, 3)
    visited = containers.visit(checked)
    assert (visited.is_visited, status_of(visited, Path("bundle")), visited.exit_status) == (True, "exited", 3)
    assert visited.health == checked.health


def test_container_that_was_mounted_is_not_said_to_be_so_during_a_copy(
    containers: Containers, made: Container, others: list[subprocess.Popen[bytes]]
) -> None:
    mounted = containers.change(made, process=Process.of(others[0].pid), mountpoint="/place")
    end(others[0])
    visited = containers.visit(mounted)
    assert (visited.is_visited, status_of(visited, Path("bundle"))) == (True, "exited")


def test_container_has_a_mountpoint_while_it_is_mounted(
    store: Store,
    containers: Containers,
    made: Container,
    others: list[subprocess.Popen[bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    containers.change(made, process=Process.of(others[0].pid), mountpoint="/place")
    for expected in ("/place", None):
        commands.show_containers(store.path, everything=True, quiet=False, as_json=True)
        assert json.loads(capsys.readouterr().out)[0]["mountpoint"] == expected
        end(others[0])


def test_container_is_not_reset_during_a_copy(
    store: Store,
    containers: Containers,
    made: Container,
    others: list[subprocess.Popen[bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    containers.change(made, process=Process.of(others[0].pid), started=0.0)
    assert not commands.reset(store.path, ["box"])
    assert "box is being copied" in capsys.readouterr().err


def test_killed_run_is_over_when_a_copy_comes(
    containers: Containers, made: Container, others: list[subprocess.Popen[bytes]]
) -> None:
    killed = containers.change(made, process=Process.of(others[0].pid))
    end(others[0])
    assert containers.visit(killed).is_visited


def test_stop_leaves_a_copy_alone(
    store: Store, containers: Containers, made: Container, others: list[subprocess.Popen[bytes]]
) -> None:
    containers.change(made, process=Process.of(others[0].pid), started=0.0)
    assert lifecycle.stop(store.path, ["box"], None)
    assert others[0].poll() is None


def test_container_is_free_after_a_copy(
    containers: Containers,
    made: Container,
    others: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visited = containers.change(made, process=Process.of(others[0].pid), started=0.0)
    wait, copies = Ends.wait, list(others)

    def end_and_wait(self: Ends, container: Container, until: float | None) -> bool:
        end(copies.pop(0))
        if copies:  # which was faster than we
            containers.change(containers.again(made), process=Process.of(copies[0].pid))
            return True
        return wait(self, container, until)

    monkeypatch.setattr(Ends, "wait", end_and_wait)
    claimed = once_free(containers, visited, lambda: containers.claim(visited, None))
    assert copies == [] and claimed.process == Process.of(os.getpid())


def test_copy_after_a_run_is_not_awaited_as_the_run_is(
    containers: Containers, made: Container, others: list[subprocess.Popen[bytes]]
) -> None:
    running = containers.change(made, process=Process.of(others[0].pid))
    ends = Ends(containers, [running])
    end(others[0])
    assert containers.visit(running).is_visited
    assert ends.wait(running, time.monotonic())


def test_log_is_not_followed_during_a_copy(store: Store, containers: Containers, made: Container) -> None:
    containers.release(made, 0)
    (containers.directory(made) / LOG).touch()
    assert containers.visit(made).is_visited
    show_logs(store.path, LogRequest("box", follows=True))


def test_container_that_runs_is_started_already_and_one_that_is_mounted_is_not(
    store: Store, containers: Containers, made: Container, others: list[subprocess.Popen[bytes]]
) -> None:
    running = containers.change(made, process=Process.of(others[0].pid))
    assert lifecycle.start(store.path, ["box"], attach=False, interactive=False) == 0
    containers.change(running, mountpoint="/place")
    assert lifecycle.start(store.path, ["box"], attach=False, interactive=False) == 1


def test_container_that_is_being_started_is_removed_by_force(
    store: Store,
    containers: Containers,
    made: Container,
    others: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command, keeper = others
    started = containers.change(made, process=Process.of(command.pid))
    end_use = commands._end_use

    def end_use_and_begin(container: Container, directory: Path) -> None:
        if container == started:
            containers.change(started, process=Process.of(keeper.pid))
        end_use(container, directory)

    monkeypatch.setattr(commands, "_end_use", end_use_and_begin)
    assert commands.remove(store.path, ["box"], force=True, with_volumes=False)
    assert containers.listed() == []


def test_container_that_somebody_else_has_removed_meanwhile_is_removed_by_force(
    store: Store, containers: Containers, made: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    containers.release(made)
    take_away = Containers.take_away

    def take_away_twice(self: Containers, container: Container, first: None = None) -> Path:
        take_away(self, container, first)
        return take_away(self, container, first)

    monkeypatch.setattr(Containers, "take_away", take_away_twice)
    assert commands.remove(store.path, ["box"], force=True, with_volumes=False)


def test_container_that_is_mounted_nowhere_any_more_is_removed_by_force(
    store: Store, containers: Containers, made: Container, others: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    daemon, _ = others
    containers.change(made, process=Process.of(daemon.pid), mountpoint=str(tmp_path))
    assert commands.remove(store.path, ["box"], force=True, with_volumes=False)
    assert containers.listed() == [] and daemon.wait() < 0
