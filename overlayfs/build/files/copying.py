"""What does COPY or ADD put where? Files of a tree, here-documents and downloads, with the rules for the destination.

Dockerfile reference, COPY and ADD: a directory gives its contents; several sources need a directory; a file goes into a
destination that is a directory or ends with a slash. ADD unpacks local archives.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from ...container.root_paths import Inside
from ...container.users import find_user
from ...image.oci.errors import InvalidError
from ...image.oci.limits import Limits
from ...image.tar.header import BLOCK
from ...image.tar.reader import Entry, TarReader
from ...tree.syscalls import open_in_root
from .archives import decompressed, is_tar
from .modes import parse_mode
from .patterns import Ignored
from .sources import Item, Tree, digest_items
from .writer import TreeWriter, renamed


@dataclass(frozen=True, slots=True)
class Copying:
    """One COPY or ADD, its variables expanded: paths of a tree, `texts` by file name, and the destination."""

    paths: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]
    target: str
    chown: str = ""
    chmod: str = ""
    keeps_parents: bool = False
    unpacks: bool = False
    excluded: Ignored = field(default_factory=Ignored)
    created_ns: int = 0

    @property
    def facts(self) -> str:
        """All options, for the key of a cache."""
        rules = [(is_out, rule.pattern) for is_out, rule in self.excluded.rules]
        where = (self.paths, self.texts, self.target, self.chown, self.chmod)
        return repr((where, self.keeps_parents, self.unpacks, rules))

    def with_paths(self, paths: tuple[str, ...], *, unpacks: bool) -> Copying:
        """The same, of these files alone."""
        return dataclasses.replace(self, paths=paths, texts=(), unpacks=unpacks)

    def digest(self, tree: Tree) -> str:
        """A digest of all that is to be copied from a tree; names of files count."""
        found = [
            (path, digest_items(tree.read(path, excluded=self.excluded)))
            for pattern in self.paths
            for path in tree.find(pattern)
        ]
        return repr(found)

    def do(self, tree: Tree | None, inside: Inside, limits: Limits) -> None:
        """Copy into the container. Raises ImageError, OSError."""
        paths = [(path, pattern) for pattern in self.paths for path in (tree.find(pattern) if tree else ())]
        writer = TreeWriter(inside, limits, self._edit(inside))
        is_directory = self.target.endswith("/") or writer.is_directory(self.target)
        if len(paths) + len(self.texts) > 1 and not is_directory:
            raise InvalidError(f"several files need a directory: write {self.target}/")
        made = writer.make_directories
        for path, pattern in paths:
            assert tree is not None
            if self.keeps_parents:
                self._copy_with_parents(tree, path, pattern, writer)
            else:
                self._copy(tree, path, writer, is_directory)
        for name, text in self.texts:
            data = text.encode("utf-8", "surrogateescape")
            entry = Entry(b"", "f", 0o644, size=len(data), mtime_ns=self.created_ns)
            above, own = self._place(name, is_directory)
            writer.put(made(above), replace(entry, path=own), [memoryview(data)])
        writer.finish()

    def _copy(self, tree: Tree, path: str, writer: TreeWriter, is_directory: bool) -> None:
        like = self._owner_of_new(writer)
        if tree.is_directory(path):
            top = writer.make_directories(os.fsencode(self.target), like)
            for entry, data in tree.read(path, excluded=self.excluded):
                if entry.path:
                    writer.put(top, entry, data)
        elif self.unpacks and (archive := _Archive.open(tree, path, writer.limits)) is not None:
            top = writer.make_directories(os.fsencode(self.target), like)
            for entry, data in archive.items():
                if entry.path:
                    writer.put(top, entry, data)
        else:
            above, name = self._place(posixpath.basename(path), is_directory)
            top = writer.make_directories(above, like)
            for entry, data in tree.read(path, excluded=self.excluded):
                writer.put(top, replace(entry, path=name), data)

    def _copy_with_parents(self, tree: Tree, path: str, pattern: str, writer: TreeWriter) -> None:
        """Copy below the destination with the directories of the path, of which those before `/./` are left out."""
        pivot = posixpath.normpath(pattern.partition("/./")[0].lstrip("/")) if "/./" in pattern else ""
        prefix = os.fsencode(path.removeprefix(pivot).lstrip("/"))
        top = writer.make_directories(os.fsencode(self.target), self._owner_of_new(writer))
        for entry, data in tree.read(path, excluded=self.excluded):
            if entry.path or prefix:
                writer.put(top, renamed(entry, prefix), data)

    def _place(self, name: str, is_directory: bool) -> tuple[bytes, bytes]:
        """The directory and the name of a copied file."""
        if is_directory:
            return os.fsencode(self.target), os.fsencode(name)
        return os.fsencode(posixpath.dirname(self.target)), os.fsencode(posixpath.basename(self.target))

    def _owner_of_new(self, writer: TreeWriter) -> Entry:
        """The owner of directories on the way that have to be made."""
        return writer.edited(Entry(b"", "d", 0o755))

    def _edit(self, inside: Inside) -> Any:
        change = parse_mode(self.chmod) if self.chmod else None
        owner = _owner(inside, self.chown) if self.chown else None

        def edit(entry: Entry) -> Entry:
            if owner is not None:
                entry = replace(entry, uid=owner[0], gid=owner[1])
            if change is not None and entry.kind not in "lh":
                entry = replace(entry, mode=change(entry.mode, entry.kind == "d"))
            return entry

        return edit


def _owner(inside: Inside, text: str) -> tuple[int, int]:
    """`USER[:GROUP]` as in the image; a bare number is the group too."""
    user = find_user(inside, text)
    is_bare_number = ":" not in text and text.isascii() and text.isdigit()
    return user.uid, user.uid if is_bare_number else user.gid


class _Archive:
    """A tar of the tree, whatever its compression."""

    def __init__(self, stream: Any, limits: Limits, path: str) -> None:
        self._stream, self._limits, self._path = stream, limits, path

    @classmethod
    def open(cls, tree: Tree, path: str, limits: Limits) -> _Archive | None:
        """None for a file that is no archive. The stream is closed with this process, which is a step's."""
        raw = open(open_in_root(tree.root, os.fsencode(path), os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115
        if not raw.seekable():
            return None
        has_tar = is_tar(_head_of(decompressed(raw, limits, path)))
        raw.seek(0)
        return cls(decompressed(raw, limits, path), limits, path) if has_tar else None

    def items(self) -> Iterator[Item]:
        """Its members. Raises InvalidError for names that lead out, and for every other fault."""
        reader = TarReader.of(self._stream, self._limits, self._path)
        for entry in reader:
            yield Item(entry, reader.read_data() if entry.kind == "f" else ())


def _head_of(stream: Any) -> bytes:
    """The first bytes; fewer than a header where the stream is short or broken."""
    head = b""
    try:
        while len(head) < BLOCK and (data := stream.read(BLOCK - len(head))):
            head += data
    except (InvalidError, OSError, EOFError):
        pass
    return head
