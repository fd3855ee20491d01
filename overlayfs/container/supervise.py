"""How is the program of a container started, supervised, and sent signals?

The program has the caller's terminal. Signals from the terminal reach it from the kernel, as it is in the foreground
process group; signals sent to `overlayfs run` by others are forwarded here. A runtime ends with the process that
started it, also if that is killed. Bubblewrap is the first process of its pid namespace and ignores signals from the
terminal; otherwise Ctrl-C would end it, and it would kill the program. For a process with one thread.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from overlayfs.container.namespaces import user_namespace_of
from overlayfs.container.process import CannotRunError
from overlayfs.container.runtime import Kind, Launch, bwrap_arguments, runc_specification, terminal_filter
from overlayfs.image.oci.errors import ImageError, InvalidError
from overlayfs.tree.syscalls import CLONE_NEWPID, die_with_parent, unshare

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
"""The signals that a terminal sends to its foreground group; SIGHUP goes to the session leader only."""
_FROM_KERNEL: Final = 0x80  # SI_KERNEL, <asm-generic/siginfo.h>: from the terminal, not from a process
PID: Final = "pid"
"""The file of a bundle that names the program of runc."""
RUNC_STATE: Final = "state"
"""The directory of a bundle in which runc keeps the state of its container."""


def launch(kind: Kind, program: str, plan: Launch, bundle: Path) -> int:
    """Run the program until it ends; its exit status (128 + N if signal N ended it).

    `bundle` is a directory for files of the runtime. Raises ImageError if the runtime cannot start the program. The
    process must have one thread and no need of its pid namespace for later children.
    """
    before: set[int] = set(signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED))
    try:
        if kind is Kind.BWRAP:
            return _run_bwrap(program, plan, before)
        return _run_runc(program, plan, bundle, before)
    finally:
        while signal.sigtimedwait(_WATCHED, 0) is not None:
            pass  # signals for a program that had just ended: ours to forget
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop(kind: Kind, program: str, bundle: Path, name: str) -> None:
    """End a program whose `launch` was killed; bubblewrap does that by itself."""
    if kind is Kind.RUNC:
        stop_runc(program, bundle, name)


def stop_runc(program: str, bundle: Path, name: str, *, before: Sequence[str] = ()) -> None:
    """End a container of runc, if it is there, and remove its state and its cgroup; runc is called by `before`."""
    from .cgroups import remove_cgroups  # a program starts without it

    words = [*before, program, "--root", str(bundle / RUNC_STATE), "delete", "--force", name]
    subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    remove_cgroups(bundle / "config.json")


def start_with_us(words: Sequence[str], mask: Iterable[int] = (), **more: Any) -> subprocess.Popen[bytes]:
    """Start a program with this signal mask. The kernel kills it when this process, which has one thread, has ended;
    `more` is for Popen."""
    parent_fd = os.pidfd_open(os.getpid())

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        die_with_parent()
        ended = select.poll()
        ended.register(parent_fd, select.POLLIN)
        if ended.poll(0):  # before that
            os._exit(1)

    try:
        return subprocess.Popen(words, preexec_fn=prepare, **more)  # noqa: PLW1509 - there is one thread
    finally:
        os.close(parent_fd)


def _watch(process: subprocess.Popen[bytes], tell: Callable[[int], None], *, is_in_group: bool = True) -> int:
    """Wait for the end of the runtime and forward signals, which are blocked; its exit status.

    With `is_in_group` the program gets the signals of the terminal from the kernel.
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
    # in a file, as command lines are limited and can be read by everybody
    words = bwrap_arguments(plan, user_namespace_fd=namespace_fd, filter_fd=filter_fd)
    words_fd = _file_of("arguments", b"".join(os.fsencode(word) + b"\0" for word in words))
    passed.append(words_fd)
    unshare(CLONE_NEWPID)
    try:
        process = start_with_us(
            [program, "--json-status-fd", str(told_fd), "--args", str(words_fd), "--", *plan.process.arguments],
            mask,
            pass_fds=passed,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            user=user.uid if user.uid else None,
            group=user.gid if user.uid or user.gid else None,
            extra_groups=user.groups if user.uid or user.groups else None,
        )
    finally:
        for fd in passed:
            os.close(fd)
    with os.fdopen(status_fd, "rb") as reports:
        has_session = program_filter is None
        status = _watch(process, lambda number: _tell_sandboxed(process.pid, number), is_in_group=not has_session)
        _take_terminal_back()
        return _check_was_started(status, reports.read())


def _take_terminal_back() -> None:
    """Make this process group the foreground group of the terminal again, after a shell had put its own there."""
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
    """Send the program a signal; if it is not executed yet, or cannot be found, bubblewrap is ended instead."""
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
    """The status, if it is the program's: bubblewrap reports an exit-code then (bwrap(1), --json-status-fd)."""
    members = [json.loads(line) for line in reports.splitlines() if line.strip()]
    if any("exit-code" in found for found in members) or status > 128:
        return status
    if any("child-pid" in found for found in members):
        raise CannotRunError(
            "the program could not be executed: its library or interpreter is missing, or bwrap tells why"
        )
    raise ImageError("bwrap could not make a container; see its message above")


# -- runc


def _run_runc(program: str, plan: Launch, bundle: Path, mask: set[int]) -> int:
    log, pid_file = bundle / "log.json", bundle / PID
    (bundle / "config.json").write_bytes(specification_of(plan))
    words = [program, "--root", str(bundle / RUNC_STATE), "--log", str(log), "--log-format", "json"]
    words += ["run", "--bundle", str(bundle), "--pid-file", str(pid_file), plan.name]
    process = start_with_us(words, mask)
    status = _watch(process, process.send_signal)  # it passes them on
    if not pid_file.exists():
        raise ImageError(f"runc could not start the container: {_last_message(log)}")
    return status


def specification_of(plan: Launch) -> bytes:
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
