"""How does a Python program mount an overlay for as long as it needs it?

The mount is served by a process of its own, started without a fork of the caller (threads of a test suite are safe),
which ends with the caller however that ends.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from .fuse import commanding, forking, mounting, throwaway
from .fuse.__main__ import LIVE
from .overlay.options import MountError, OverlayOptions

if TYPE_CHECKING:
    from .overlay.changes import Change

_PATIENCE_S: Final = 10.0

StrPath = str | os.PathLike[str]


class Mount:
    """A live mount; a context manager. `path` is the mountpoint, `upper` the directory that takes the changes.

    It belongs to the process that made it: in a forked child nothing here unmounts it.
    """

    def __init__(self, path: Path, upper: Path | None, server: _Server) -> None:
        self.path = path
        self.upper = upper
        self._server = server
        weakref.finalize(self, server.end)

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        return self._server.process.pid

    def snapshot(self, name: str = "") -> str:
        """Keep the present state of the tree, which stays mounted; the snapshot's name, a number if none is given."""
        return commanding.take_snapshot(os.fsencode(self.path), name)

    def rollback(self, snapshot: str = "", *, drop: bool = False) -> None:
        """Go back to a snapshot, without a name to the newest: what was changed since is lost, and later snapshots are.
        With `drop` the snapshot itself is dropped then, unless a fork uses it.

        A file that is open shows what it held at the snapshot; one that was made since behaves as a deleted one.
        """
        commanding.roll_back(os.fsencode(self.path), snapshot, drop=drop)

    def reset(self) -> None:
        """Drop all changes, and all snapshots: the tree is that of the lower layers again. Files that are open are as
        after `rollback`."""
        commanding.reset(os.fsencode(self.path))

    def drop_snapshot(self, snapshot: str) -> None:
        """Drop a snapshot: the tree stays as it is, and nobody can go back there. Its layer is merged into the next."""
        commanding.drop_snapshot(os.fsencode(self.path), snapshot)

    def changes(self, since: str | None = None, until: str | None = None) -> list[Change]:
        """The changes of the tree, those after one snapshot or those between two."""
        return commanding.changes(os.fsencode(self.path), since, until)

    def fork(self, mountpoint: StrPath | None = None, *, snapshot: str = "") -> Mount:
        """A second mount that starts from a snapshot of this one, or from its present state, of which a snapshot is
        taken then. It shares all layers, and what happens to this mount later does not concern it.

        Its changes are thrown away with it. Without `mountpoint` a temporary directory is used. Raises MountError.
        """
        plan = forking.prepare(os.fsencode(self.path), snapshot)
        if not any(b"/layers/" in lower for lower in plan.options.lowers):
            return _mount(plan.options, mountpoint, [plan.scratch])
        from .image.store.mounted import same_layers

        with same_layers(plan.options.lowers) as record:  # perhaps of an image
            made = _mount(plan.options, mountpoint, [plan.scratch])
            record(made.pid, bytes(made.path))
        return made

    @contextmanager
    def transaction(self) -> Iterator[str]:
        """A block whose changes are undone at its end, however it ends; so is its snapshot dropped. Blocks nest."""
        snapshot = self.snapshot(f"transaction-{os.urandom(4).hex()}")  # which nobody else takes just then
        try:
            yield snapshot
        finally:
            self.rollback(snapshot, drop=True)

    def unmount(self) -> None:
        """Unmount, busy or not, and wait for the serving process; doing it twice is well."""
        self._server.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unmount()

    def __repr__(self) -> str:
        return f"Mount({str(self.path)!r})"


class _Server:
    """The process that serves one mount, and what goes with it."""

    def __init__(self, mountpoint: bytes, scratches: Sequence[Path]) -> None:
        self._maker = os.getpid()
        self._mountpoint = mountpoint
        self._scratches = scratches
        self._mount_number: int | None = None
        self._has_ended = False
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "overlayfs.fuse"],  # -P: no code from the current directory
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
            start_new_session=True,  # Ctrl-C is for the caller alone
        )

    def mount(self, options: OverlayOptions) -> None:
        """Raises MountError."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # it died: so it answers nothing
            pickle.dump((options, self._mountpoint, self._scratches), self.process.stdin)
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if answer != LIVE:
            raise MountError(os.fsdecode(answer).strip() or "the serving process died while it was starting")
        self._mount_number = mounting.mount_number(self._mountpoint)
        # until it asks for attributes, the kernel has root own the tree's root, and refuses chmod(2) by others
        os.stat(self._mountpoint)

    def end(self) -> None:
        """Let it unmount and throw away what is to be; where it cannot any more, do it in its place."""
        if self._has_ended or os.getpid() != self._maker:
            return
        self._stop()
        if self._mount_number is not None:
            mounting.unmount(self._mountpoint, self._mount_number)
        for scratch in self._scratches:
            throwaway.remove(scratch, stays_behind=self.process.returncode != 0)  # otherwise its process has done it
        self._has_ended = True

    def _stop(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.terminate()  # a forked child may hold the pipe open
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


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
    request = _request(lowers, upper, work, ephemeral, options)
    return _mount_ephemeral(request, mountpoint) if ephemeral else _mount(request, mountpoint, [])


def _request(
    lowers: Sequence[StrPath], upper: StrPath | None, work: StrPath | None, ephemeral: bool, options: dict[str, Any]
) -> OverlayOptions:
    if isinstance(lowers, str | bytes | os.PathLike):
        raise TypeError("lowers is a sequence of directories")
    if (upper is None) != (work is None):
        raise MountError("upper and work go together: give both or neither")
    if ephemeral and upper is not None:
        raise MountError("an ephemeral mount has an upper and a work of its own: give none")
    return OverlayOptions(
        lowers=tuple(map(_absolute, lowers)),
        upper=None if upper is None else _absolute(upper),
        work=None if work is None else _absolute(work),
        **options,
    )


def mount_image(
    image: str,
    mountpoint: StrPath | None = None,
    *,
    store: StrPath | None = None,
    upper: StrPath | None = None,
    work: StrPath | None = None,
    ephemeral: bool = False,
    **options: Any,
) -> Mount:
    """Mount an image of a store by its name or ID; otherwise as `mount`. Its layers are kept while it is mounted.

    `store` is its directory, by default that of `overlayfs --store`: $OVERLAYFS_STORE, or the user's own. In a writable
    mount of an ordinary user, that user and the image's root change places, as in `overlayfs mount --rw`. Raises
    MountError where there is no such image, too.
    """
    from .image.oci.errors import ImageError
    from .image.store.mounted import open_image
    from .overlay.ownership import exchanged_with_root

    directory = store or os.environ.get("OVERLAYFS_STORE")
    if os.geteuid() != 0 and (ephemeral or upper is not None):
        maps = {"uid_map": exchanged_with_root(os.geteuid()), "gid_map": exchanged_with_root(os.getegid())}
        options = {**maps, **options}
    try:
        with open_image(image, None if directory is None else Path(directory)) as opened:
            request = _request(opened.lowers, upper, work, ephemeral, options)
            made = _mount_ephemeral(request, mountpoint, True) if ephemeral else _mount(request, mountpoint, [])
            opened.record(made.pid, made.path)
            return made
    except ImageError as error:
        raise MountError(str(error)) from error


def _mount_ephemeral(request: OverlayOptions, mountpoint: StrPath | None, root_is_lowers: bool = False) -> Mount:
    from .overlay.empty_upper import be_like

    scratch = throwaway.make(throwaway.UPPER, throwaway.WORK, *([throwaway.MOUNT] if mountpoint is None else []))
    upper, work = bytes(scratch / throwaway.UPPER), bytes(scratch / throwaway.WORK)
    with ExitStack() as undo:
        undo.callback(throwaway.remove, scratch)
        if root_is_lowers:
            be_like(request.lowers[0], upper)
        undo.pop_all()
    return _mount(request._replace(upper=upper, work=work), mountpoint or scratch / throwaway.MOUNT, [scratch])


def _mount(request: OverlayOptions, mountpoint: StrPath | None, scratches: list[Path]) -> Mount:
    """Mount, on a temporary directory where no mountpoint is named; `scratches` are thrown away with the mount, or
    where it cannot be made."""
    with ExitStack() as undo:
        for scratch in scratches:
            undo.callback(throwaway.remove, scratch)
        if mountpoint is None:
            scratches = [*scratches, throwaway.make(throwaway.MOUNT)]
            undo.callback(throwaway.remove, scratches[-1])
            mountpoint = scratches[-1] / throwaway.MOUNT
        server = _Server(_absolute(mountpoint), tuple(scratches))
        undo.callback(server.end)
        server.mount(request)
        undo.pop_all()
    upper = None if request.upper is None else Path(os.fsdecode(request.upper))
    return Mount(Path(mountpoint), upper, server)


def _absolute(path: StrPath) -> bytes:
    return os.path.abspath(os.fsencode(path))
