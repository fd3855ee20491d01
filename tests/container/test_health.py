"""What checks say about the health of a container."""

from __future__ import annotations

import pytest

from overlayfs.container.health import Health, Probe, check_of, command_of_check, given_health
from overlayfs.image.oci.documents import HealthConfig
from overlayfs.image.oci.errors import InvalidError

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
OF_IMAGE = HealthConfig(["CMD", "check"], 5 * SECOND, 6 * SECOND, 7 * SECOND, 2)


def after(statuses: list[int], check: HealthConfig, at: float = 100) -> tuple[str, int]:
    """What a container that started at 0 is after checks at this time."""
    health = Health()
    for status in statuses:
        health = health.after(Probe(at, at + 1, status, ""), check, 0)
    assert len(health.probes) == min(len(statuses), 5)
    return health.status, health.failures


def test_failures_in_a_row_make_it_unhealthy_and_one_success_healthy() -> None:
    assert after([], OF_IMAGE) == ("starting", 0)
    assert after([1], OF_IMAGE) == ("starting", 1)
    assert after([1, 1], OF_IMAGE) == ("unhealthy", 2)
    assert after([0, 1, 0, 1], OF_IMAGE) == ("healthy", 1)
    assert after([1, 1, 1, 0], OF_IMAGE) == ("healthy", 0)
    assert after([-1] * 7, OF_IMAGE) == ("unhealthy", 7)


def test_failures_of_the_start_period_do_not_count_before_the_first_success() -> None:
    assert after([1, 1, 1], OF_IMAGE, at=6) == ("starting", 0)
    assert after([0, 1, 1], OF_IMAGE, at=6) == ("unhealthy", 2)


def test_options_stand_over_the_image_and_defaults_below_it() -> None:
    given = given_health("mine", {"interval": "1m", "timeout": "", "start-period": ""}, 0, is_off=False)
    assert check_of(given, OF_IMAGE) == HealthConfig(["CMD-SHELL", "mine"], 60 * SECOND, 6 * SECOND, 7 * SECOND, 2)
    assert check_of(HealthConfig(["CMD", "a"]), None) == HealthConfig(["CMD", "a"], 30 * SECOND, 30 * SECOND, 0, 3)
    off = given_health("", {}, 0, is_off=True)
    assert check_of(off, OF_IMAGE) is check_of(None, None) is check_of(None, HealthConfig(["NONE"])) is None


def test_image_cannot_ask_for_a_check_without_pause() -> None:
    hostile = HealthConfig(["CMD", "a"], 1, -5, 0, -1)
    assert check_of(None, hostile) == HealthConfig(["CMD", "a"], SECOND, SECOND, 0, 3)
    endless = HealthConfig(["CMD", "a"], 1 << 80, start_period=10**400)
    assert check_of(None, endless) == HealthConfig(["CMD", "a"], DAY, 30 * SECOND, DAY, 3)


def test_command_is_run_by_the_shell_of_the_image() -> None:
    assert command_of_check(HealthConfig(["CMD", "a", "b"]), ()) == ("a", "b")
    assert command_of_check(HealthConfig(["CMD-SHELL", "a b"]), ()) == ("/bin/sh", "-c", "a b")
    assert command_of_check(HealthConfig(["CMD-SHELL", "a b"]), ["bash", "-ec"]) == ("bash", "-ec", "a b")
    for test in (["CMD"], ["CMD-SHELL"], ["UNKNOWN", "a"]):
        with pytest.raises(InvalidError, match="neither CMD"):
            command_of_check(HealthConfig(test), ())


def test_options_that_mean_nothing_are_refused() -> None:
    for durations, retries, is_off in (
        ({"interval": "5"}, 0, False),
        ({"interval": "9" * 400 + "s"}, 0, False),
        ({"start-period": f"{1 << 63}ns"}, 0, False),
        ({}, -1, False),
        ({"timeout": "1s"}, 0, True),
    ):
        with pytest.raises(InvalidError):
            given_health("", durations, retries, is_off=is_off)
