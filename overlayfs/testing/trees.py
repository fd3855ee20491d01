"""Which mounted trees does a test session have, and how does each test get a clean one?

One mount for each stack of layers. It has a snapshot from before the first test, and goes back to that after each; a
mount that cannot (a test left a program running in it) is replaced, and the test that left it so has an error.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from overlayfs.api import Mount, StrPath, mount, mount_image
from overlayfs.fuse import throwaway
from overlayfs.fuse.status import read_facts
from overlayfs.overlay.changes import Change

CLEAN: Final = "clean"
_MOST_LINES: Final = 100

Content = str | bytes | Path | None


class Source(NamedTuple):
    """What a tree is made of: layers, top first, or an image."""

    lowers: tuple[Path, ...] = ()
    image: str = ""

    def mount(self, mountpoint: Path | None = None, **options: Any) -> Mount:
        return (
            mount_image(self.image, mountpoint, **options) if self.image else mount(self.lowers, mountpoint, **options)
        )


def source_of(lowers: Sequence[StrPath] = (), image: str = "", *, base: StrPath = ".") -> Source:
    """What a marker names; relative paths start at `base`."""
    if image and lowers:
        raise TypeError("overlay: name either an image or layers")
    if isinstance(lowers, str | bytes | os.PathLike):
        raise TypeError("overlay: lowers is a list of directories")
    return Source(tuple(Path(base, lower).absolute() for lower in lowers), image)


class Tree:
    """A mounted tree: `path` is its root, and `tree / "etc/motd"` a file in it. `kept` is the directory that outlives
    it if its test fails."""

    def __init__(self, source: Source, mounted: Mount, kept: Path | None) -> None:
        self.source = source
        self.mount = mounted
        self.path = mounted.path
        self.kept = kept
        self.has_failed = False

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def changes(self) -> list[Change]:
        """What the test has changed, in the order of paths."""
        return self.mount.changes(since=CLEAN)

    @property
    def changed(self) -> set[str]:
        """The paths of that; directories of which only the times changed are left out."""
        return {os.fsdecode(change.path) for change in self.changes}

    @contextmanager
    def transaction(self) -> Iterator[str]:
        """A block whose changes are undone at its end."""
        with self.mount.transaction() as snapshot:
            yield snapshot

    def describe_failure(self) -> str:
        """The changes as text; where the tree is kept, the command that mounts it again. Never fails."""
        self.has_failed = True
        try:
            return "\n".join([*(self._lines() or ["none"]), *self._how_to_look()])
        except Exception as error:  # noqa: BLE001 - whatever the test did to the mount
            return f"not known: {error}"

    def _lines(self) -> list[str]:
        changes = self.changes
        lines = [f"{change.kind.value} /{_printable(change.path)}" for change in changes[:_MOST_LINES]]
        return lines + ([f"and {len(changes) - _MOST_LINES} more"] if len(changes) > _MOST_LINES else [])

    def _how_to_look(self) -> list[str]:
        if self.kept is None:
            return ["(--overlay-keep keeps the tree)"]
        lowers = [word for lower in read_facts(bytes(self.path))["lowers"] for word in ("--lower", lower)]
        places = [str(self.kept / name) for name in ("mount", "upper", "work")]
        words = ["overlayfs", "mount", *lowers, places[0], "--upper", places[1], "--work", places[2]]
        return ["", f"The tree is kept. Look at it: {shlex.join(words)}"]


def _printable(path: bytes) -> str:
    """Any report can hold it: a terminal, and what pytest-xdist sends."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Trees:
    """The trees of one session; a context manager. `empty` is an empty layer, for those without others. With `keep` the
    trees of failed tests outlive it."""

    def __init__(self, empty: Path, *, keep: bool = False) -> None:
        self._empty = Source((empty,))
        self._keep = keep
        self._free: dict[Source, Tree] = {}
        self._all: list[Tree] = []

    def clean(self, source: Source) -> Tree:
        """The session's tree of this source, as it was at first."""
        if source not in self._free:
            self._free[source] = self._make(source)
        return self._free[source]

    def tree(self, lowers: Sequence[StrPath] = (), image: str = "") -> Tree:
        """A tree of its own."""
        return self._make(source_of(lowers, image))

    def give_back(self, tree: Tree) -> None:
        """Make it clean for the next test; one that is kept is replaced."""
        if tree.has_failed and tree.kept is not None:
            self._replace(tree)
            return
        try:
            tree.mount.rollback(CLEAN)
        except Exception:
            self._replace(tree)
            raise

    def _replace(self, tree: Tree) -> None:
        del self._free[tree.source]
        tree.mount.unmount()

    def _make(self, source: Source) -> Tree:
        tree = Tree(source, *self._mount(source if any(source) else self._empty))
        self._all.append(tree)
        tree.mount.snapshot(CLEAN)
        return tree

    def _mount(self, source: Source) -> tuple[Mount, Path | None]:
        if not self._keep:
            return source.mount(ephemeral=True), None
        kept = Path(tempfile.mkdtemp(prefix="overlay-kept-"))
        for name in ("mount", "upper", "work"):
            (kept / name).mkdir()
        with ExitStack() as undo:
            undo.callback(throwaway.remove, kept)
            mounted = source.mount(kept / "mount", upper=kept / "upper", work=kept / "work")
            undo.pop_all()
        return mounted, kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tree in self._all:
            tree.mount.unmount()
            if tree.kept is not None and not tree.has_failed:
                throwaway.remove(tree.kept)


def write_layer(root: Path, files: Mapping[str, Content]) -> Path:
    """Fill a directory with these files."""
    root.chmod(0o755)
    for name, content in files.items():
        place = root / name
        if not place.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{name} is outside of the layer")
        place.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            place.mkdir(exist_ok=True)
        elif isinstance(content, Path):
            place.symlink_to(content)
        else:
            place.write_bytes(content.encode() if isinstance(content, str) else content)
    return root
