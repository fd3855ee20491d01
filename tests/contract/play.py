"""Playing one case on one target: build, mount, run the steps, compare, remount, compare again."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from . import libc
from .case import ANYTHING, ENGINE, KERNEL, ROOT, Case, Step
from .client import Client, Entry, Stat
from .engine_client import EngineClient
from .posix_client import PosixClient
from .targets import Directories, Target
from .tree import TRUSTED, Format, Kind, Node, build
from .view import (
    View,
    changes,
    differences,
    look,
    node_differences,
    see_one,
    shared_inodes,
    unsteady_inodes,
)


@cache
def scratch_parent() -> str:
    """A memory filesystem where it has the xattrs that layers need (Linux 6.6); it is fast."""
    memory = "/dev/shm"
    try:
        with tempfile.NamedTemporaryFile(dir=memory) as probe:
            os.setxattr(probe.name, "user.probe", b"")
    except OSError:
        return tempfile.gettempdir()
    return memory


@contextmanager
def directories(case: Case, form: Format, base: Path | None = None) -> Iterator[Directories]:
    """The case's layers, built in a directory of their own that is removed afterwards."""
    root = os.fsencode(tempfile.mkdtemp(prefix="contract-", dir=base or scratch_parent()))
    os.chmod(root, 0o755)  # other users walk through it
    upper = None if case.upper is None else b"u"
    lowers = tuple(b"l%d" % at for at in range(len(case.lowers)))
    data_lowers = tuple(b"d%d" % at for at in range(len(case.data_lowers)))
    places = Directories(root, lowers, data_lowers, upper, b"w", b"m")
    with ExitStack() as stack:
        stack.callback(_remove, root)
        places.make()
        if case.separate_filesystems:
            for name in (*lowers, *data_lowers):
                libc.mount(b"tmpfs", places.at(name), b"tmpfs", b"size=16m")
                stack.callback(libc.unmount, places.at(name), libc.MNT_DETACH)
        for name, tree in zip((*lowers, *data_lowers), (*case.lowers, *case.data_lowers), strict=True):
            build(places.at(name), tree)
        if case.upper is not None:
            build(places.at(b"u"), case.upper, form)
        yield places


def _remove(root: bytes) -> None:
    try:
        shutil.rmtree(root)
    except PermissionError:  # a layer, or what a target that failed left, is immutable or append-only
        subprocess.run(["chattr", "-R", "-f", "-ia", root], check=False)
        shutil.rmtree(root)


def play(case: Case, target: Target, form: Format) -> None:
    """Everything a case claims, on one target."""
    options = {key: value for key, value in case.options.items() if target.name != KERNEL or key in _SHARED}
    with directories(case, form) as places:
        lowers_before = raw_layers(places)
        misplaced = whiteouts_in_opaque(places)
        with target.mounted(places, form, options) as client:
            run(case, client)
            before = see(case, client, target)
        with target.mounted(places, form, options) as client:
            after = see(case, client, target)
        if target.name != KERNEL:
            assert not changes(before, after), "\n".join(["a remount shows:", *changes(before, after)])
            assert whiteouts_in_opaque(places) <= misplaced, "whiteout in an opaque directory"
        assert raw_layers(places) == lowers_before, "a lower layer has changed"
        check_upper(case, places, form)
        check_work(places, target)


_SHARED = frozenset({"index", "redirect_dir", "metacopy", "user_xattr", "uid_map", "gid_map"})


def run(case: Case, client: Client) -> None:
    """Every step, with its outcome."""
    for at, step in enumerate(case.steps):
        client.caller = step.caller
        check_step(client, step, f"step {at}: {step}")
    client.finish()
    client.caller = ROOT


def attempt(client: Client, step: Step) -> tuple[Any, int]:
    """What the call gave, and the errno with which it failed or 0."""
    try:
        return getattr(client, step.call)(*step.arguments), 0
    except OSError as error:
        return None, error.errno or 0


def check_step(client: Client, step: Step, where: str) -> None:
    """One step; AssertionError unless its outcome is the expected one."""
    found, code = attempt(client, step)
    outcome, wanted = (errno.errorcode.get(number, "success") for number in (code, step.errno))
    assert code == step.errno, f"{where}: {outcome}, should be {wanted}"
    if not code and step.result is not ANYTHING:
        result = comparable(found, step.result)
        assert result == step.result, f"{where}: gave {result!r}, should be {step.result!r}"


def comparable(found: Any, wanted: Any) -> Any:
    """The part of a result that the step speaks of."""
    if isinstance(found, Stat):
        return {name: getattr(found, name) for name in wanted}
    if isinstance(found, list) and all(isinstance(entry, Entry) for entry in found):
        return {os.fsdecode(entry.name) for entry in found} - {".", ".."}
    return set(found) if isinstance(wanted, set) else found


def see(case: Case, client: Client, target: Target) -> View:
    """The whole view, compared with the expected one."""
    try:
        view = look(client)
    except OSError as error:
        if error.errno != case.unreadable:
            raise
        return {}
    lines = differences(case.view, view)
    if target.name != KERNEL:
        lines += unsteady_inodes(view) + shared_inodes(case.view, view)
    if target.name == ENGINE:
        lines += forgotten(client)
    assert not lines, "\n".join(["the merged tree is not as expected:", *lines])
    return view


def forgotten(client: Client) -> list[str]:
    """Every lookup has been given back, so the engine may know the root only."""
    known = len(client.overlay.state.inodes) if isinstance(client, EngineClient) else 1
    return [] if known == 1 else [f"{known} inodes are still known after FORGET of all"]


def raw_layers(places: Directories) -> list[View]:
    """The lower layers as they lie on disk, times included."""
    views = []
    for name in (*places.lowers, *places.data_lowers):
        view = look(PosixClient(places.at(name)))
        views.append({path: replace(seen, attributes=_without_atime(seen.attributes)) for path, seen in view.items()})
    return views


def _without_atime(attributes: Stat) -> Stat:
    return attributes._replace(atime=0)


def whiteouts_in_opaque(places: Directories) -> set[bytes]:
    """Whiteouts (as devices) in opaque directories of the upper: they would mean nothing."""
    if places.upper is None:
        return set()
    found = set()
    for parent, _, names in os.walk(places.at(places.upper)):
        try:
            opaque = os.getxattr(parent, TRUSTED + "opaque") == b"y"
        except OSError:
            opaque = os.path.exists(os.path.join(parent, b".wh..wh..opq"))
        if opaque:
            found |= {os.path.join(parent, name) for name in names if _is_whiteout(os.path.join(parent, name))}
    return found


def _is_whiteout(path: bytes) -> bool:
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def check_upper(case: Case, places: Directories, form: Format) -> None:
    """What the case says of the upper; `form` spells its whiteouts and opaque directories."""
    if places.upper is None:
        return
    upper = places.at(places.upper)
    lines = []
    for path, node in case.upper_after.items():
        lines += [f"upper {path}: {line}" for line in upper_differences(upper, path, node, form)]
    assert not lines, "\n".join(lines)


def upper_differences(upper: bytes, path: str, node: Node, form: Format) -> list[str]:
    """How the upper differs from what it should hold at one path."""
    place = os.path.join(upper, os.fsencode(path))
    has_whiteout = whiteout_at(place, form)
    if node.kind is Kind.WHITEOUT:
        return [] if has_whiteout else ["no whiteout"]
    if has_whiteout:
        return ["a whiteout"]
    if node.kind is Kind.ABSENT:
        return ["is there"] if os.path.lexists(place) else []
    if not os.path.lexists(place):
        return ["is not there"]
    lines = node_differences(replace(node, xattrs=None, nlink=None), see_one(PosixClient(upper), path))
    if node.kind is Kind.DIRECTORY and node.opaque != is_opaque(place, form):
        lines.append("should be opaque" if node.opaque else "should not be opaque")
    if node.sparse and os.lstat(place).st_blocks * 512 >= len(node.content):
        lines.append("its hole is filled")
    if node.kind in (Kind.FILE, Kind.DIRECTORY) and set(libc.flags(place)) != set(node.flags):
        lines.append(f"has the flags {libc.flags(place)}, not {node.flags}")
    found = os.listxattr(place, follow_symlinks=False)
    for name, wanted in (node.xattrs or {}).items():
        if name not in found:
            lines.append(f"lacks {name}")
        elif (value := os.getxattr(place, name, follow_symlinks=False)) != wanted:
            lines.append(f"{name} is {value!r}, should be {wanted!r}")
    return lines


def whiteout_at(place: bytes, form: Format) -> bool:
    """Whether the upper holds a whiteout for this path in the format given."""
    head, name = os.path.split(place)
    if form is Format.OCI:
        return os.path.lexists(os.path.join(head, b".wh." + name))
    if not os.path.lexists(place):
        return False
    if form is Format.OVERLAY:
        return _is_whiteout(place)
    marks = os.listxattr(place, follow_symlinks=False)
    return TRUSTED + "whiteout" in marks and is_marked(head, b"x") and os.lstat(place).st_size == 0


def is_marked(place: bytes, value: bytes) -> bool:
    """Whether the directory's opaque mark has this value."""
    return TRUSTED + "opaque" in os.listxattr(place) and os.getxattr(place, TRUSTED + "opaque") == value


def is_opaque(place: bytes, form: Format) -> bool:
    """Whether the directory is opaque in the format given."""
    if form is Format.OCI:
        return os.path.lexists(os.path.join(place, b".wh..wh..opq"))
    return is_marked(place, b"y")


def check_work(places: Directories, target: Target) -> None:
    """Nothing half made is left behind; what keeps count of hard links may stay."""
    if places.upper is None or target.name == KERNEL:
        return
    work = places.at(places.work)
    left = [
        os.path.relpath(os.path.join(parent, name), work)
        for parent, directories, names in os.walk(work)
        for name in (*directories, *names)
        if os.path.relpath(os.path.join(parent, name), work).split(b"/")[0] not in (b"index", b"overlayfs-links")
        and os.path.join(parent, name) != os.path.join(work, b"work")
    ]
    assert not left, f"left in the workdir: {left}"
