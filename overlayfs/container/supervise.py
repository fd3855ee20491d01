"""How is a container's program started, watched, and told of signals?

The program has the caller's terminal. What the terminal sends, it gets from the kernel as a member of the foreground
group; what anybody else sends to `overlayfs run`, it gets from here. Bubblewrap is the first process of a pid namespace
of its own, and so ignores what the terminal sends: else Ctrl-C would end it, and it would take the program along
without asking.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from overlayfs.container.namespaces import user_namespace_of
from overlayfs.container.process import CannotRunError
from overlayfs.container.runtime import Kind, Launch, bwrap_arguments, runc_specification, terminal_filter
from overlayfs.image.oci.errors import ImageError, InvalidError
from overlayfs.tree.syscalls import CLONE_NEWPID, unshare

FORWARDED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
_WATCHED: Final = frozenset({*FORWARDED, signal.SIGCHLD})
_OF_THE_GROUP: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH})
"""What a terminal sends to all of its foreground group; of a hang-up only the session's leader hears."""
_FROM_KERNEL: Final = 0x80  # SI_KERNEL, <asm-generic/siginfo.h>: from the terminal, not from a process
_RUNC_STATE: Final = "state"


def launch(kind: Kind, program: str, plan: Launch, bundle: Path) -> int:
    """Run to the end; the program's exit status (128 + N where signal N ended it).

    `bundle` is a directory for what the runtime needs. Raises ImageError where the runtime could not start it. For a
    process with one thread, which has no children in need of its pid namespace afterwards.
    """
    before: set[int] = set(signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED))
    try:
        if kind is Kind.BWRAP:
            return _run_bwrap(program, plan, before)
        return _run_runc(program, plan, bundle, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop(kind: Kind, program: str, bundle: Path, name: str) -> None:
    """End a program whose `launch` was killed; bubblewrap has seen to that by itself."""
    if kind is Kind.RUNC:
        words = [program, "--root", str(bundle / _RUNC_STATE), "delete", "--force", name]
        subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _watch(process: subprocess.Popen[bytes], tell: Callable[[int], None], *, is_in_group: bool = True) -> int:
    """Wait for the end of the runtime; its exit status. The signals are blocked.

    `is_in_group`: the terminal tells the runtime's side by itself.
    """
    while process.poll() is None:
        info = signal.sigwaitinfo(_WATCHED)
        is_told = is_in_group and info.si_code == _FROM_KERNEL and info.si_signo in _OF_THE_GROUP
        if info.si_signo != signal.SIGCHLD and not is_told:
            with suppress(ProcessLookupError):
                tell(info.si_signo)
    assert process.returncode is not None
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


# -- bubblewrap


def _run_bwrap(program: str, plan: Launch, mask: set[int]) -> int:
    user = plan.process.user
    status_fd, told_fd = os.pipe()
    passed = [told_fd]
    namespace_fd = filter_fd = None
    if user.uid != 0:
        namespace_fd = user_namespace_of(user.uid, user.gid)
        passed.append(namespace_fd)
    program_filter = terminal_filter()
    if program_filter is not None:
        filter_fd = _file_of("filter", program_filter)
        passed.append(filter_fd)
    # in a file: what is on a command line can be read by everybody, and is limited
    words = bwrap_arguments(plan, user_namespace_fd=namespace_fd, filter_fd=filter_fd)
    words_fd = _file_of("arguments", b"".join(os.fsencode(word) + b"\0" for word in words))
    passed.append(words_fd)
    unshare(CLONE_NEWPID)
    try:
        process = subprocess.Popen(
            [program, "--json-status-fd", str(told_fd), "--args", str(words_fd), "--", *plan.process.arguments],
            pass_fds=passed,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            user=user.uid if user.uid else None,
            group=user.gid if user.uid or user.gid else None,
            extra_groups=user.groups if user.uid or user.groups else None,
            preexec_fn=lambda: _set_mask(mask),  # noqa: PLW1509 - there is one thread
        )
    finally:
        for fd in passed:
            os.close(fd)
    with os.fdopen(status_fd, "rb") as reports:
        has_session = program_filter is None
        status = _watch(process, lambda number: _tell_sandboxed(process.pid, number), is_in_group=not has_session)
        _take_terminal_back()
        return _check_was_started(status, reports.read())


def _set_mask(mask: set[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _take_terminal_back() -> None:
    """Be in the terminal's foreground again, where a shell has put its own group, which ended with it."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with suppress(OSError):  # standard input is no terminal, or not our session's
            os.tcsetpgrp(0, os.getpgrp())
    finally:
        signal.signal(signal.SIGTTOU, before)


def _file_of(name: str, data: bytes) -> int:
    """A descriptor of an anonymous file with this content, at its start."""
    fd = os.memfd_create(name)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _tell_sandboxed(bwrap: int, number: int) -> None:
    """Send the program a signal; before it is executed, or when it cannot be found, bubblewrap ends for it."""
    for init in _children(bwrap):
        for program in _children(init):
            os.kill(program, number)
            return
    if number != signal.SIGWINCH:
        os.kill(bwrap, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _check_was_started(status: int, reports: bytes) -> int:
    """The status, if it is the program's: only then bubblewrap reports an exit-code (bwrap(1), --json-status-fd)."""
    members = [json.loads(line) for line in reports.splitlines() if line.strip()]
    if any("exit-code" in found for found in members) or status > 128:
        return status
    if any("child-pid" in found for found in members):
        raise CannotRunError("the program could not be executed: what it needs is not in the image, or bwrap says why")
    raise ImageError("bwrap could not make a container; it says why above")


# -- runc


def _run_runc(program: str, plan: Launch, bundle: Path, mask: set[int]) -> int:
    log, pid_file = bundle / "log.json", bundle / "pid"
    (bundle / "config.json").write_bytes(_specification(plan))
    words = [program, "--root", str(bundle / _RUNC_STATE), "--log", str(log), "--log-format", "json"]
    words += ["run", "--bundle", str(bundle), "--pid-file", str(pid_file), plan.name]
    process = subprocess.Popen(words, preexec_fn=lambda: _set_mask(mask))  # noqa: PLW1509 - there is one thread
    status = _watch(process, process.send_signal)  # it passes them on
    if not pid_file.exists():
        raise ImageError(f"runc could not start the container: {_last_message(log)}")
    return status


def _specification(plan: Launch) -> bytes:
    try:
        return json.dumps(runc_specification(plan), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidError("runc takes nothing but UTF-8 in commands, variables and paths: use bwrap") from None


def _last_message(log: Path) -> str:
    try:
        lines: Sequence[str] = log.read_text().splitlines()
        return str(json.loads(lines[-1])["msg"])
    except (OSError, ValueError, IndexError, KeyError):
        return "it does not say why"
