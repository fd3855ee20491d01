"""Which snapshots are there? Names, parents, kinds, labels and usage, in one SQLite database.

A transaction is durable when it returns (WAL, synchronous FULL), and a parent in use cannot go (foreign keys). All
methods may be called from any thread: one lock makes them take turns, as SQLite's writers do anyway. Knows nothing of
directories: an id is the name of a snapshot's directory, and no id is ever given twice.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_MAX_LABEL_BYTES = 4096  # of a name and its value together: containerd's labels.Validate
_VERSION = 1
_SCHEMA = f"""
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshots (id),
    kind INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
    labels TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX children ON snapshots (parent);
PRAGMA user_version = {_VERSION};
"""
_SELECT = """
SELECT own.id, own.name, above.name, own.kind, own.labels, own.created_ns, own.updated_ns
FROM snapshots AS own LEFT JOIN snapshots AS above ON above.id = own.parent
"""
_LINEAGE = """
WITH RECURSIVE lineage (id, parent, depth) AS (
    SELECT id, parent, 0 FROM snapshots WHERE id = ?
    UNION ALL
    SELECT above.id, above.parent, depth + 1 FROM snapshots AS above JOIN lineage ON above.id = lineage.parent
)
SELECT id FROM lineage WHERE depth > 0 ORDER BY depth
"""


class SnapshotError(Exception):
    """A request that cannot be carried out; the text is for the client."""


class AlreadyExists(SnapshotError):
    """The name is taken."""


class NotFound(SnapshotError):
    """There is no snapshot of that name."""


class FailedPrecondition(SnapshotError):
    """The snapshot is of another kind than the request needs, or has children."""


class InvalidArgument(SnapshotError):
    """The request itself is wrong."""


class Kind(IntEnum):
    """What a snapshot is, by the numbers of containerd's snapshots.proto."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot itself takes on disk, without its parents."""

    size: int
    inodes: int


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot as clients see it; times in nanoseconds since the epoch, no parent is an empty name."""

    name: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]
    created_ns: int
    updated_ns: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot with its id and the ids of its parents, the nearest first."""

    id: int
    info: Info
    parents: Sequence[int]


class Metadata:
    """The database in a file, made where there is none if it `may_be_new`."""

    def __init__(self, path: Path, *, may_be_new: bool) -> None:
        self._turn = threading.RLock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._open(path, may_be_new)
        except BaseException:
            self._database.close()
            raise

    def _open(self, path: Path, may_be_new: bool) -> None:
        try:
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise SnapshotError(f"{path}: {error}: put a copy of it back") from None
        if version not in (0, _VERSION):
            raise SnapshotError(f"{path} has version {version}, and this program knows version {_VERSION}")
        if version == 0 and not may_be_new:
            raise SnapshotError(f"{path} is empty or missing, but there are snapshots: put a copy back, or remove them")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA foreign_keys = ON")
        if version == 0:
            self._database.executescript(f"BEGIN; {_SCHEMA} COMMIT;")

    def close(self) -> None:
        """Close the file; SQLite then folds its log into it."""
        with self._turn:
            self._database.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Change the database as a whole or not at all; other threads wait. The caller's own calls join in."""
        with self._turn:
            if self._database.in_transaction:
                yield
                return
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                self._database.rollback()  # nothing where a COMMIT that failed, as on a full disk, has done so
                raise

    def create(self, kind: Kind, name: str, parent: str, labels: Mapping[str, str]) -> Snapshot:
        """Add an active snapshot or a view; AlreadyExists, or NotFound or InvalidArgument for the parent."""
        _check_name(name)
        _check_labels(labels)
        now = time.time_ns()
        with self.writing():
            parent_id = self._committed_id(parent) if parent else None
            if self._find(name):
                raise AlreadyExists(f"snapshot {name}: already exists")
            self._database.execute(
                "INSERT INTO snapshots (name, parent, kind, labels, created_ns, updated_ns) VALUES (?, ?, ?, ?, ?, ?)",
                (name, parent_id, kind, _encoded(labels), now, now),
            )
            return self.snapshot(name)

    def _committed_id(self, parent: str) -> int:
        found = self._find(parent)
        if not found:
            raise NotFound(f"parent snapshot {parent}: not found")
        if found[1].kind != Kind.COMMITTED:
            raise InvalidArgument(f"parent snapshot {parent} is not committed")
        return found[0]

    def commit(self, key: str, name: str, labels: Mapping[str, str], usage: Usage) -> None:
        """Make an active snapshot a committed one of another name; its labels are replaced."""
        _check_labels(labels)
        now = time.time_ns()
        with self.writing():
            active = self.committable(key, name)
            self._database.execute(
                "UPDATE snapshots SET name = ?, kind = ?, labels = ?, created_ns = ?, updated_ns = ?,"
                " size = ?, inodes = ? WHERE id = ?",
                (name, Kind.COMMITTED, _encoded(labels), now, now, usage.size, usage.inodes, active.id),
            )

    def committable(self, key: str, name: str) -> Snapshot:
        """The active snapshot, where it can be committed under the name; else the error that a commit raises."""
        _check_name(name)
        with self._turn:
            if self._find(name):
                raise AlreadyExists(f"committed snapshot {name}: already exists")
            active = self.snapshot(key)
        if active.info.kind != Kind.ACTIVE:
            raise FailedPrecondition(f"snapshot {key} is not active")
        return active

    def mountable(self, key: str) -> Snapshot:
        """An active snapshot or a view; FailedPrecondition for a committed one."""
        snapshot = self.snapshot(key)
        if snapshot.info.kind == Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key} is neither active nor a view")
        return snapshot

    def remove(self, name: str) -> int:
        """Forget a snapshot without children; the id it had."""
        with self.writing():
            number, _ = self._get(name)
            if self._database.execute("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1", (number,)).fetchone():
                raise FailedPrecondition(f"cannot remove snapshot {name}: it has children")
            self._database.execute("DELETE FROM snapshots WHERE id = ?", (number,))
        return number

    def relabel(self, name: str, labels: Mapping[str, str], only: Sequence[str] | None = None) -> Info:
        """Replace the labels; with `only`, set these and remove those of them that are not given."""
        with self.writing():
            _, info = self._get(name)
            kept = {} if only is None else {label: info.labels[label] for label in info.labels if label not in only}
            given = {label: value for label, value in labels.items() if only is None or label in only}
            _check_labels(given)
            self._database.execute(
                "UPDATE snapshots SET labels = ?, updated_ns = ? WHERE name = ?",
                (_encoded({**kept, **given}), time.time_ns(), name),
            )
            return self.info(name)

    def info(self, name: str) -> Info:
        """A snapshot as clients see it, or NotFound."""
        return self._get(name)[1]

    def snapshot(self, name: str) -> Snapshot:
        """A snapshot with its lineage, or NotFound."""
        with self._turn:
            number, info = self._get(name)
            lineage = self._database.execute(_LINEAGE, (number,)).fetchall()
        return Snapshot(number, info, tuple(parent for (parent,) in lineage))

    def usage(self, name: str) -> Usage:
        """What the snapshot was found to take when it was committed; zeros before."""
        with self._turn:
            row = self._database.execute("SELECT size, inodes FROM snapshots WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NotFound(f"snapshot {name}: not found")
        return Usage(*row)

    def all(self) -> list[Info]:
        """Every snapshot, by name."""
        with self._turn:
            rows = self._database.execute(f"{_SELECT} ORDER BY own.name").fetchall()
        return [_info(row) for row in rows]

    def ids(self) -> set[int]:
        """The id of every snapshot."""
        with self._turn:
            return {number for (number,) in self._database.execute("SELECT id FROM snapshots")}

    def mountable_ids(self) -> set[int]:
        """The ids of the active snapshots and the views."""
        with self._turn:
            rows = self._database.execute("SELECT id FROM snapshots WHERE kind != ?", (Kind.COMMITTED,)).fetchall()
        return {number for (number,) in rows}

    def is_mountable(self, number: int) -> bool:
        """Whether the id is that of an active snapshot or a view."""
        with self._turn:
            row = self._database.execute("SELECT kind FROM snapshots WHERE id = ?", (number,)).fetchone()
        return row is not None and row[0] != Kind.COMMITTED

    def _get(self, name: str) -> tuple[int, Info]:
        found = self._find(name)
        if not found:
            raise NotFound(f"snapshot {name}: not found")
        return found

    def _find(self, name: str) -> tuple[int, Info] | None:
        with self._turn:
            row = self._database.execute(f"{_SELECT} WHERE own.name = ?", (name,)).fetchone()
        return (row[0], _info(row)) if row else None


def _info(row: tuple[int, str, str | None, int, str, int, int]) -> Info:
    _, name, parent, kind, labels, created_ns, updated_ns = row
    return Info(name, parent or "", Kind(kind), json.loads(labels), created_ns, updated_ns)


def _encoded(labels: Mapping[str, str]) -> str:
    """A label without a value is none: so containerd's own snapshotters keep them."""
    return json.dumps({label: value for label, value in labels.items() if value})


def _check_name(name: str) -> None:
    if not name:
        raise InvalidArgument("a snapshot needs a name")


def _check_labels(labels: Mapping[str, str]) -> None:
    for label, value in labels.items():
        if len(label.encode()) + len(value.encode()) > _MAX_LABEL_BYTES:
            raise InvalidArgument(f"label {label[:64]} and its value are longer than {_MAX_LABEL_BYTES} bytes")
