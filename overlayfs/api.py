"""How does a Python program mount an overlay for as long as it needs it?

The mount is served by a process of its own, started without a fork of the caller (threads of a test suite are safe),
which ends with the caller however that ends.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from .overlay.options import MountError, OverlayOptions

_LIVE = b"live\n"
_PATIENCE_S = 10.0

StrPath = str | os.PathLike[str]


class Mount:
    """A live mount; a context manager. `path` is the mountpoint, `upper` the directory that takes the changes."""

    def __init__(self, path: Path, upper: Path | None, process: subprocess.Popen[bytes], temporary: _Temporary) -> None:
        self.path = path
        self.upper = upper
        self._process = process
        self._temporary = temporary

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        return self._process.pid

    def unmount(self) -> None:
        """Unmount, busy or not, and wait for the serving process; doing it twice is well."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._temporary.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unmount()

    def __repr__(self) -> str:
        return f"Mount({str(self.path)!r})"


class _Temporary:
    """Directories that live as long as the mount."""

    def __init__(self) -> None:
        self._root: tempfile.TemporaryDirectory[str] | None = None

    def directory(self, name: str) -> Path:
        if self._root is None:
            self._root = tempfile.TemporaryDirectory(prefix="overlayfs-", ignore_cleanup_errors=True)
        path = Path(self._root.name, name)
        path.mkdir()
        return path

    def remove(self) -> None:
        if self._root is not None:
            self._root.cleanup()


def mount(
    lowers: Sequence[StrPath],
    mountpoint: StrPath | None = None,
    *,
    upper: StrPath | None = None,
    work: StrPath | None = None,
    ephemeral: bool = False,
    **options: Any,
) -> Mount:
    """Mount `lowers` (topmost first) until the returned object is unmounted or this process ends.

    Without `mountpoint` a temporary directory is used. Without `upper` the mount is read-only, unless `ephemeral`
    puts upper and work into a temporary directory that is thrown away with the mount. Further keywords are fields of
    `OverlayOptions`. Raises MountError, with one line that says why, and then nothing is mounted.
    """
    temporary = _Temporary()
    try:
        if ephemeral:
            upper, work = temporary.directory("upper"), temporary.directory("work")
        target = Path(mountpoint) if mountpoint is not None else temporary.directory("mount")
        if (upper is None) != (work is None):
            raise MountError("upper and work go together: give both or neither")
        request = OverlayOptions(
            lowers=tuple(map(_absolute, lowers)),
            upper=None if upper is None else _absolute(upper),
            work=None if work is None else _absolute(work),
            **options,
        )
        process = _start(request, _absolute(target))
    except BaseException:
        temporary.remove()
        raise
    return Mount(target, None if upper is None else Path(upper), process, temporary)


def _absolute(path: StrPath) -> bytes:
    return os.path.abspath(os.fsencode(path))


def _start(request: OverlayOptions, mountpoint: bytes) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "overlayfs.fuse"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdin is not None and process.stdout is not None
    send_request(process.stdin, request, mountpoint)
    answer = process.stdout.readline()
    if answer == _LIVE:
        return process
    process.stdin.close()
    process.stdout.close()
    process.wait()
    raise MountError(os.fsdecode(answer).strip() or "the serving process died while it was starting")


def send_request(pipe: IO[bytes], request: OverlayOptions, mountpoint: bytes) -> None:
    pipe.write(pickle.dumps((request, mountpoint)))
    pipe.flush()
