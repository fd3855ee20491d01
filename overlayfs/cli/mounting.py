"""`overlayfs mount`: from what a person says to a live mount, throw-away uppers included."""

from __future__ import annotations

import fcntl
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from overlayfs.cli.live import wait_until_ended
from overlayfs.cli.output import Cell, Lines, is_terminal, printable
from overlayfs.fuse import throwaway

_SPECIAL = re.compile(r'([\\:,"])')


class UsageError(Exception):
    """The command line itself is wrong; `str(error)` is the one line for the user."""


@dataclass(frozen=True, slots=True)
class Request:
    """The command line of `overlayfs mount`; `words` are its arguments that are no options."""

    words: tuple[str, ...]
    lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    ephemeral: bool = False
    read_only: bool = False
    options: tuple[str, ...] = ()
    foreground: bool = False
    lane: bool = True
    poll_us: int | None = None

    @property
    def mountpoint(self) -> str:
        return self.words[-1]


def mount(request: Request) -> None:
    """Mount, and return once the mount is live (in the foreground: once it is gone). Raises MountError."""
    _check(request)
    if request.ephemeral:
        _mount_ephemeral(request)
    else:
        _serve(request, request.upper, request.work)
    if not request.foreground and is_terminal():
        kept = "; what is written is thrown away at the unmount" if request.ephemeral else ""
        where = os.path.realpath(os.fsencode(request.mountpoint))
        Lines().print(Cell(printable(where), "bold"), Cell(" is mounted" + kept))


def _check(request: Request) -> None:
    has_lowers = bool(request.lowers) or any("lowerdir" in text for text in request.options)
    if len(request.words) > 1 or (not has_lowers and not os.path.isdir(request.mountpoint)):
        raise UsageError(
            f"{printable(os.fsencode(request.words[0]))}: images cannot be mounted by name yet:"
            " give their layers with --lower"
        )
    if not has_lowers:
        raise UsageError("at least one --lower is needed")
    if (request.upper is None) != (request.work is None):
        raise UsageError("--upper and --work belong together")
    if request.ephemeral and (request.upper is not None or request.read_only):
        raise UsageError("--ephemeral excludes --upper, --work and --read-only")


def _serve(request: Request, upper: str | None, work: str | None) -> int | None:
    """The daemon's process id, None in the foreground, where this returns at the end of the mount."""
    from overlayfs.cli.mount_program import CommandLine, mount_options
    from overlayfs.fuse.session import serve_in_background, serve_in_foreground
    from overlayfs.overlay.option_parser import parse_options

    parsed = parse_options([*request.options, *_option_texts(request, upper, work)], os.curdir)
    for warning in parsed.warnings:
        print(f"overlayfs: {warning}", file=sys.stderr)
    options = mount_options(CommandLine(), parsed, request.mountpoint, is_root=os.geteuid() == 0)
    if request.foreground:
        serve_in_foreground(parsed.overlay, options)
        return None
    return serve_in_background(parsed.overlay, options)


def _option_texts(request: Request, upper: str | None, work: str | None) -> Iterator[str]:
    """What the options of this command say in the words of `-o`."""
    if request.lowers:
        yield "lowerdir=" + ":".join(map(_escape, request.lowers))
    if upper is not None and work is not None:
        yield f"upperdir={_escape(upper)},workdir={_escape(work)}"
    if request.read_only:
        yield "ro"
    if not request.lane:
        yield "lane=off"
    if request.poll_us is not None:
        yield f"poll={request.poll_us}"


def _escape(path: str) -> str:
    return _SPECIAL.sub(r"\\\1", path)


def _mount_ephemeral(request: Request) -> None:
    scratch = throwaway.make(throwaway.UPPER, throwaway.WORK)
    maker = os.getpid()
    daemon = None
    try:
        daemon = _serve(request, str(scratch / throwaway.UPPER), str(scratch / throwaway.WORK))
    finally:
        if daemon is None and os.getpid() == maker:  # the daemon was forked from here and unwinds the same stack
            throwaway.remove(scratch)
    if daemon is not None:
        _remove_after(daemon, scratch)


def _remove_after(daemon: int, scratch: Path) -> None:
    """Leave a process behind that throws away what was written once the daemon has ended, however it ends."""
    try:
        pid_fd = os.pidfd_open(daemon)
    except ProcessLookupError:
        throwaway.remove(scratch)
        return
    if os.fork():
        os.close(pid_fd)
        return
    try:
        wait_until_ended(_detach(pid_fd))  # a lazy unmount leaves it at work for those who still use the mount
        throwaway.remove(scratch)
    finally:
        os._exit(0)


def _detach(daemon: int) -> int:
    """Keep nothing of the caller's but the daemon's pidfd, which may get another number."""
    os.setsid()
    os.chdir("/")
    kept = fcntl.fcntl(daemon, fcntl.F_DUPFD_CLOEXEC, 3)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    return kept
