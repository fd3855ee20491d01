"""`overlayfs mount`: from the command line to a live mount, throw-away uppers included."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from overlayfs.cli.mount_program import CommandLine, UsageError, mount_options
from overlayfs.cli.output import Cell, Lines, is_terminal, printable
from overlayfs.overlay.option_parser import parse_options
from overlayfs.overlay.option_text import split_option_list

_SPECIAL = re.compile(r'([\\:,"])')


class Request(NamedTuple):
    """The command line of `overlayfs mount`; `words` are its positional arguments."""

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
        serve(request, request.upper, request.work)
    announce(request, "; what is written is thrown away at the unmount" if request.ephemeral else "")


def announce(request: Request, kept: str = "") -> None:
    """Tell a user at a terminal that the mount is live, and where changes go."""
    if not request.foreground:
        announce_at(request.mountpoint, kept)


def announce_at(mountpoint: str, kept: str = "") -> None:
    if is_terminal():  # otherwise the mount is not asked: its daemon may hang
        where = os.path.realpath(os.fsencode(mountpoint))
        Lines().print(Cell(printable(where), "bold"), Cell(" is mounted" + kept))


def _check(request: Request) -> None:
    items = [item for text in request.options for item in split_option_list(os.fsencode(text))]
    has_lowers = bool(request.lowers) or any(item.name in (b"lowerdir", b"lowerdir+") for item in items)
    if len(request.words) > 1:
        raise UsageError("IMAGE MNT, or MNT with at least one --lower")
    if not has_lowers:
        raise UsageError("at least one --lower is needed, or an image: IMAGE MNT")
    if (request.upper is None) != (request.work is None):
        raise UsageError("--upper and --work belong together")
    if request.ephemeral and (request.upper is not None or request.read_only):
        raise UsageError("--ephemeral excludes --upper, --work and --read-only")


def serve(request: Request, upper: str | None, work: str | None) -> int | None:
    """Serve the mount: the pid of the daemon; in the foreground None, after the unmount."""
    from overlayfs.fuse.session import serve_in_background, serve_in_foreground

    parsed = parse_options([*request.options, *_option_texts(request, upper, work)], os.curdir)
    for warning in parsed.warnings:
        print(f"overlayfs: {warning}", file=sys.stderr)
    options = mount_options(CommandLine(), parsed, request.mountpoint, is_root=os.geteuid() == 0)
    if request.foreground:
        serve_in_foreground(parsed.overlay, options)
        return None
    return serve_in_background(parsed.overlay, options)


def _option_texts(request: Request, upper: str | None, work: str | None) -> Iterator[str]:
    """The options of this command in the spelling of `-o`."""
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
    from overlayfs.fuse import throwaway

    scratch = throwaway.make(throwaway.UPPER, throwaway.WORK)
    maker = os.getpid()
    daemon = None
    try:
        daemon = serve(request, str(scratch / throwaway.UPPER), str(scratch / throwaway.WORK))
    finally:
        if daemon is None and os.getpid() == maker:  # the daemon was forked from here and unwinds the same stack
            throwaway.remove(scratch)
    if daemon is not None:
        remove_after(daemon, scratch)


def remove_after(daemon: int, scratch: Path) -> None:
    """Leave a process behind that removes the throw-away upper once the daemon, and forks of its mount, have ended,
    however they end."""
    from overlayfs.cli.background import leave_behind
    from overlayfs.fuse import throwaway

    try:
        pid_fd = os.pidfd_open(daemon)
    except ProcessLookupError:
        throwaway.remove(scratch)
        return
    # a lazy unmount leaves the daemon at work for those who still use the mount
    leave_behind(lambda: throwaway.remove(scratch, waits=True), after=pid_fd)
