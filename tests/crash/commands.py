"""A command and all that comes from it, until the last process has ended: `python -m tests.crash.commands`.

Each request, a line of JSON on standard input, is answered by one. The first runs a command of the program under a
filter as in `supervisor`, which its descendants inherit, those in the container included. Before one call of one of
those that run our code that process is killed, or all of them. The next request asks whether all descendants have
ended: the kernel reports the end of the last (seccomp_unotify(2), POLLHUP).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from tests.crash.supervisor import (
    NOTIF_CONTINUE,
    NOTIF_RECV,
    NOTIF_SEND,
    NOTIFICATION,
    RESPONSE,
    describe,
    install_filter,
)
from tests.crash.syscall_table import PROCESS_CALLS, SYSCALLS
from tests.loaded import call, load

PATIENCE_S: Final = 20
_LOOK_AGAIN_MS: Final = 20
_CGROUP: Final = re.compile(r"/sys/fs/cgroup/.*/overlayfs-[0-9a-f]{64}$", re.ASCII)
_WATCHED: Final = {n for n, found in SYSCALLS.items() if found.mutates or found.name == "openat"} | PROCESS_CALLS.keys()


class Followed:
    """One command and its descendants.

    The program in the container waits for somebody to open the FIFO `gate`, which is done unless somebody was killed.
    """

    def __init__(self, main: Callable[[], int], request: dict[str, Any]) -> None:
        self._point, self._kills_all, self._gate = request["point"], request["kills_all"], request["gate"]
        self._ours = os.readlink("/proc/self/exe")
        self._members: dict[int, int] = {}  # our processes so far, and pidfds of them
        self._seen: set[int] = set()  # all processes that made a watched call
        self.calls: list[str] = []
        self.cgroups: set[str] = set()
        self.struck = ""
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if not self._pid:
            ours.close()
            listener = install_filter(_WATCHED)
            socket.send_fds(theirs, [b"F"], [listener])
            os.close(listener)
            theirs.close()
            call(main, request["words"], request["streams"], "/", dict(os.environ), 0o022)
        theirs.close()
        with ours:
            _, (self._listener,), _, _ = socket.recv_fds(ours, 1, 1)
        self._news, self._is_given_up = threading.Event(), False
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def wait(self) -> None:
        """Until all have ended, or some were killed."""
        self._news.wait(PATIENCE_S)

    def settle(self) -> list[str] | None:
        """The processes that have not ended, of which ours are killed; None if all have ended."""
        self._thread.join(PATIENCE_S)
        left = [text for pid in sorted(self._seen) if (text := _look_at(pid))] if self._thread.is_alive() else None
        self._is_given_up = True
        self._kill(self._members)
        self._thread.join()
        os.waitpid(self._pid, 0)
        for fd in (self._listener, *self._members.values()):
            os.close(fd)
        return left

    def _follow(self) -> None:
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        while not self._is_given_up:
            self._open_gate()
            for _, event in poller.poll(_LOOK_AGAIN_MS):
                if event & select.POLLIN:
                    self._answer()
                elif event & select.POLLHUP:
                    self._is_given_up = True
        self._news.set()

    def _kill(self, pids: Iterable[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._members[pid], signal.SIGKILL)

    def _open_gate(self) -> None:
        if not self.struck:
            with suppress(OSError):
                os.close(os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK))  # which nobody waits at, mostly

    def _answer(self) -> None:
        buffer = bytearray(NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, NOTIF_RECV, buffer)
        except (FileNotFoundError, InterruptedError):
            return  # the caller died before we took its call
        ident, tid, _, number, _, _, *arguments = NOTIFICATION.unpack(buffer)
        found = describe(tid, number, arguments)
        self._seen.add(tid)
        if found.name == "mkdirat" and _CGROUP.match(found.text):
            self.cgroups.add(found.text)
        is_known = found.name == "mkdir" and os.path.isdir(found.text)  # each opening of a store asks for all it needs
        if found.mutates and not is_known and self._is_ours(tid):
            self.calls.append(f"{found.name} {found.text} of process {list(self._members).index(tid)}")
            if len(self.calls) - 1 == self._point:
                self._strike(tid)
                return
        with suppress(FileNotFoundError):
            fcntl.ioctl(self._listener, NOTIF_SEND, RESPONSE.pack(ident, 0, 0, NOTIF_CONTINUE))

    def _is_ours(self, pid: int) -> bool:
        """Whether it runs our code, whose processes have one thread."""
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/exe") == self._ours:
                if pid not in self._members:
                    self._members[pid] = os.pidfd_open(pid)
                return True
        return False

    def _strike(self, pid: int) -> None:
        self.struck = self.calls[-1]
        self._kill(self._members if self._kills_all else [pid])
        self._news.set()


def _look_at(pid: int) -> str:
    """What a process is and what it waits for; empty if it has ended."""
    with suppress(OSError):
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as words:
            command = words.read().replace("\0", " ")
        waits = []
        for name in ("wchan", "syscall"):
            with open(f"/proc/{pid}/{name}", encoding="ascii") as file:
                waits.append(file.read().strip())
        return f"{pid} {command}: {', '.join(waits)}" if command else ""
    return ""


def main() -> None:
    program = load()["overlayfs"]
    followed: Followed | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if followed is None:
            followed = Followed(program, request)
            followed.wait()
            answer: dict[str, object] = {"struck": followed.struck, "calls": followed.calls}
        else:
            answer = {"left": followed.settle(), "calls": followed.calls, "cgroups": sorted(followed.cgroups)}
            followed = None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
