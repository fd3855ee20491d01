"""How is the health of a container checked, and what do the results say? As docker has it (moby, daemon/health.go).

A check is a command in the container that ends with 0. After so many failures in a row it is unhealthy; before its
first success it is starting, and failures in the start period do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..image.oci.documents import HealthConfig
from ..image.oci.durations import nanoseconds
from ..image.oci.errors import InvalidError

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"
_NOTHING: Final = HealthConfig()
_DEFAULT_NS: Final = 30_000_000_000
_RETRIES: Final = 3
_KEPT: Final = 5
# a second and a day: the shortest interval and timeout, and the longest of all durations, that an image can ask for
_LEAST_NS, _MOST_NS = 1_000_000_000, 86_400_000_000_000


class Probe(Struct, frozen=True):
    """One check: times in seconds, the exit status (-1 if it took too long), and the start of what it printed."""

    started: float
    ended: float
    exit_status: int
    output: str


class Health(Struct, frozen=True):
    """What the checks have found; `probes` are the last ones."""

    status: str = STARTING
    failures: int = 0
    probes: list[Probe] = []

    def after(self, probe: Probe, check: HealthConfig, started: float) -> Health:
        """With one more check of a container that `started` then."""
        probes = [*self.probes, probe][-_KEPT:]
        if probe.exit_status == 0:
            return Health(HEALTHY, 0, probes)
        if self.status == STARTING and probe.started < started + check.start_period / 1e9:
            return replace(self, probes=probes)
        failures = self.failures + 1
        return Health(UNHEALTHY if failures >= check.retries else self.status, failures, probes)


def given_health(command: str, durations: Mapping[str, str], retries: int, *, is_off: bool) -> HealthConfig | None:
    """The check that the options describe, None without any. Raises InvalidError."""
    if is_off and (command or retries or any(durations.values())):
        raise InvalidError("--no-healthcheck goes with no other --health option")
    if is_off:
        return HealthConfig(["NONE"])
    if retries < 0:
        raise InvalidError("--health-retries is no negative number")
    members = {name.replace("-", "_"): nanoseconds(f"health-{name}", text) for name, text in durations.items() if text}
    given = HealthConfig(["CMD-SHELL", command] if command else [], retries=retries, **members)
    return None if given == _NOTHING else given


def check_of(given: HealthConfig | None, of_image: HealthConfig | None) -> HealthConfig | None:
    """The check of a container: its options over those of the image, then docker's defaults; None if it has none."""
    given, of_image = given or _NOTHING, of_image or _NOTHING
    test = given.test or of_image.test
    if not test or test[0] == "NONE":
        return None
    return HealthConfig(
        test,
        _within(given.interval or of_image.interval or _DEFAULT_NS),
        _within(given.timeout or of_image.timeout or _DEFAULT_NS),
        _within(given.start_period or of_image.start_period, least_ns=0),
        given.retries or (of_image.retries if of_image.retries > 0 else _RETRIES),
    )


def _within(duration_ns: int, least_ns: int = _LEAST_NS) -> int:
    return min(max(duration_ns, least_ns), _MOST_NS)


def command_of_check(check: HealthConfig, shell: Sequence[str]) -> tuple[str, ...]:
    """The words to run in the container; `shell` is the image's. Raises InvalidError for an unknown kind of test."""
    kind, *words = check.test
    if kind == "CMD" and words:
        return tuple(words)
    if kind == "CMD-SHELL" and len(words) == 1:
        return (*(shell or ("/bin/sh", "-c")), words[0])
    raise InvalidError(f"the health check {' '.join(check.test)[:60]!r} is neither CMD nor CMD-SHELL")
