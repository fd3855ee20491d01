"""The limits of a container, reached in a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.store.store import Store
from tests.cli.container.shop import Shop, await_that
from tests.container.small import small_image
from tests.prepared import Prepared

FORKS_WITHOUT_END = "while :; do sleep 1000 & done"
GROWS_WITHOUT_END = "text=0123456789abcdef; while :; do text=$text$text; done"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path = tmp_path_factory.mktemp("limits") / "store"
    with Store.open(path) as store:
        small_image(store)
    with Prepared() as prepared:
        yield Shop(path, prepared)


def test_fork_bomb_is_held(shop: Shop) -> None:
    done = shop.call("run", "--rm", "--pids-limit", "20", "small", "sh", "-c", FORKS_WITHOUT_END)
    assert (done.status, "Cannot fork" in done.err) == (2, True)
    assert shop.names == []


def test_limit_of_minus_one_is_none(shop: Shop) -> None:
    assert shop.sh("echo here", "--pids-limit", "-1") == "here\n"
    assert "no negative numbers" in shop.refuses("run", "--rm", "--pids-limit", "-2", "small", status=125)


def test_stats_takes_containers(shop: Shop) -> None:
    shop.run("run", "-d", "--name", "box", "small", "sleep", "1000")
    for words in (("stats", "box"), ("container", "stats", "--no-stream")):
        assert [line.split()[0] for line in shop.run(*words).splitlines()] == ["NAME", "box"]
    shop.run("rm", "-f", "box")
    assert "no overlayfs is mounted here" in shop.refuses("stats", "box")


def test_privileged_container_has_all_that_this_process_may_have(shop: Shop) -> None:
    """Some machines withhold a capability from root; nobody can give it to a container."""
    done = shop.call("run", "--rm", "--privileged", "small", "cat", "/proc/self/status")
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    assert (done.status, own in done.out.splitlines()) == (0, True)


def test_program_that_needs_too_much_memory_is_killed(shop: Shop) -> None:
    done = shop.call("run", "--rm", "--memory", "64m", "small", "sh", "-c", f"sh -c '{GROWS_WITHOUT_END}'; echo $?")
    assert (done.status, done.out) == (0, "137\n")
    assert shop.names == []


def test_processor_time_is_limited(shop: Shop) -> None:
    shop.run("run", "-d", "--name", "box", "--cpus", "0.5", "small", "sleep", "1000")
    state = json.loads(shop.run("inspect", "--format", "{{json .State}}", "box"))
    groups = [line.split(":", 2)[1:] for line in Path(f"/proc/{state['Pid']}/cgroup").read_text().splitlines()]
    first = next((path for controllers, path in groups if "cpu" in controllers.split(",")), None)
    if first is not None:
        directory = Path(f"/sys/fs/cgroup/cpu{first}")
        found = [(directory / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
    else:
        found = Path(f"/sys/fs/cgroup{dict(groups)['']}/cpu.max").read_text().split()
    assert list(map(int, found)) == [50_000, 100_000]
    shop.run("rm", "-f", "box")


def test_init_reaps_children_and_passes_signals_on(shop: Shop) -> None:
    orphan = "sh -c 'sleep 0.01 & echo $!'"
    script = f"trap 'exit 5' TERM; {orphan}; cat /proc/1/cmdline; echo; while :; do sleep 0.05; done"
    shop.run("run", "-d", "--name", "box", "--init", "small", "sh", "-c", script)
    await_that(lambda: shop.run("logs", "box").count("\n") == 2)
    pid, first = shop.run("logs", "box").splitlines()
    assert first.startswith("/dev/init\0--\0")
    await_that(lambda: shop.run("exec", "box", "sh", "-c", f"test -e /proc/{pid} || echo gone") == "gone\n")
    shop.run("stop", "box")
    assert shop.run("wait", "box") == "5\n"
    shop.run("rm", "box")
