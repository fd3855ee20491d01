"""Which directories do `RUN --mount=type=cache` keep from one build to the next, and who may use them meanwhile?

They are in the store's `build/mounts`, by a key of their id, and appear whole by a rename. A step that holds a cache
`locked` or `private` has locked its directory. `prune` holds the store alone, so that no build uses a cache meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from ..container.foreign_mounts import Needed
from ..container.root_paths import Inside
from ..image.store.staging import occupied, remove_tree, sync_all
from ..image.store.store import Store
from ..tree.syscalls import RENAME_NOREPLACE, renameat2
from .cache import key_of
from .children import Child
from .files.sources import Tree
from .files.writer import write_tree
from .run_mounts import LOCKED, PRIVATE, MountPlan, beneath, give_away
from .sandbox import Sandbox, enter_namespaces

_STAGED: Final = "cache"


def caches_of(store: Store) -> Path:
    return store.path / "build" / "mounts"


def cache_called(store: Store, name: str) -> Path:
    return caches_of(store) / key_of(name)


# -- for one step


def claim_caches(sandbox: Sandbox, plans: Sequence[MountPlan]) -> list[MountPlan]:
    """The plans with their caches made, and locked until the step ends unless they are shared. A `locked` cache that
    another step holds is awaited; instead of a `private` one there is another. Raises ImageError, OSError."""
    found: dict[Path, Path] = {}
    caches = [(plan.source, plan.sharing, plan) for plan in plans if plan.kind == "cache" and plan.source is not None]
    for path, _, plan in sorted(caches, key=lambda cache: cache[:2]):  # in one order: no two steps wait for each other
        if path not in found:
            found[path] = _claim(sandbox, path, plan)
    return [replace(plan, source=found.get(plan.source, plan.source)) if plan.source else plan for plan in plans]


def _claim(sandbox: Sandbox, path: Path, plan: MountPlan) -> Path:
    if plan.sharing == PRIVATE:
        candidates = (path.with_name(f"{path.name}-{number}" if number else path.name) for number in count())
        return next(candidate for candidate in candidates if _hold(sandbox, candidate, plan, fcntl.LOCK_NB))
    if plan.sharing == LOCKED:
        _hold(sandbox, path, plan)
    else:
        _make(sandbox, path, plan)
    return path


def _hold(sandbox: Sandbox, path: Path, plan: MountPlan, flags: int = 0) -> bool:
    """Make and lock a cache; False if it is locked, and `flags` say not to wait."""
    _make(sandbox, path, plan)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sandbox.stack.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | flags)
    except BlockingIOError:
        return False
    return True


def _make(sandbox: Sandbox, path: Path, plan: MountPlan) -> None:
    """Make a cache that is not there yet; one that a killed step has left half made stays beside it."""
    if path.exists():
        return
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    top = path.with_name(f"new-{os.getpid()}-{secrets.token_hex(8)}")
    top.mkdir(0o700)
    staged = top / _STAGED
    if plan.lowers:
        _fill(sandbox, top, plan)
        sync_all(staged)  # no later step fills it again
    else:
        staged.mkdir()
        give_away(staged, plan, 0o755)
    with ExitStack() as stack:
        stack.callback(remove_tree, top)
        fds = [os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for place in (top, path.parent)]
        for fd in fds:
            stack.callback(os.close, fd)
        with suppress(FileExistsError):  # another step was first
            renameat2(fds[0], _STAGED.encode(), fds[1], os.fsencode(path.name), RENAME_NOREPLACE)


def _fill(sandbox: Sandbox, top: Path, plan: MountPlan) -> None:
    """Begin a cache with what a stage or an image has at a path."""
    found = beneath(sandbox.mount(plan.lowers), plan.options.get("source", "/"))
    source = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Inside(os.fsencode(top)) as inside:
            tree = Tree(source, "the stage or image it comes from", keeps_owners=True)
            write_tree(inside, _STAGED, tree.read(""), plan.limits)
    finally:
        os.close(source)


# -- for all builds


def remove_caches(store: Store, dry_run: bool) -> int:
    """Remove all caches, unless it is a dry run; the bytes that they take. The caller holds the store alone."""
    directory, parent = caches_of(store), os.getpid()
    measure = occupied if dry_run else remove_tree
    if not directory.exists():
        return 0
    if os.geteuid() == 0:
        return measure(directory)

    def work() -> bytes:
        enter_namespaces(Needed.of([store.path], []), parent)  # files in them may belong to subordinate ids
        return str(measure(directory)).encode()

    return int(Child(work).wait())
