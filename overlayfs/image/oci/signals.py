"""Which signal does a text name? As STOPSIGNAL of a Dockerfile, and `--stop-signal` and `kill` of containers."""

from __future__ import annotations

import signal

from .errors import InvalidError


def signal_of(text: str) -> int:
    """The number of a signal: `TERM`, `SIGTERM`, `15`, `RTMIN+3`."""
    name = text.upper().removeprefix("SIG")
    base, plus, offset = name.partition("+")
    if name.isascii() and name.isdigit():
        number = int(name)
    elif plus and base == "RTMIN" and offset.isascii() and offset.isdigit():
        number = signal.SIGRTMIN + int(offset)
    else:
        number = getattr(signal, f"SIG{name}", 0) if name.isalnum() else 0
    if not 1 <= number <= signal.SIGRTMAX:
        raise InvalidError(f"{text[:40]!r} is no signal: as in TERM, SIGHUP or 15")
    return int(number)
