"""Health checks of containers: at intervals, on request, and what is shown of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from overlayfs.image.oci.documents import HealthConfig, RunConfig
from overlayfs.image.store.store import Store
from tests.cli.container.shop import Shop, await_that
from tests.container.small import image_of, small_image
from tests.prepared import Prepared

SECOND = 1_000_000_000
IS_WELL = "test -e /tmp/well || { echo no such file; exit 3; }"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path = tmp_path_factory.mktemp("shop") / "store"
    with Store.open(path) as store:
        small_image(store)
        checked = RunConfig(cmd=["sleep", "1000"], healthcheck=HealthConfig(["CMD-SHELL", IS_WELL], SECOND, retries=1))
        image_of(store, "checked", checked, {}, base=store.find("small"))
    with Prepared() as prepared:
        yield Shop(path, prepared)


def health_of(shop: Shop) -> Any:
    return json.loads(shop.run("inspect", "--format", "{{json .State.Health}}", "box"))


def test_image_is_checked_at_its_intervals(live: Shop) -> None:
    live.run("run", "-d", "--name", "box", "checked")
    assert "(starting)" in live.run("ps") or "(unhealthy)" in live.run("ps")
    await_that(lambda: live.run("ps", "-f", "health=unhealthy", "--format", "{{.Names}}") == "box\n")
    probe = health_of(live)["Log"][-1]
    assert (probe["ExitCode"], probe["Output"]) == (3, "no such file\n")
    live.run("exec", "box", "touch", "/tmp/well")
    await_that(lambda: health_of(live)["Status"] == "healthy")
    assert health_of(live)["FailingStreak"] == 0 and "(healthy)" in live.run("ps")


def test_check_on_request_ends_as_the_check_does(live: Shop) -> None:
    options = ("--health-cmd", IS_WELL, "--health-retries", "2", "--health-interval", "10h")
    live.run("run", "-d", "--name", "box", *options, "checked")
    assert live.run("healthcheck", "run", "box", status=1) == "starting\n"
    assert live.run("healthcheck", "run", "box", status=1) == "unhealthy\n"
    live.run("exec", "box", "touch", "/tmp/well")
    assert live.run("healthcheck", "run", "box") == ""
    assert [probe["ExitCode"] for probe in health_of(live)["Log"]] == [3, 3, 0]
    live.run("restart", "-t", "0", "box")
    assert health_of(live) == {"Status": "starting", "FailingStreak": 0, "Log": []}


def test_check_that_takes_too_long_is_killed(live: Shop) -> None:
    options = ("--health-cmd", "echo begun; sleep 1234", "--health-timeout", "1s", "--health-interval", "10h")
    live.run("run", "-d", "--name", "box", *options, "checked")
    live.run("healthcheck", "run", "box", status=1)
    (probe,) = health_of(live)["Log"]
    assert (probe["ExitCode"], "more than 1 s" in probe["Output"]) == (-1, True)
    assert "echo begun" not in live.run("top", "box", "-o", "pid,args")


def test_what_cannot_be_checked_is_told(live: Shop) -> None:
    live.run("create", "--name", "box", "--no-healthcheck", "checked")
    assert "has no health check" in live.refuses("healthcheck", "run", "box", status=125)
    live.run("rm", "box")
    live.run("create", "--name", "box", "checked")
    assert "is not running" in live.refuses("healthcheck", "run", "box", status=125)
    live.run("start", "box")
    live.run("pause", "box")
    assert "is paused" in live.refuses("healthcheck", "run", "box", status=125)
    assert "is no duration" in live.refuses("run", "--rm", "--health-timeout", "x", "small", status=125)
