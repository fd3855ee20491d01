"""Files are written with holes where their bytes are zeros, and read without reading the holes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import xxhash

from overlayfs.image.oci.errors import LimitError
from overlayfs.image.oci.limits import DEFAULT_LIMITS, Limits
from overlayfs.image.tar.file_data import pieces, size_on_disk, write_data
from overlayfs.image.tar.reader import Entry
from overlayfs.image.tar.tally import Room

BLOCK = 64 << 10
NOISE = random.Random(7).randbytes(200_000)
CONTENTS = {
    "empty": b"",
    "small zeros": bytes(100),
    "zeros": bytes(10 * BLOCK),
    "zeros of odd size": bytes(10 * BLOCK + 17),
    "data": NOISE,
    "hole in front": bytes(5 * BLOCK + 1) + NOISE,
    "hole at the end": NOISE + bytes(5 * BLOCK + 1),
    "hole between": NOISE + bytes(5 * BLOCK + 1) + NOISE,
    "one byte in each block": (b"x" + bytes(BLOCK - 1)) * 5,
    "one block in two": (bytes(BLOCK) + NOISE[:BLOCK]) * 4 + b"end",
}


def written(path: Path, content: bytes, step: int, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Write `content` in pieces of `step` bytes; what `write_data` says."""
    view = memoryview(content)
    entry = Entry(b"dir/file", "f", size=len(content))
    with open(path, "xb", buffering=0) as file:
        parts = (view[at : at + step] for at in range(0, len(content), step))
        return write_data(file.fileno(), entry, parts, Room(limits, "the layer"))


@pytest.mark.parametrize("step", [1000, 4096, BLOCK - 512, BLOCK, 1 << 20])
@pytest.mark.parametrize("name", CONTENTS)
def test_content_and_hash_are_those_of_the_bytes(name: str, step: int, tmp_path: Path) -> None:
    content = CONTENTS[name]
    assert written(tmp_path / "file", content, step) == xxhash.xxh3_128_digest(content)
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize(("name", "most"), [("zeros", 0), ("hole between", 2 * len(NOISE) + 2 * BLOCK)])
def test_zeros_take_no_disk(name: str, most: int, tmp_path: Path) -> None:
    written(tmp_path / "file", CONTENTS[name], 1 << 20)
    assert (tmp_path / "file").stat().st_blocks * 512 <= most


def test_file_that_would_take_too_much_is_refused_before_it_does(tmp_path: Path) -> None:
    limits = Limits(disk_size=1 << 20)
    written(tmp_path / "zeros", bytes(4 << 20), 1 << 16, limits)
    with pytest.raises(LimitError, match="'dir/file' makes it take more than 1048576 bytes"):
        written(tmp_path / "bomb", b"bomb" * (1 << 20), 1 << 16, limits)
    assert (tmp_path / "bomb").stat().st_size <= 1 << 20


@pytest.mark.parametrize("name", CONTENTS)
def test_pieces_are_the_bytes_of_a_file_with_or_without_holes(name: str, tmp_path: Path) -> None:
    written(tmp_path / "sparse", CONTENTS[name], 1 << 20)
    (tmp_path / "dense").write_bytes(CONTENTS[name])
    for path in (tmp_path / "sparse", tmp_path / "dense"):
        with open(path, "rb") as file:
            found = list(pieces(file.fileno(), os.fstat(file.fileno())))
        assert b"".join(piece.data for piece in found) == CONTENTS[name]
        assert sum(len(piece.data) for piece in found if not piece.is_hole) <= path.stat().st_blocks * 512 + 4096


@pytest.mark.parametrize("name", ["data", "zeros", "hole at the end", "hole between"])
def test_file_that_grew_is_as_long_as_it_was(name: str, tmp_path: Path) -> None:
    written(tmp_path / "file", CONTENTS[name], 1 << 20)
    st = (tmp_path / "file").stat()
    with open(tmp_path / "file", "r+b") as file:
        os.pwrite(file.fileno(), b"more", st.st_size + BLOCK)
        assert b"".join(piece.data for piece in pieces(file.fileno(), st)) == CONTENTS[name]


def test_file_that_shrank_ends_with_an_empty_piece(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(NOISE)
    with open(tmp_path / "file", "rb") as file:
        st = os.fstat(file.fileno())
        os.truncate(tmp_path / "file", 10)
        assert [bytes(piece.data) for piece in pieces(file.fileno(), st)] == [NOISE[:10], b""]


@pytest.mark.parametrize("step", [1 << 16, 100 * 512, 1 << 20])
def test_scattered_blocks_take_no_more_than_the_writer_of_the_layer_counted(step: int, tmp_path: Path) -> None:
    """Every second block is a hole: a layer that was written within the limits can be read within them."""
    content = b"".join(b"x" * 4096 if block % 2 else bytes(4096) for block in range(768))
    counted = size_on_disk(content, 0)
    assert counted == len(content) // 2
    written(tmp_path / "scattered", content, step, Limits(disk_size=counted))
    assert (tmp_path / "scattered").read_bytes() == content
    assert (tmp_path / "scattered").stat().st_blocks * 512 <= counted + (64 << 10)  # and its extents
