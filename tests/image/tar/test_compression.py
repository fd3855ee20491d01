"""Compressed streams: told by their magic, whole or refused, never larger than allowed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random

import pytest
import zstandard

from overlayfs.image.oci.errors import InvalidError, LimitError
from overlayfs.image.oci.limits import Limits
from overlayfs.image.tar.compression import open_compressed, open_decompressed

DATA = random.Random(1).randbytes(200_000) + bytes(1 << 20) + b"end"
KINDS = [None, "gzip", "zstd"]
SKIPPABLE = b"\x55\x2a\x4d\x18\x03\x00\x00\x00abc"


def pack(data: bytes, kind: str | None, piece: int = 70_000) -> bytes:
    out = io.BytesIO()
    with open_compressed(out, kind) as writer:
        for at in range(0, len(data), piece):
            writer.write(memoryview(data)[at : at + piece])
    return out.getvalue()


class Trickle:
    """A source that gives a few bytes at a time, as pipes do."""

    def __init__(self, data: bytes, step: int) -> None:
        self._raw, self._step = io.BytesIO(data), step

    def read(self, size: int) -> bytes:
        return self._raw.read(min(size, self._step))


def unpack(data: bytes, limits: Limits | None = None, step: int = 1 << 20) -> bytes:
    stream = open_decompressed(Trickle(data, step), limits or Limits(), "x.tar")
    out = bytearray()
    while piece := stream.read(100_000):
        out += piece
    assert stream.size == len(out)
    return bytes(out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_what_is_packed_is_unpacked(kind: str | None, step: int) -> None:
    assert unpack(pack(DATA, kind), step=step) == DATA
    assert unpack(pack(b"", kind)) == b""


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_packing_is_deterministic(kind: str) -> None:
    packed = pack(DATA, kind)
    assert packed == pack(DATA, kind)
    assert kind != "gzip" or packed[3:8] == bytes(5)  # no name, no time


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_told_by_magic(kind: str | None) -> None:
    stream = open_decompressed(io.BytesIO(pack(DATA, kind)))
    assert stream.compression == kind
    while stream.read():
        pass
    assert stream.consumed == len(pack(DATA, kind))


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(gzip.compress(DATA) + gzip.compress(DATA), id="gzip members"),
        pytest.param(zstandard.compress(DATA) + zstandard.compress(DATA), id="zstd frames"),
        pytest.param(SKIPPABLE + zstandard.compress(DATA) + SKIPPABLE + zstandard.compress(DATA), id="skippable"),
        pytest.param(gzip.compress(DATA) + gzip.compress(b"") + gzip.compress(DATA), id="empty member"),
        pytest.param(gzip.compress(DATA + DATA) + bytes(1000), id="zeros behind"),
    ],
)
def test_streams_may_follow_each_other(packed: bytes) -> None:
    assert unpack(packed) == DATA + DATA


@pytest.mark.parametrize("level", [1, 3, 19])
@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("size", [0, 1, 300, 70_000, len(DATA)])
def test_every_shape_of_zstd_frame(level: int, checksum: bool, size: int) -> None:
    for content_size in (False, True):
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=content_size)
        packed = compressor.compress(DATA[:size])
        assert unpack(packed + packed, step=777) == DATA[:size] * 2


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_every_cut_is_noticed(kind: str) -> None:
    packed = pack(DATA[:3000], kind)
    for size in range(6, len(packed), 7):
        with pytest.raises(InvalidError, match=r"x\.tar is damaged"):
            unpack(packed[:size])
    with pytest.raises(InvalidError, match="damaged"):
        unpack(packed[:-1])


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_damage_is_noticed(kind: str) -> None:
    packed = bytearray(pack(DATA, kind))
    packed[-3] ^= 1  # of a checksum, or what it is of
    with pytest.raises(InvalidError, match="damaged"):
        unpack(bytes(packed))


@pytest.mark.parametrize("packed", [gzip.compress(DATA) + b"rubbish", zstandard.compress(DATA) + b"rubbish!"])
def test_rubbish_behind_is_refused(packed: bytes) -> None:
    with pytest.raises(InvalidError, match="damaged"):
        unpack(packed)


def test_gzip_header_without_end_is_refused() -> None:
    with pytest.raises(InvalidError, match="damaged"):
        unpack(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (2 << 20))


@pytest.mark.parametrize("packed", [bz2.compress(DATA), lzma.compress(DATA)])
def test_other_compressions_are_named(packed: bytes) -> None:
    with pytest.raises(InvalidError, match="only gzip and zstd"):
        unpack(packed)
    with pytest.raises(InvalidError, match="use gzip or zstd"):
        open_compressed(io.BytesIO(), "bzip2")


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_bomb_is_refused(kind: str) -> None:
    """1 GiB of zeros in a small file; it is refused long before the end."""
    out = io.BytesIO()
    with open_compressed(out, kind) as writer:
        for _ in range(1 << 10):
            writer.write(bytes(1 << 20))
    assert len(out.getvalue()) < 5 << 20
    stream = open_decompressed(io.BytesIO(out.getvalue()), Limits(full_size=8 << 20, members=8))
    buffer = bytearray(1 << 20)
    with pytest.raises(LimitError, match="the limit for a layer"):
        sum(iter(lambda: stream.readinto(buffer), 0))
    assert stream.size < 64 << 20


def test_size_is_limited() -> None:
    with pytest.raises(LimitError, match="the limit for a layer"):
        unpack(DATA, Limits(full_size=1000, members=0))


def test_window_is_limited() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24, compression_level=3)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(DATA) + compressor.flush()
    assert unpack(packed) == DATA
    with pytest.raises(InvalidError, match="damaged"):
        unpack(packed, Limits(window_size=1 << 20))
