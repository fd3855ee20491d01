"""Where is the build context? A directory, a tar (of standard input too), or a git repository; and its ignore file."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...container.root_paths import Inside
from ...image.oci.errors import InvalidError, NotFoundError
from ...image.oci.limits import Limits
from ...image.store.store import Store
from ...image.tar.reader import TarReader
from .archives import decompressed, is_archive
from .patterns import Ignored
from .repositories import clone, repository_of
from .sources import Tree
from .writer import TreeWriter

STANDARD_INPUT: Final = "-"
_NAMES: Final = ("Containerfile", "Dockerfile")
_IGNORE_FILES: Final = (".containerignore", ".dockerignore")
_LARGEST: Final = 16 << 20
"""Bytes: more than a hundred thousand lines."""
_NO_FILE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
"""EINVAL is a directory, or another file that is not regular."""
_Read = tuple[str, str, Ignored]


@dataclass(frozen=True, slots=True)
class Context:
    """An open context: its directory, the tree to copy from, the text of the Dockerfile and the name for it."""

    path: Path
    tree: Tree
    text: str
    file: str


@contextmanager
def opened_context(store: Store, where: str, file: str | None) -> Iterator[Context]:
    """Open the context `where`; `file` is the Dockerfile, `-` for standard input. Raises ImageError, OSError."""
    with ExitStack() as stack:
        standard_input = _StandardInput() if STANDARD_INPUT in (where, file) else None
        if where == STANDARD_INPUT and file == STANDARD_INPUT:
            raise InvalidError("context and Dockerfile cannot both come from standard input")
        if where == STANDARD_INPUT and standard_input is not None and not standard_input.is_archive:
            path, text, name = stack.enter_context(store.staging()), standard_input.text(), "Dockerfile"
            ignored = Ignored()
        else:
            path = _directory(store, where, standard_input, stack)
            with Inside(os.fsencode(path)) as inside:
                text, name, ignored = _read(inside, path, file, standard_input)
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        yield Context(path, Tree(root, "the build context", ignored), text, name)


class _StandardInput:
    """Standard input, which is a Dockerfile or a tar."""

    def __init__(self) -> None:
        self._raw: io.BufferedReader = io.BufferedReader(io.FileIO(0, closefd=False), 1 << 16)
        self.is_archive = is_archive(self._raw)

    def text(self) -> str:
        return _text(self._raw.read(_LARGEST + 1), "standard input")

    def unpack(self, directory: Path, limits: Limits) -> None:
        _unpack(self._raw, directory, limits, "standard input", keeps_owners=False)


def _directory(store: Store, where: str, standard_input: _StandardInput | None, stack: ExitStack) -> Path:
    if where == STANDARD_INPUT:
        assert standard_input is not None
        staged = stack.enter_context(store.staging())
        standard_input.unpack(staged, store.limits)
        return staged
    repository = repository_of(where)
    if repository is not None:
        return clone(repository, stack.enter_context(store.staging()))
    path = Path(where).absolute()
    if path.is_file():
        staged = stack.enter_context(store.staging())
        unpack_file(path, staged, store.limits)
        return staged
    if not path.is_dir():
        raise NotFoundError(f"the build context {where} is no directory, tar or git repository")
    return path


def unpack_file(archive: Path, directory: Path, limits: Limits, *, keeps_owners: bool = False) -> None:
    """Unpack a tar beneath the directory. Without `keeps_owners` all is the caller's."""
    with open(archive, "rb") as raw:
        _unpack(raw, directory, limits, str(archive), keeps_owners=keeps_owners)


def _unpack(raw: io.BufferedReader, directory: Path, limits: Limits, what: str, *, keeps_owners: bool) -> None:
    with Inside(os.fsencode(directory)) as inside:
        writer = TreeWriter(inside, limits, keeps_owners=keeps_owners)
        reader = TarReader.of(decompressed(raw, limits, what), limits, what)
        for entry in reader:
            if entry.path:
                writer.put(b"/", entry, reader.read_data() if entry.kind == "f" else ())
        writer.finish()


def _read(inside: Inside, top: Path, file: str | None, standard_input: _StandardInput | None) -> _Read:
    """The text of the Dockerfile, what errors call it, and what its ignore file says."""
    in_context = [top / name for name in _IGNORE_FILES]
    if file == STANDARD_INPUT:
        assert standard_input is not None
        return standard_input.text(), "Dockerfile", _ignored(inside, in_context)
    candidates = _dockerfiles(top, file)
    found = _first(inside, candidates)
    if found is None:
        raise NotFoundError(f"{candidates[-1]} is no file, or leads out of the build context: name one with -f")
    path, data = found
    beside = [Path(f"{path}{suffix}") for suffix in _IGNORE_FILES]
    return _text(data, str(path)), file or path.name, _ignored(inside, [*beside, *in_context])


def _dockerfiles(top: Path, file: str | None) -> list[Path]:
    """Where the Dockerfile may be, the last place that of errors."""
    if file is None:
        return [top / name for name in _NAMES]
    given = Path(file)
    return [given.absolute() if given.exists() or given.is_absolute() else top / given]


def _ignored(inside: Inside, candidates: Sequence[Path]) -> Ignored:
    """That of `NAME.dockerignore` beside the Dockerfile, else of the context."""
    found = _first(inside, candidates)
    return Ignored() if found is None else Ignored.parse(_text(found[1], str(found[0])))


def _first(inside: Inside, candidates: Sequence[Path]) -> tuple[Path, bytes] | None:
    """The first file that is there, with its content."""
    for path in candidates:
        try:
            return path, _content(inside, path)
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
    return None


def _content(inside: Inside, path: Path) -> bytes:
    """The bytes of a file. No symlink leads out of the context; a file elsewhere was named by the user. Raises
    OSError."""
    context = os.fstat(inside.fd)
    for above in path.parents:
        if os.path.samestat(os.stat(above), context):
            return inside.read(os.fsencode(path.relative_to(above)), _LARGEST)
    with open(path, "rb") as raw:
        return raw.read(_LARGEST + 1)


def _text(data: bytes, what: str) -> str:
    if len(data) > _LARGEST:
        raise InvalidError(f"{what} has more than {_LARGEST} bytes, which is no Dockerfile")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidError(f"{what} is not UTF-8: {error}") from None
