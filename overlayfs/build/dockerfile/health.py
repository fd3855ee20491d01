"""What does HEALTHCHECK say? The member `Healthcheck` of a configuration, which is docker's (moby, HealthConfig)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from ...image.oci.durations import nanoseconds
from ...image.oci.errors import InvalidError
from ...image.oci.instructions import json_list
from .parser import Instruction

_COUNT: Final = re.compile(r"[0-9]{1,9}")
_MEMBERS: Final[Mapping[str, str]] = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}


def healthcheck(instruction: Instruction) -> dict[str, object]:
    """`CMD …` in JSON or shell form, or `NONE`. Raises InvalidError."""
    kind, _, rest = instruction.text.partition(" ")
    if kind.upper() == "NONE":
        if rest.strip() or instruction.flags:
            raise InvalidError("HEALTHCHECK NONE takes nothing else")
        return {"Test": ["NONE"]}
    if kind.upper() != "CMD" or not rest.strip():
        raise InvalidError("HEALTHCHECK is followed by CMD and a command, or by NONE")
    checked: dict[str, object] = {"Test": _test(rest.strip())}
    for flag, member in _MEMBERS.items():
        if (text := instruction.flag(flag)) is not None:
            checked[member] = nanoseconds(flag, text)
    if (text := instruction.flag("retries")) is not None:
        if not _COUNT.fullmatch(text):
            raise InvalidError(f"--retries={text[:40]} is no number of at most 9 digits")
        checked["Retries"] = int(text)
    return checked


def _test(text: str) -> list[str]:
    """A command in shell form is run by the SHELL of the image at the time of the check."""
    listed = json_list(text)
    return ["CMD-SHELL", text] if listed is None else ["CMD", *listed]
