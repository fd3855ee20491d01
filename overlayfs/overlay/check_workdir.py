"""Which faults does a workdir have: unfinished changes, the volatile mark, index entries without a name in the upper?

The layout is the kernel's (`work`, `work/incompat/volatile`, `index`), and our record of deleted hard links.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from functools import partial
from typing import Final

from ..tree import marks, xattrs
from ..tree.syscalls import entry_path, open_beneath, sync_filesystem
from . import drafts, forks, history
from .claim import SOCKET
from .findings import Finding, Found, Problem
from .options import MountError

_WORK: Final = b"work"
_INCOMPAT: Final = b"incompat"
_VOLATILE: Final = b"volatile"
_INDEX: Final = b"index"
_LINKS: Final = b"overlayfs-links"
_HANDLE: Final = re.compile(rb"00fb[0-9a-f]{8,}")
_COUNT: Final = re.compile(rb"-?\d{1,9}")  # negative where a copy has more names than links
_LINK_RECORD: Final = re.compile(rb"[0-9a-f]{16}")
_NLINK: Final = re.compile(rb"U([+-]\d{1,9})")


def check_workdir(root_fd: int) -> Iterator[Found]:
    """All that is wrong below the workdir; each is mended by its own step, in this order."""
    for name in sorted(os.listdir(root_fd)):
        known = os.fsencode(name)
        if known == SOCKET and stat.S_ISSOCK(os.stat(known, dir_fd=root_fd, follow_symlinks=False).st_mode):
            continue  # of a daemon that was killed: the next one replaces it
        if known == forks.FILE and stat.S_ISREG(os.stat(known, dir_fd=root_fd, follow_symlinks=False).st_mode):
            continue
        check = _CHECKS.get(known)
        if check is None or not _is_directory(root_fd, known):
            yield Found(_finding(Problem.FOREIGN_WORK, known))
            continue
        fd = open_beneath(root_fd, known, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield from check(fd)
        finally:
            os.close(fd)


def _finding(problem: Problem, path: bytes, detail: str = "") -> Finding:
    return Finding(problem, path, detail, in_workdir=True)


def _is_directory(dir_fd: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)


def _check_work(fd: int) -> Iterator[Found]:
    for name in map(os.fsencode, sorted(os.listdir(fd))):
        if name == _INCOMPAT and _is_directory(fd, name):
            yield from _check_incompat(fd)
        elif drafts.is_draft_name(name):
            yield Found(_finding(Problem.LEFTOVER, _WORK + b"/" + name), partial(drafts.remove, fd, name))
        else:
            yield Found(_finding(Problem.FOREIGN_WORK, _WORK + b"/" + name))


def _check_incompat(work_fd: int) -> Iterator[Found]:
    for name in map(os.fsencode, sorted(os.listdir(entry_path(work_fd, _INCOMPAT)))):
        path = b"/".join((_WORK, _INCOMPAT, name))
        if name == history.GUARD:
            continue
        if name == _VOLATILE:
            yield Found(_finding(Problem.VOLATILE, path), partial(_remove_volatile, work_fd))
        else:
            yield Found(_finding(Problem.FOREIGN_WORK, path))


def _check_snapshots(fd: int) -> Iterator[Found]:
    try:
        leftovers = history.leftovers(fd)
    except MountError as error:
        yield Found(_finding(Problem.FOREIGN_WORK, history.DIRECTORY, str(error)))
        return
    for name in leftovers:
        yield Found(_finding(Problem.LEFTOVER, history.DIRECTORY + b"/" + name), partial(_remove_unless_used, fd, name))
    layers = {name for name in map(os.fsencode, os.listdir(fd)) if name.isdigit()}
    for name in sorted(layers - set(leftovers)):
        yield from _check_layer(fd, name)


def _check_layer(fd: int, layer: bytes) -> Iterator[Found]:
    """The hard links of a layer that a snapshot made: as those of the first one, which the workdir itself has."""
    for name, check in ((_INDEX, _check_index), (_LINKS, _check_links)):
        try:
            inner_fd = open_beneath(fd, layer + b"/" + name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            yield from check(inner_fd, b"/".join((history.DIRECTORY, layer, name)))
        finally:
            os.close(inner_fd)


def _remove_unless_used(fd: int, name: bytes) -> None:
    forks.remove(fd, name)


def _remove_volatile(work_fd: int) -> None:
    sync_filesystem(work_fd)
    drafts.remove(work_fd, _INCOMPAT)


def _check_index(fd: int, where: bytes = _INDEX) -> Iterator[Found]:
    for name in map(os.fsencode, sorted(os.listdir(fd))):
        path = where + b"/" + name
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if drafts.is_draft_name(name):
            yield Found(_finding(Problem.LEFTOVER, path), partial(drafts.remove, fd, name))
        elif stat.S_ISDIR(st.st_mode) or marks.is_whiteout_device(st):
            continue  # the kernel's nfs_export keeps directories and deletions in the index too
        elif not _HANDLE.fullmatch(name) or _origin(fd, name) not in (None, bytes.fromhex(name.decode())):
            yield Found(_finding(Problem.BAD_INDEX, path))
        elif _names_left(fd, name, st.st_nlink) <= 0:
            yield Found(_finding(Problem.ORPHAN_INDEX, path), partial(os.unlink, name, dir_fd=fd))


def _origin(dir_fd: int, name: bytes) -> bytes | None:
    return _mark(dir_fd, name, marks.ORIGIN)


def _mark(dir_fd: int, name: bytes, mark: bytes) -> bytes | None:
    values = (xattrs.read_xattr(dir_fd, name, prefix + mark) for prefix in (marks.TRUSTED, marks.USER))
    return next((value for value in values if value is not None), None)


def _names_left(dir_fd: int, name: bytes, links: int) -> int:
    """How many names a file has in the merged tree; what cannot be read counts as one, so that it is kept."""
    found = _NLINK.fullmatch(_mark(dir_fd, name, marks.NLINK) or b"")
    return links + int(found[1]) if found else 1


def _check_links(fd: int, where: bytes = _LINKS) -> Iterator[Found]:
    for name in map(os.fsencode, sorted(os.listdir(fd))):
        if not _LINK_RECORD.fullmatch(name) or not _is_count(fd, name):
            path = where + b"/" + name
            yield Found(_finding(Problem.BAD_LINK_COUNT, path), partial(drafts.remove, fd, name))


def _is_count(dir_fd: int, name: bytes) -> bool:
    st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    return stat.S_ISLNK(st.st_mode) and _COUNT.fullmatch(os.readlink(entry_path(dir_fd, name))) is not None


_CHECKS: Final = {
    _WORK: _check_work,
    _INDEX: _check_index,
    _LINKS: _check_links,
    history.DIRECTORY: _check_snapshots,
}
