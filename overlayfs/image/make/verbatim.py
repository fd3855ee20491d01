"""How does the tar of another tool become a layer unchanged? Its bytes are copied while its members are checked."""

from __future__ import annotations

from pathlib import Path

from ..layer.pack import LayerSummary, Output
from ..oci.errors import InvalidError
from ..oci.limits import DEFAULT_LIMITS, Limits
from ..tar.compression import CHUNK, Decompressed, open_decompressed
from ..tar.file_data import measure_data
from ..tar.reader import TarReader
from ..tar.tally import Room


class _Copied:
    """A source that copies the bytes to `out` as they are read."""

    def __init__(self, source: Decompressed, out: Output) -> None:
        self._source, self._out = source, out

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        if data:
            self._out.write(data)
        return data


def copy_layer(source: Path, out: Output, limits: Limits = DEFAULT_LIMITS) -> LayerSummary:
    """Copy the tar `source`, compressed or not, to `out`, uncompressed.

    Raises InvalidError for a member that a layer cannot hold, a path that occurs twice, or a hard link out of it.
    """
    with open(source, "rb", buffering=0) as raw:
        copied = _Copied(open_decompressed(raw, limits, str(source)), out)
        summary = _check(TarReader.of(copied, limits, str(source)), source, Room(limits, str(source)))
        while copied.read(CHUNK):
            pass  # what follows the end of the archive belongs to the diffID
    return summary


def _check(members: TarReader, source: Path, room: Room) -> LayerSummary:
    summary, paths = LayerSummary(), set[bytes]()
    for entry in members:
        if entry.path in paths:
            raise InvalidError(f"{source}: {_shown(entry.path)} is there twice: unpack it and append the directory")
        if entry.kind == "h" and entry.target not in paths:
            raise InvalidError(f"{source}: {_shown(entry.path)} is a hard link to {_shown(entry.target)}, not in it")
        paths.add(entry.path)
        summary.added += 1
        if entry.kind == "f":
            summary.content += entry.size
            measure_data(entry, members.read_data(), room)
    return summary


def _shown(path: bytes) -> str:
    return "/" + path.decode(errors="backslashreplace")
