"""What a tar has besides the data of its files: with these, the same tar comes out again."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from typing import Any

import pytest
import xxhash

from overlayfs.image.oci.limits import DEFAULT_LIMITS
from overlayfs.image.tar.crc64 import crc64
from overlayfs.image.tar.split import write_split

BIG = bytes(range(256)) * 9000


def tar_of(members: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind, errors="surrogateescape") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def split(
    tar: bytes, tree: dict[bytes, bytes], embedded: frozenset[bytes] = frozenset()
) -> tuple[list[dict[str, Any]], int, frozenset[bytes]]:
    """The lines of the record of a tar of which `tree` was made, the tar's length, and what is to be embedded."""
    out, hashes = io.BytesIO(), {path: xxhash.xxh3_128_digest(data) for path, data in tree.items()}
    chunks = (tar[start : start + 7000] for start in range(0, len(tar), 7000))
    found = write_split(chunks, out, DEFAULT_LIMITS, "the layer", hashes, embedded)
    return [json.loads(line) for line in out.getvalue().splitlines()], found.length, found.unlike


def assembled(lines: list[dict[str, Any]], files: dict[bytes, bytes]) -> bytes:
    """The tar as tar-split makes it (tar/asm/assemble.go), of a tree of files."""
    out = bytearray()
    for number, line in enumerate(lines):
        assert line["position"] == number
        payload = base64.b64decode(line["payload"])
        if line["type"] == 1:
            data = files[base64.b64decode(line["name_raw"]) if "name_raw" in line else line["name"].encode()]
            assert (line["size"], payload) == (len(data), crc64(data).to_bytes(8, "big"))
            payload = data
        out += payload
    return bytes(out)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_same_tar_comes_out_again(kind: int) -> None:
    members = [("./a", b"a"), ("empty", b""), ("d/" + "long" * 20, BIG), ("d/.wh.gone", b"x"), ("\udcff", b"raw")]
    tar = tar_of(members, kind) + bytes(3000)
    tree = {b"a": b"a", b"d/" + b"long" * 20: BIG, b"\xff": b"raw"}
    lines, length, unlike = split(tar, tree)
    assert assembled(lines, tree) == tar
    assert length == len(tar)
    assert not unlike
    assert sum(line["type"] == 1 for line in lines) == 3


@pytest.mark.parametrize("last", [b"second", b"first"])
def test_file_that_another_replaces_is_embedded(last: bytes) -> None:
    tar = tar_of([("a", b"first"), ("b", b"b"), ("gone/c", b"c"), ("a", last)])
    _, _, unlike = split(tar, {b"a": last, b"b": b"b"})
    assert unlike == {b"a"}
    lines, length, _ = split(tar, {b"a": last, b"b": b"b"}, unlike)
    assert assembled(lines, {b"b": b"b"}) == tar
    assert length == len(tar)


def test_checksum_is_the_one_of_iso_3309() -> None:
    assert crc64(b"123456789") == 0xB90956C775A41001  # the check value of CRC-64/GO-ISO
    assert crc64(b"6789", crc64(b"12345")) == crc64(b"123456789")
    assert crc64(b"", 5) == 5
