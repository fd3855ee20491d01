"""What a client sees of a whole tree, and how it differs from what a case expects."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from .client import Client, Stat
from .tree import Kind, Node, Tree, expand, link_groups


@dataclass(frozen=True, slots=True)
class Seen:
    """One object as a client sees it; `data` is the content or the link's target."""

    kind: Kind
    attributes: Stat
    data: bytes
    xattrs: dict[str, bytes]
    listed_ino: int


View = dict[str, Seen]


def look(client: Client) -> View:
    """Walk the tree from its root and read everything in it."""
    root = client.stat("")
    view: View = {"": Seen(Kind.DIRECTORY, root, b"", _xattrs(client, ""), root.ino)}
    _walk(client, "", view)
    return view


def _walk(client: Client, path: str, view: View) -> None:
    entries = client.entries(path)
    names = [entry.name for entry in entries]
    assert len(names) == len(set(names)), f"{path}: a name is listed twice: {sorted(names)}"
    for entry in entries:
        if entry.name in (b".", b".."):
            continue
        inner = f"{path}/{os.fsdecode(entry.name)}" if path else os.fsdecode(entry.name)
        view[inner] = see_one(client, inner, entry.ino)
        if view[inner].kind is Kind.DIRECTORY:
            _walk(client, inner, view)


def see_one(client: Client, path: str, listed_ino: int | None = None) -> Seen:
    """One object, without what is below it."""
    attributes = client.stat(path)
    kind = Kind(stat.S_IFMT(attributes.mode))
    data = b""
    if kind is Kind.FILE:
        data = client.content(path)
    elif kind is Kind.SYMLINK:
        data = client.readlink(path)
    return Seen(kind, attributes, data, _xattrs(client, path), listed_ino or attributes.ino)


def _xattrs(client: Client, path: str) -> dict[str, bytes]:
    return {name: client.getxattr(path, name) for name in client.listxattr(path)}


def differences(tree: Tree, view: View) -> list[str]:
    """Every way in which the view is not what the tree says, as lines for a person."""
    wanted = expand(tree)
    wanted.setdefault("", Node(Kind.DIRECTORY, mode=0o755))
    lines = [f"{path}: missing" for path in sorted(wanted.keys() - view.keys())]
    lines += [f"{path}: should not be there" for path in sorted(view.keys() - wanted.keys())]
    for path in sorted(wanted.keys() & view.keys()):
        lines += [f"{path}: {line}" for line in node_differences(wanted[path], view[path])]
    for group in link_groups(tree):
        inos = {path: view[path].attributes.ino for path in group if path in view}
        if len(set(inos.values())) > 1:
            lines.append(f"not one inode: {inos}")
    return lines


def node_differences(node: Node, seen: Seen) -> list[str]:
    """Every field of the object that is not the node's."""
    if seen.kind is not node.kind:
        return [f"is {seen.kind.name}, not {node.kind.name}"]
    facts = seen.attributes
    pairs: list[tuple[str, object, object]] = [("owner", (node.uid, node.gid), (facts.uid, facts.gid))]
    if node.kind is not Kind.SYMLINK:
        pairs.append(("mode", oct(node.mode), oct(facts.permissions)))
    if node.kind in (Kind.CHAR, Kind.BLOCK):
        pairs.append(("device", node.rdev, (os.major(facts.rdev), os.minor(facts.rdev))))
    if node.kind in (Kind.FILE, Kind.SYMLINK):
        pairs.append(("size", len(node.content), facts.size))
        pairs.append(("content", _brief(node.content), _brief(seen.data)))
        if node.content != seen.data and _brief(node.content) == _brief(seen.data):
            pairs.append(("whole content", "as expected", "different"))
    if node.xattrs is not None:
        pairs.append(("xattrs", dict(node.xattrs), seen.xattrs))
    pairs += _times(node, facts)
    if node.nlink is not None:
        pairs.append(("nlink", node.nlink, facts.nlink))
    return [f"{what} is {found!r}, not {want!r}" for what, want, found in pairs if want != found]


def _times(node: Node, facts: Stat) -> Iterable[tuple[str, object, object]]:
    if node.mtime is not None:
        yield "mtime", node.mtime, facts.mtime
    if node.atime is not None:
        yield "atime", node.atime, facts.atime


def _brief(data: bytes) -> bytes:
    return data if len(data) <= 200 else data[:100] + b"..." + data[-97:]


def unsteady_inodes(view: View) -> list[str]:
    """Entries whose listing and attributes give different inode numbers."""
    return [
        f"{path}: d_ino {seen.listed_ino}, st_ino {seen.attributes.ino}"
        for path, seen in view.items()
        if seen.listed_ino != seen.attributes.ino
    ]


def shared_inodes(tree: Tree, view: View) -> list[str]:
    """Objects that have one inode number although the tree does not say they are one."""
    links = {path: frozenset(group) for group in link_groups(tree) for path in group}
    owners: dict[int, str] = {}
    lines = []
    for path, seen in view.items():
        other = owners.setdefault(seen.attributes.ino, path)
        if other != path and other not in links.get(path, frozenset()):
            lines.append(f"{path} and {other} share inode {seen.attributes.ino}")
    return lines


def changes(before: View, after: View) -> list[str]:
    """What a remount has changed; atime may change, for reading the tree may set it."""
    lines = [f"{path}: came or went" for path in sorted(before.keys() ^ after.keys())]
    for path in sorted(before.keys() & after.keys()):
        old, new = _lasting(before[path]), _lasting(after[path])
        lines += [f"{path}: {key} was {old[key]!r}, is {new[key]!r}" for key in old if old[key] != new[key]]
    return lines


def _lasting(seen: Seen) -> dict[str, object]:
    facts = seen.attributes
    lasting: dict[str, object] = {
        "kind": seen.kind,
        "ino": facts.ino,
        "mode": facts.mode,
        "owner": (facts.uid, facts.gid),
        "rdev": facts.rdev,
        "mtime": facts.mtime,
        "data": seen.data,
        "xattrs": seen.xattrs,
    }
    if seen.kind is not Kind.DIRECTORY:
        lasting.update(nlink=facts.nlink, size=facts.size)
    return lasting
