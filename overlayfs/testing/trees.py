"""Which mounted trees does a test session have, and how does each test get a clean one?

One mount for each stack of layers. It has a snapshot from before the first test, and goes back to that after each; a
mount that cannot (a test left a program running in it) is replaced, and the test that left it so has an error.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from overlayfs.api import Mount, StrPath, mount
from overlayfs.overlay.changes import Change

CLEAN: Final = "clean"
_MOST_LINES: Final = 100

Content = str | bytes | Path | None


class Tree:
    """A mounted tree: `path` is its root, and `tree / "etc/motd"` a file in it."""

    def __init__(self, mounted: Mount, lowers: Sequence[Path], kept: Path | None) -> None:
        self.mount = mounted
        self.path = mounted.path
        self.lowers = tuple(lowers)
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
        """The changes as text; where the tree is kept, the command that mounts it again."""
        self.has_failed = True
        changes = self.changes
        lines = [f"{change.kind.value} /{os.fsdecode(change.path)}" for change in changes[:_MOST_LINES]]
        lines += [f"and {len(changes) - _MOST_LINES} more"] if len(changes) > _MOST_LINES else []
        return "\n".join([*(lines or ["none"]), *self._how_to_look()])

    def _how_to_look(self) -> list[str]:
        if self.kept is None:
            return ["(--overlay-keep keeps the tree)"]
        lowers = [word for lower in self.lowers for word in ("--lower", str(lower))]
        places = [str(self.kept / name) for name in ("mount", "upper", "work")]
        words = ["overlayfs", "mount", *lowers, places[0], "--upper", places[1], "--work", places[2]]
        return ["", f"The tree is kept. Look at it: {shlex.join(words)}"]


class Trees:
    """The trees of one session; a context manager. `empty` is an empty layer, for those without others. With `keep` the
    trees of failed tests outlive it."""

    def __init__(self, empty: Path, *, keep: bool = False) -> None:
        self._empty = empty
        self._keep = keep
        self._free: dict[tuple[Path, ...], Tree] = {}
        self._all: list[Tree] = []

    def clean(self, lowers: Sequence[Path]) -> Tree:
        """The session's tree of these layers, as it was at first."""
        key = tuple(lowers) or (self._empty,)
        tree = self._free.get(key)
        if tree is None:
            tree = self._free[key] = self._mount(key)
            tree.mount.snapshot(CLEAN)
        return tree

    def tree(self, lowers: Sequence[Path] = ()) -> Tree:
        """A tree of its own."""
        tree = self._mount(tuple(lowers) or (self._empty,))
        tree.mount.snapshot(CLEAN)
        return tree

    def give_back(self, tree: Tree) -> None:
        """Make it clean for the next test; one that is kept is replaced."""
        if tree.has_failed and tree.kept is not None:
            del self._free[tree.lowers]
            tree.mount.unmount()
            return
        try:
            tree.mount.rollback(CLEAN)
        except Exception:
            del self._free[tree.lowers]
            tree.mount.unmount()
            raise

    def _mount(self, lowers: tuple[Path, ...]) -> Tree:
        kept = None
        if self._keep:
            kept = Path(tempfile.mkdtemp(prefix="overlay-kept-"))
            for name in ("mount", "upper", "work"):
                (kept / name).mkdir()
            mounted = mount(lowers, kept / "mount", upper=kept / "upper", work=kept / "work")
        else:
            mounted = mount(lowers, ephemeral=True)
        tree = Tree(mounted, lowers, kept)
        self._all.append(tree)
        return tree

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tree in self._all:
            tree.mount.unmount()
            if tree.kept is not None and not tree.has_failed:
                shutil.rmtree(tree.kept)


def lowers_of(lowers: Sequence[StrPath] = (), image: str | None = None) -> tuple[Path, ...]:
    """The layers that a marker names, top first."""
    if image is None:
        return tuple(Path(lower).absolute() for lower in lowers)
    if lowers:
        raise TypeError("overlay: name either an image or layers")
    from overlayfs.image.store.lowers import lower_directories
    from overlayfs.image.store.store import Store

    directory = os.environ.get("OVERLAYFS_STORE")
    with Store.open(Path(directory) if directory else None) as store:
        return tuple(lower_directories(store, store.find(image)))


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
