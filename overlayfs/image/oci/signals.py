"""Which signal does a text name? As STOPSIGNAL of a Dockerfile, and `--stop-signal` and `kill` of containers."""

from __future__ import annotations

import re
import signal
from typing import Final

from .errors import InvalidError

_REAL_TIME: Final = re.compile(r"RTMIN\+([0-9]{1,2})|RTMAX-([12]?[0-9]|30)")


def signal_of(text: str) -> int:
    """The number of a signal: `TERM`, `SIGTERM`, `15`, `RTMIN+3`, `RTMAX-1`."""
    name = text.upper().removeprefix("SIG")
    if name.isascii() and name.isdigit():
        number = int(name)
    elif found := _REAL_TIME.fullmatch(name):
        number = signal.SIGRTMIN + int(found[1]) if found[1] else signal.SIGRTMAX - int(found[2])
    else:
        number = getattr(signal, f"SIG{name}", 0) if name.isalnum() else 0
    if not 1 <= number <= signal.SIGRTMAX:
        raise InvalidError(f"{text[:40]!r} is no signal: as in TERM, SIGHUP or 15")
    return int(number)
