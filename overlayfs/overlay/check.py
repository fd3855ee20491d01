"""Which faults did a crash or tampering leave in an upper and its workdir, and how are they repaired?

Needs no lower layers, so it judges only what is wrong whatever lies below. Repair changes marks and removes
leftovers that no lookup can want, never a user's file; where that is not possible it leaves all as it is.
Neighbours: findings (the problems and their remedies), check_upper, check_workdir.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from ..tree.syscalls import descriptor_path
from . import history, opening
from .check_upper import check_upper
from .check_workdir import check_workdir
from .claim import claim
from .findings import Finding, Found
from .layer import UPPER_INDEX, Layer, open_layer
from .options import MountError


def check(upper: bytes, work: bytes, repair: bool, prefix: bytes | None = None) -> list[Finding]:
    """Examine an upper that is not mounted, and mend it if asked; `Finding.repaired` tells what was.

    The upper's marks are those that a mount by this process writes, or have another xattr `prefix`. Both directories
    are locked meanwhile. Raises MountError where a live mount has them, OSError where they
    cannot be read or, in repair, written.
    """
    with ExitStack() as stack:
        layers = [_open(option, path, stack) for option, path in (("upperdir", upper), ("workdir", work))]
        stack.callback(claim(*layers, takes_over=False).release)
        upper_layer, work_layer = layers if prefix is None else [layer.spelled(prefix) for layer in layers]
        return [_settle(found, repair) for found in _examine(upper_layer, work_layer)]


def _open(option: str, path: bytes, stack: ExitStack) -> Layer:
    layer = open_layer(UPPER_INDEX, path)
    stack.callback(os.close, layer.root_fd)
    opening.refuse_kernel_mounts(option, layer)
    return layer


def _examine(upper: Layer, work: Layer) -> Iterator[Found]:
    yield from check_workdir(work.root_fd)
    if not _is_void(work):
        yield from check_upper(upper.root_fd, upper.spelling)


def _is_void(work: Layer) -> bool:
    """Whether a reset dropped what is in the upper, and the next mount removes it."""
    try:
        return history.has_lost_upperdir(descriptor_path(work.root_fd))
    except MountError:  # which is a finding of check_workdir
        return False


def _settle(found: Found, repair: bool) -> Finding:
    """Mend at once: the step uses descriptors that are open only until the next finding is asked for."""
    if not repair or found.mend is None:
        return found.finding
    found.mend()
    return replace(found.finding, repaired=True)
