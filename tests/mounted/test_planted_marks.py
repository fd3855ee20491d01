"""Xattrs that users of a mount may set lead to no file that they may not read, wherever the upper is mounted later."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounted.actors import Who, as_actor
from tests.mounted.stack import Stack

STRANGER = Who(1000, 1000)
SECRET = b"for root alone"
PLANTED = {
    "tmp/f": {"user.overlay.metacopy": b"", "user.overlay.redirect": b"/secret"},
    "tmp/d": {"user.overlay.redirect": b"/private"},
    "tmp/shut": {"user.overlay.opaque": b"y"},
}


@pytest.fixture
def stack(scratch: Path) -> Stack:
    """A mount in which a stranger may write to `tmp` and has planted marks there; unmounted again."""
    base = scratch / "first"
    base.mkdir()
    made = Stack.make(base)
    (lower,) = made.lowers
    (lower / "secret").write_bytes(SECRET)
    (lower / "secret").chmod(0o600)
    (lower / "private").mkdir(0o700)
    (lower / "private/s").write_bytes(SECRET)
    (lower / "private/s").chmod(0o644)
    for name in ("tmp", "tmp/shut"):
        (lower / name).mkdir()
        (lower / name).chmod(0o1777)
    (lower / "tmp/shut/kept").write_bytes(b"kept")
    os.chown(lower / "tmp/shut", STRANGER.uid, STRANGER.gid)
    with mounted(made):
        as_actor(STRANGER, plant, made.place)
    return made


def plant() -> None:
    with open("/tmp/f", "xb") as stream:
        stream.truncate(len(SECRET))
    os.mkdir("/tmp/d")
    for path, xattrs in PLANTED.items():
        for name, value in xattrs.items():
            os.setxattr(f"/{path}", name, value)


@contextmanager
def mounted(stack: Stack) -> Iterator[None]:
    stack.mount("metacopy=on", "redirect_dir=on")
    try:
        yield
    finally:
        stack.unmount()


def observe() -> tuple[bytes, list[str]]:
    with open("/tmp/f", "rb") as stream:
        return stream.read(), os.listdir("/tmp/d")


def xattrs_of(place: Path) -> dict[str, dict[str, bytes]]:
    return {path: {name: os.getxattr(place / path, name) for name in os.listxattr(place / path)} for path in PLANTED}


def test_planted_marks_lead_nowhere_in_the_upper(stack: Stack) -> None:
    with mounted(stack):
        assert as_actor(STRANGER, observe, stack.place) == (bytes(len(SECRET)), [])
        assert xattrs_of(stack.place) == PLANTED
        assert (stack.place / "tmp/shut/kept").read_bytes() == b"kept"


@pytest.mark.parametrize("has_upper", [True, False])
def test_planted_marks_lead_nowhere_in_a_lower_layer(stack: Stack, scratch: Path, has_upper: bool) -> None:
    base = scratch / "second"
    base.mkdir()
    second = Stack.make(base, has_upper=has_upper)
    second.lowers = [stack.upper, *stack.lowers]
    with mounted(second):
        assert as_actor(STRANGER, observe, second.place) == (bytes(len(SECRET)), [])
        assert {path: xattrs_of(second.place)[path] for path in ("tmp/f", "tmp/d")} == {
            path: PLANTED[path] for path in ("tmp/f", "tmp/d")
        }


def test_planted_marks_lead_nowhere_where_only_somebody_looks(stack: Stack) -> None:
    """A read-only mount of upper and workdir, as container engines take a container's changes."""
    stack.mount("ro")
    try:
        assert as_actor(STRANGER, observe, stack.place) == (bytes(len(SECRET)), [])
        assert xattrs_of(stack.place) == PLANTED
        assert (stack.place / "tmp/shut/kept").read_bytes() == b"kept"
    finally:
        stack.unmount()
