"""How do files of an image become a tar, with all their attributes?"""

from __future__ import annotations

import os
from typing import BinaryIO

import msgspec

from ..oci.errors import InvalidError, named
from ..tar.file_data import pieces
from ..tar.reader import Entry
from ..tar.writer import END, header_blocks, padding
from .browse import Node, walk
from .layer_files import Content


def write_tar(source: Node, content: Content, name: bytes, out: BinaryIO) -> None:
    """Write a node and its descendants as `name` (b"": only its entries); further names of a file become hard links.

    Raises the errors of reading, and InvalidError if the size of a file differs from the index.
    """
    written: dict[tuple[int, bytes], bytes] = {}
    for node in walk(source):
        path = b"/".join(filter(None, (name, node.path[len(source.path) :].lstrip(b"/"))))
        if not path:
            continue
        first = written.setdefault(node.origin, path)
        entry = _entry(node, path)
        if first != path and not node.is_directory:
            out.write(header_blocks(msgspec.structs.replace(entry, kind="h", size=0, target=first, xattrs={})))
            continue
        out.write(header_blocks(entry))
        if node.record.kind == "f":
            _write_data(node, content, out)
    out.write(END)


def _entry(node: Node, path: bytes) -> Entry:
    record = node.record
    return Entry(
        path=path,
        kind=record.kind,
        mode=record.mode,
        uid=record.uid,
        gid=record.gid,
        size=node.size,
        mtime_ns=record.mtime_ns,
        target=record.target if record.kind == "l" else b"",
        device=record.device,
        xattrs=record.xattrs,
    )


def _write_data(node: Node, content: Content, out: BinaryIO) -> None:
    fd = content.open(node)
    try:
        st, written = os.fstat(fd), 0
        if st.st_size == node.size:
            for piece in pieces(fd, st):
                out.write(piece.data)
                written += len(piece.data)
        if written != node.size:
            raise InvalidError(
                f"{named(node.path)}: its size is not what the layer's index says (see overlayfs verify)"
            )
    finally:
        os.close(fd)
    out.write(padding(node.size))
