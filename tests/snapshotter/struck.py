"""`python -m tests.snapshotter.struck NUMBER OPTION...`: the service, killed before one system call of its requests.

It prints the pid of the service and, after its end, the system calls of its requests; none is struck if NUMBER is -1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from overlayfs.snapshotter.program import main
from overlayfs.snapshotter.snapshots import Snapshots
from tests.crash.supervisor import Fault, Gate, Kill, supervise

REQUESTS = ("prepare", "view", "commit", "remove", "update", "cleanup")


def _armed(request: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    @wraps(request)
    def call(*arguments: Any) -> Any:
        gate.arm()
        try:
            return request(*arguments)
        finally:
            gate.disarm()

    return call


def _serve(gate: Gate) -> None:
    for name in REQUESTS:
        setattr(Snapshots, name, _armed(getattr(Snapshots, name), gate))
    print(os.getpid(), flush=True)
    main()


if __name__ == "__main__":
    number = int(sys.argv.pop(1))
    run = supervise(_serve, None if number < 0 else Fault(number, Kill()))
    print(json.dumps({"ending": run.ending.name, "struck": run.struck, "calls": run.calls}), flush=True)
