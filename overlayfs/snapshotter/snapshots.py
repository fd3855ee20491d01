"""The snapshotter itself: what each request does to the metadata and to the directories.

A snapshot's directory is made before its record is committed and deleted after its record is gone, so a record always
has its directory. What a crash or a failed request leaves is a directory without a record, which the next start and
`cleanup` delete. Directories get their names only within a transaction, so whatever has no record there is nobody's
work in progress. A snapshot that the snapshotter itself mounts is mounted after its record is committed and unmounted
after its record is gone. All methods may be called from any thread.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .._log import Log
from ..image.store.staging import remove_tree, sync_all, sync_directory
from .filters import parse
from .metadata import Info, InvalidArgument, Kind, Metadata, NotFound, Snapshot, Usage
from .mounts import Mount, Mounts
from .own_mounts import MountFailed, OwnMounts, Program
from .usage import usage_of

_DATABASE = "metadata.db"
_log = Log(__name__)


class Snapshots:
    """The snapshots in one root directory, which nobody else may use meanwhile.

    `program` is the path of the mount program that containerd starts, `own` the program with which the snapshotter
    mounts itself, if it does.
    """

    def __init__(self, root: Path, program: str, own: Program | None = None) -> None:
        self._directory = root / "snapshots"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        has_some = any(path.name.isdecimal() for path in self._directory.iterdir())
        self._metadata = Metadata(root / _DATABASE, may_be_new=not has_some)  # else `cleanup` would delete all of them
        self._deleting = threading.Lock()  # taken before a transaction: two must not delete the same tree
        for made_in in (root, root.parent):
            sync_directory(made_in)
        self._mounts = Mounts(self._directory, program)
        self._own_mounts = OwnMounts(root / "mounts", own)
        self.cleanup()

    def close(self) -> None:
        """Close the database; mounts stay."""
        self._metadata.close()

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Mount:
        """Make a writable snapshot on top of a committed one, or of nothing."""
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Mount:
        """Make a read-only snapshot of a committed one."""
        return self._create(Kind.VIEW, key, parent, labels)

    def mount(self, key: str) -> Mount:
        """How an active snapshot or a view is mounted."""
        return self._shown(self._metadata.mountable(key))

    def commit(self, key: str, name: str, labels: Mapping[str, str]) -> None:
        """Make an active snapshot a committed one. Its files are on disk before the record says so."""
        number = self._metadata.committable(key, name).id
        upper = self._mounts.upper(number)
        self._own_mounts.sync(number)
        sync_all(upper)
        self._metadata.commit(key, name, labels, usage_of(upper))
        self._take_down(number)

    def remove(self, key: str) -> None:
        """Remove a snapshot without children. It is gone once its record is; a failure to delete files is logged."""
        number = self._metadata.remove(key)
        self._take_down(number)
        with self._deleting:
            self._delete(self._directory / str(number))

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
        """Unmount and delete what belongs to no snapshot."""
        with self._deleting:
            with self._metadata.writing():
                self._own_mounts.take_down_others(self._metadata.mountable_ids())
                known = {str(number) for number in self._metadata.ids()}
                orphans = [self._set_aside(path) for path in self._directory.iterdir() if path.name not in known]
            for orphan in orphans:
                self._delete(orphan)

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Mount:
        with self._metadata.writing():
            snapshot = self._metadata.create(kind, key, parent, labels)
            self._mounts.of(snapshot)  # raises for labels that cannot be mounted
            self._make(snapshot)
        try:
            return self._shown(snapshot)
        except MountFailed:
            self.remove(key)
            raise

    def _shown(self, snapshot: Snapshot) -> Mount:
        mount = self._own_mounts.of(snapshot.id, self._mounts.of(snapshot))
        if not self._metadata.is_mountable(snapshot.id):  # removed or committed while it was being mounted
            self._take_down(snapshot.id)
            raise NotFound(f"snapshot {snapshot.info.name}: not found")
        return mount

    def _take_down(self, number: int) -> None:
        """Unmount what no record needs mounted. What cannot be unmounted is left to the next cleanup."""
        try:
            self._own_mounts.take_down(number)
        except OSError as error:
            _log.warning("the mount of %d is left to the next cleanup: %s", number, error)

    def _make(self, snapshot: Snapshot) -> None:
        """Make the directory of a new snapshot: it is on disk, whole, when this returns."""
        new, path = self._unused("new"), self._directory / str(snapshot.id)
        try:
            new.mkdir(0o700)
            self._fill(new, snapshot)
            sync_directory(new)
            if path.exists():  # of a snapshot whose record could not be committed
                self._set_aside(path)
            new.rename(path)
        finally:
            self._delete(new)
        sync_directory(self._directory)

    def _fill(self, new: Path, snapshot: Snapshot) -> None:
        """The top of the tree has the modes and the owner that containerd's overlay snapshotter gives it."""
        fs = new / "fs"
        fs.mkdir()
        fs.chmod(0o755)
        if snapshot.parents:
            below = self._mounts.upper(snapshot.parents[0]).stat()
            os.chown(fs, below.st_uid, below.st_gid)
        if snapshot.info.kind == Kind.ACTIVE:
            (new / "work").mkdir(0o711)

    def _set_aside(self, path: Path) -> Path:
        """Give a directory without a record a name that no snapshot will want."""
        return path.rename(self._unused("old"))

    def _unused(self, kind: str) -> Path:
        return self._directory / f"{kind}-{secrets.token_hex(8)}"

    def _delete(self, directory: Path) -> None:
        """Delete files that no record needs, if there are any. What cannot be deleted is left to the next cleanup."""
        try:
            remove_tree(directory)
        except OSError as error:
            _log.warning("%s is left to the next cleanup: %s", directory, error)
