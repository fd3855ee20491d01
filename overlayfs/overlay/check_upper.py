"""Which faults does an upper have: malformed marks, whiteouts where they have no meaning?"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from ..tree import access, marks, xattrs
from ..tree.syscalls import OPEN_DIRECTORY, Stat, entry_path, open_beneath, set_times, stat_of
from .findings import Finding, Found, Problem
from .ownership import parse_override

_NLINK: Final = re.compile(rb"[UL][+-]\d{1,9}")
_OVL_FB_HEAD: Final = 21  # fs/overlayfs/overlayfs.h, struct ovl_fb: up to fid[]
_MAGIC: Final = 0xFB
_METACOPY_HEAD: Final = 4  # the same, struct ovl_metacopy: version, len, flags, digest_algo
_LONGEST_DIGEST: Final = 64


def check_upper(root_fd: int, spelling: marks.Spelling) -> Iterator[Found]:
    """All that is wrong below the upper's root, directory by directory; mending one changes no later one.

    Xattrs that are no marks by `spelling` are users' data.
    """
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        fd = open_beneath(root_fd, path, OPEN_DIRECTORY)
        try:
            directory = _Directory(fd, path, spelling)
            yield from directory.check()
            waiting += [_join(path, name) for name in reversed(directory.subdirectories)]
        finally:
            os.close(fd)


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


class _Entry(NamedTuple):
    name: bytes
    stat: Stat
    xattrs: frozenset[bytes]


class _Directory:
    """One directory of the upper, read once before anything in it is mended."""

    def __init__(self, fd: int, path: bytes, spelling: marks.Spelling) -> None:
        self._fd = fd
        self._spelling = spelling
        self._path = path
        names = sorted(access.list_names(fd))
        self._entries = {name: self._read(name) for name in names}
        found = marks.read_marks(fd, b".", spelling)
        oci_opaque = marks.OPAQUE_NAME in self._entries
        self._is_opaque = oci_opaque or (bool(path) and found.opacity is marks.Opacity.OPAQUE)
        self._says_whiteouts = found.opacity is marks.Opacity.XATTR_WHITEOUTS

    def _read(self, name: bytes) -> _Entry:
        st = access.stat_at(self._fd, name)
        return _Entry(name, st, frozenset(xattrs.list_xattrs(self._fd, name)))

    @property
    def subdirectories(self) -> list[bytes]:
        return [entry.name for entry in self._entries.values() if stat.S_ISDIR(entry.stat.st_mode)]

    def check(self) -> Iterator[Found]:
        for entry in self._entries.values():
            if marks.is_reserved_name(entry.name):
                yield from self._check_reserved(entry)
            else:
                yield from self._check_file(entry)

    def _found(self, problem: Problem, entry: _Entry, mend: Callable[[], None] | None, detail: str = "") -> Found:
        return Found(Finding(problem, _join(self._path, entry.name), detail), mend)

    # -- whiteouts

    def _check_reserved(self, entry: _Entry) -> Iterator[Found]:
        """A name that starts with `.wh.`."""
        deleted = marks.whited_out_name(entry.name)
        if deleted is None:
            if entry.name == marks.WHITEOUT_PREFIX:
                yield self._found(Problem.NAMELESS_WHITEOUT, entry, None)
            return
        if not marks.may_be_xattr_whiteout(entry.stat):
            yield self._found(Problem.FULL_WHITEOUT, entry, None)
        elif self._is_opaque:
            yield self._found(Problem.WHITEOUT_IN_OPAQUE, entry, self._remove(entry))
        elif deleted in self._entries and self._is_whiteout(self._entries[deleted]):
            yield self._found(Problem.DOUBLE_WHITEOUT, entry, self._remove(entry))

    def _is_whiteout(self, entry: _Entry) -> bool:
        return marks.is_whiteout_device(entry.stat) or self._is_xattr_whiteout(entry)

    def _is_xattr_whiteout(self, entry: _Entry) -> bool:
        return marks.may_be_xattr_whiteout(entry.stat) and not entry.xattrs.isdisjoint(self._spelling.whiteout)

    def _remove(self, entry: _Entry) -> Callable[[], None]:
        def mend() -> None:
            before = stat_of(self._fd)
            access.unlink(self._fd, entry.name)
            set_times(self._fd, before.st_atime_ns, before.st_mtime_ns)  # to users nothing changed

        return mend

    def _check_file(self, entry: _Entry) -> Iterator[Found]:
        if not self._is_whiteout(entry):
            yield from self._check_marks(entry)
        elif self._is_opaque:
            yield self._found(Problem.WHITEOUT_IN_OPAQUE, entry, self._remove(entry))
        elif self._is_xattr_whiteout(entry):
            if not self._says_whiteouts:
                yield self._found(Problem.UNMARKED_WHITEOUT, entry, self._announcement())
        elif stat.S_IMODE(entry.stat.st_mode):
            chmod = partial(os.chmod, entry_path(self._fd, entry.name), 0)
            yield self._found(Problem.WHITEOUT_MODE, entry, chmod)

    def _announcement(self) -> Callable[[], None]:
        return partial(access.setxattr, self._fd, self._spelling.prefix + marks.OPAQUE, b"x")

    # -- xattrs

    def _check_marks(self, entry: _Entry) -> Iterator[Found]:
        own = self._spelling.prefix
        for stored in sorted(entry.xattrs):
            if stored.startswith(own):
                yield from self._check_mark(entry, own, stored[len(own) :])
            elif stored in self._spelling.opaque:
                yield from self._check_mark(entry, marks.FUSE, marks.OPAQUE)
            if stored in marks.OVERRIDE_NAMES and parse_override(self._value(entry, stored)) is None:
                yield self._found(Problem.BAD_OVERRIDE, entry, None, os.fsdecode(stored))

    def _value(self, entry: _Entry, stored: bytes) -> bytes:
        return xattrs.read_xattr(self._fd, entry.name, stored) or b""

    def _check_mark(self, entry: _Entry, prefix: bytes, mark: bytes) -> Iterator[Found]:
        value = self._value(entry, prefix + mark)
        drop = self._set(entry, prefix + mark, None)
        is_directory, is_file = stat.S_ISDIR(entry.stat.st_mode), stat.S_ISREG(entry.stat.st_mode)
        if mark == marks.OPAQUE and not (is_directory and value in (b"y", b"x")):
            yield self._found(Problem.BAD_OPAQUE, entry, drop, repr(value))
        elif mark == marks.METACOPY and not is_file:
            yield self._found(Problem.STRAY_METACOPY, entry, drop)
        elif mark == marks.METACOPY and not _is_metacopy(value):
            yield self._found(Problem.BAD_METACOPY, entry, self._set(entry, prefix + mark, b""))
        elif mark == marks.ORIGIN and not _is_origin(value):
            yield self._found(Problem.BAD_ORIGIN, entry, self._set(entry, prefix + mark, b""))
        elif mark == marks.NUMBER and len(value) != 8:
            yield self._found(Problem.BAD_NUMBER, entry, drop)
        elif mark == marks.NLINK and not _NLINK.fullmatch(value):
            yield self._found(Problem.BAD_NLINK, entry, drop, repr(value))
        elif mark == marks.REDIRECT:
            yield from self._check_redirect(entry, prefix, value)

    def _check_redirect(self, entry: _Entry, prefix: bytes, value: bytes) -> Iterator[Found]:
        is_metacopy = stat.S_ISREG(entry.stat.st_mode) and prefix + marks.METACOPY in entry.xattrs
        if not is_metacopy and not stat.S_ISDIR(entry.stat.st_mode):
            mend = self._set(entry, prefix + marks.REDIRECT, None)
            yield self._found(Problem.STRAY_REDIRECT, entry, mend)
            return
        try:
            marks.redirect_target(value, b"")
        except OSError:
            if is_metacopy:
                yield self._found(Problem.BAD_DATA_REDIRECT, entry, None, repr(value))
            else:
                yield self._found(Problem.BAD_REDIRECT, entry, self._cut_off(entry, prefix), repr(value))

    def _set(self, entry: _Entry, stored: bytes, value: bytes | None) -> Callable[[], None]:
        def mend() -> None:
            with access.node(self._fd, entry.name) as fd:
                if value is None:
                    access.removexattr(fd, stored)
                else:
                    access.setxattr(fd, stored, value)

        return mend

    def _cut_off(self, entry: _Entry, prefix: bytes) -> Callable[[], None]:
        """Opaque before the redirect goes: what is below under the new name must never show in between."""

        def mend() -> None:
            self._set(entry, prefix + marks.OPAQUE, b"y")()
            self._set(entry, prefix + marks.REDIRECT, None)()

        return mend


def _is_origin(value: bytes) -> bool:
    """Empty, or the kernel's struct ovl_fb: version 0, magic, its own length, flags, type, uuid, handle."""
    if not value:
        return True
    return len(value) > _OVL_FB_HEAD and value[0] == 0 and value[1] == _MAGIC and value[2] == len(value)


def _is_metacopy(value: bytes) -> bool:
    """Empty, or the kernel's struct ovl_metacopy: version 0, its own length, flags 0, algorithm, digest."""
    if not value:
        return True
    if len(value) < _METACOPY_HEAD or len(value) > _METACOPY_HEAD + _LONGEST_DIGEST:
        return False
    return value[0] == 0 and value[1] == len(value) and value[2] == 0
