"""The ways in which a name can be there, or not be there, in a stack of two lower layers and an upper."""

from __future__ import annotations

from dataclasses import dataclass

from ..tree import Node, Tree, char, directory, fifo, file, opaque_dir, symlink, whiteout

LOW, MID, UP = file(b"low", 0o640, 5, 6), file(b"middle", 0o600), file(b"upper!", 0o604, 7, 8)


@dataclass(frozen=True, slots=True)
class State:
    """Trees hold paths relative to the name ("" is the name itself); `visible` is what shows."""

    id: str
    top: Tree
    bottom: Tree
    upper: Tree
    visible: Tree

    @property
    def exists(self) -> bool:
        return bool(self.visible)

    @property
    def is_directory(self) -> bool:
        return self.exists and ("" not in self.visible or self.visible[""] == directory())

    @property
    def is_full(self) -> bool:
        return any(self.visible.keys() - {""})

    @property
    def shows_lower(self) -> bool:
        """Whether something in a lower layer would show if the upper held nothing here."""
        if self.top.get("") == char(0, 0):
            return False
        return bool(self.top or self.bottom)


def at(name: str, tree: Tree) -> dict[str, Node]:
    """The tree with its relative paths put below `name`."""
    return {f"{name}/{path}" if path else name: node for path, node in tree.items()}


ABSENT = State("absent", {}, {}, {}, {})
STATES = [
    ABSENT,
    State("lower-file", {}, {"": LOW}, {}, {"": LOW}),
    State("upper-file", {}, {}, {"": UP}, {"": UP}),
    State("file-over-file", {"": MID}, {"": LOW}, {"": UP}, {"": UP}),
    State("lower-symlink", {}, {"": symlink("t")}, {}, {"": symlink("t")}),
    State("lower-fifo", {}, {"": fifo()}, {}, {"": fifo()}),
    State("lower-empty-directory", {}, {"": directory()}, {}, {"": directory()}),
    State("lower-full-directory", {}, {"a": LOW, "e/b": MID}, {}, {"a": LOW, "e/b": MID}),
    State("lower-merged-directory", {"m": MID}, {"a": LOW}, {}, {"m": MID, "a": LOW}),
    State("upper-empty-directory", {}, {}, {"": directory()}, {"": directory()}),
    State("upper-full-directory", {}, {}, {"u": UP, "e/v": UP}, {"u": UP, "e/v": UP}),
    State("merged-directory", {"m": MID}, {"a": LOW}, {"u": UP}, {"u": UP, "m": MID, "a": LOW}),
    State(
        "merged-directory-with-whiteout",
        {"m": MID},
        {"a": LOW, "b": LOW},
        {"b": whiteout()},
        {"m": MID, "a": LOW},
    ),
    State("emptied-directory", {}, {"a": LOW}, {"a": whiteout()}, {"": directory()}),
    State("opaque-directory", {}, {"a": LOW}, {"": opaque_dir(), "u": UP}, {"u": UP}),
    State("empty-opaque-directory", {}, {"a": LOW}, {"": opaque_dir()}, {"": directory()}),
    State("file-over-directory", {}, {"a": LOW}, {"": UP}, {"": UP}),
    State("directory-over-file", {}, {"": LOW}, {"": opaque_dir(), "u": UP}, {"u": UP}),
    State("deleted-file", {}, {"": LOW}, {"": whiteout()}, {}),
    State("deleted-directory", {}, {"a": LOW}, {"": whiteout()}, {}),
    State("deleted-in-the-middle", {"": char(0, 0)}, {"a": LOW}, {}, {}),
    State("file-over-middle-whiteout", {"": char(0, 0)}, {"": LOW}, {"": UP}, {"": UP}),
]
BY_ID = {state.id: state for state in STATES}
