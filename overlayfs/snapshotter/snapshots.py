"""The snapshotter itself: what each request does to the metadata and to the directories.

A snapshot's directory is made before its record and removed after it, so a record always has its directory; what a
crash leaves is a directory without a record, which the next start and `cleanup` remove. Directories appear and are
listed as orphans only within a transaction: an unrecorded directory there is nobody's work in progress. All methods
may be called from any thread.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .._log import Log
from ..image.store.staging import remove_tree
from ..tree.syscalls import sync_filesystem
from .filters import parse
from .metadata import Info, InvalidArgument, Kind, Metadata, Snapshot, Usage
from .mounts import Mount, Mounts
from .usage import usage_of

_DATABASE = "metadata.db"
_log = Log(__name__)


class Snapshots:
    """The snapshots in one root directory, which nobody else may use meanwhile."""

    def __init__(self, root: Path, program: str) -> None:
        self._directory = root / "snapshots"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._metadata = Metadata(root / _DATABASE)
        self._mounts = Mounts(self._directory, program)
        self.cleanup()

    def close(self) -> None:
        """Close the database."""
        self._metadata.close()

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Mount:
        """Make a writable snapshot on top of a committed one, or of nothing."""
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Mount:
        """Make a read-only snapshot of a committed one."""
        return self._create(Kind.VIEW, key, parent, labels)

    def mount(self, key: str) -> Mount:
        """How an active snapshot or a view is mounted."""
        return self._mounts.of(self._metadata.mountable(key))

    def commit(self, key: str, name: str, labels: Mapping[str, str]) -> None:
        """Make an active snapshot a committed one. Its files are on disk before the record says so."""
        upper = self._mounts.upper(self._metadata.committable(key, name).id)
        with _opened(upper) as fd:
            sync_filesystem(fd)
        self._metadata.commit(key, name, labels, usage_of(upper))

    def remove(self, key: str) -> None:
        """Remove a snapshot without children. It is gone once its record is; a failure to delete files is logged."""
        self._delete(self._directory / str(self._metadata.remove(key)))

    def stat(self, key: str) -> Info:
        """A snapshot as clients see it."""
        return self._metadata.info(key)

    def update(self, key: str, labels: Mapping[str, str], mask: Sequence[str]) -> Info:
        """Change labels: all of them, or with a mask (`labels`, `labels.NAME`) those it names."""
        for path in mask:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(f"cannot update field {path!r} of snapshot {key}")
        if not mask or "labels" in mask:
            return self._metadata.relabel(key, labels)
        return self._metadata.relabel(key, labels, [path.removeprefix("labels.") for path in mask])

    def list(self, filters: Sequence[str]) -> Iterator[Info]:
        """The snapshots that any of the filters chooses, by name."""
        chooses = parse(filters)
        return (info for info in self._metadata.all() if chooses(info))

    def usage(self, key: str) -> Usage:
        """What a snapshot takes on disk: counted now if it is active, else as it was committed."""
        snapshot = self._metadata.snapshot(key)
        if snapshot.info.kind == Kind.ACTIVE:
            return usage_of(self._mounts.upper(snapshot.id))
        return self._metadata.usage(key)

    def cleanup(self) -> None:
        """Delete the directories that belong to no snapshot."""
        with self._metadata.writing():
            known = {str(number) for number in self._metadata.ids()}
            orphans = [path for path in self._directory.iterdir() if path.name not in known]
        for orphan in orphans:
            self._delete(orphan)

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Mount:
        with self._metadata.turn, ExitStack() as undo:
            with self._metadata.writing():
                snapshot = self._metadata.create(kind, key, parent, labels)
                mount = self._mounts.of(snapshot)
                undo.callback(self._delete, self._make(snapshot))
            undo.pop_all()
        return mount

    def _make(self, snapshot: Snapshot) -> Path:
        """Make the directory of a new snapshot, on disk under its name or not at all."""
        new = Path(tempfile.mkdtemp(prefix="new-", dir=self._directory))
        with ExitStack() as undo:
            undo.callback(self._delete, new)
            (new / "fs").mkdir(mode=0o755)
            if snapshot.parents:
                below = self._mounts.upper(snapshot.parents[0]).stat()
                os.chown(new / "fs", below.st_uid, below.st_gid)
            if snapshot.info.kind == Kind.ACTIVE:
                (new / "work").mkdir(mode=0o711)
            _sync_directory(new)
            made = new.rename(self._directory / str(snapshot.id))
            undo.pop_all()
            undo.callback(self._delete, made)
            _sync_directory(self._directory)
            undo.pop_all()
        return made

    def _delete(self, directory: Path) -> None:
        """Delete files that no record needs. What cannot be deleted is left to the next cleanup."""
        try:
            remove_tree(directory)
        except OSError as error:
            _log.warning("%s could not be deleted, and is left to the next cleanup: %s", directory, error)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _sync_directory(directory: Path) -> None:
    with _opened(directory) as fd:
        os.fsync(fd)
