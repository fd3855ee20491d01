"""The corpus of hostile layers: each is refused or contained, and nothing outside of its root is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.layer.disk_format import Format, OverrideFormat, RealFormat
from overlayfs.image.layer.file_index import VERSION, LayerIndex, Record
from overlayfs.image.layer.tampering import differences
from overlayfs.image.layer.unpack import NeedsLowerLayersError, Unpacked, Unpacker
from overlayfs.image.oci.digest import digest_of
from overlayfs.image.tar.reader import TarReader
from overlayfs.tree import marks, xattrs
from tests.image.layer.hostile import headers, links, paths, whiteouts
from tests.image.layer.hostile.case import SMALL, Case
from tests.image.snapshot import snapshot

MODULES = (paths, links, whiteouts, headers)
CASES = [
    pytest.param(case, id=f"{module.__name__.rpartition('.')[2]}: {case.name}")
    for module in MODULES
    for case in module.CASES
]
FORMATS = (RealFormat, OverrideFormat)
CHUNK = 1000  # members lie across pieces


class Sandbox:
    """The root of a layer, and beside it a directory with a canary that the layer wants."""

    def __init__(self, top: Path) -> None:
        self.outside, self.root = top / "outside", top / "root"
        self.outside.mkdir()
        (self.outside / "canary").write_bytes(b"alive")
        self.root.mkdir()
        self._before = snapshot(self.outside)

    def unpack(self, data: bytes, disk_format: Format) -> Unpacked:
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            chunks = (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
            unpacked = Unpacker(root, disk_format, None, SMALL).run(TarReader(chunks, SMALL))
            index = LayerIndex(VERSION, digest_of(data), unpacked.size, unpacked.records)
            assert list(differences(root, index)) == []
            return unpacked
        finally:
            os.close(root)

    def check(self) -> None:
        assert snapshot(self.outside) == self._before
        assert sorted(os.listdir(self.root.parent)) == ["outside", "root"]


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path)
    yield sandbox
    sandbox.check()


@pytest.mark.parametrize("disk_format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_hostile_layer_is_refused_or_contained(
    case: Case, disk_format: type[RealFormat | OverrideFormat], sandbox: Sandbox
) -> None:
    if case.tree is None:
        with pytest.raises((case.error, NeedsLowerLayersError), match=case.words) as raised:
            sandbox.unpack(case.bytes, disk_format())
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
        assert str(raised.value).startswith("the layer")
        return
    unpacked = sandbox.unpack(case.bytes, disk_format())
    assert dict(told(unpacked, sandbox.root)) == case.tree
    check_marks(unpacked, sandbox.root, disk_format.spelling)


def told(unpacked: Unpacked, root: Path) -> Iterator[tuple[bytes, str]]:
    """The tree in the words of a case, without the directories above what is in it."""
    above = {record.path.rpartition(b"/")[0] for record in unpacked.records}
    for record in unpacked.records:
        if record.kind == "d" and (record.is_opaque or (record.path and record.path not in above)):
            yield record.path, "d!" if record.is_opaque else "d"
        elif record.kind != "d":
            yield record.path, _told(record, root)


def _told(record: Record, root: Path) -> str:
    match record.kind:
        case "f":
            return f"f:{(root / os.fsdecode(record.path)).read_text()}"
        case "l" | "h":
            return f"{record.kind}:{record.target.decode()}"
    return record.kind


def check_marks(unpacked: Unpacked, root: Path, spelling: marks.Spelling) -> None:
    """Only what the layer's own whiteouts say is marked on the disk."""
    for record in unpacked.records:
        if record.kind not in ("f", "d"):
            continue
        path = os.path.join(os.fsencode(root), record.path)
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            found = marks.read_marks_of_descriptor(fd, spelling)
            names = xattrs.list_xattrs_of_descriptor(fd)
        finally:
            os.close(fd)
        assert found.redirect is None and found.metacopy_value is None
        is_by_file = os.path.lexists(os.path.join(path, marks.OPAQUE_NAME))
        assert is_by_file == (record.is_opaque and not record.path)  # on a root the xattr means nothing
        assert (found.opacity is marks.Opacity.OPAQUE) == (record.is_opaque and bool(record.path))
        assert not any(prefix + marks.WHITEOUT in names for prefix in marks.PREFIXES)


def test_corpus_is_large() -> None:
    assert len(CASES) >= 150
    assert len({case.id for case in CASES}) == len(CASES)
