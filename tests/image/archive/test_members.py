"""Archives as tools leave them: names twice, strangers in them, holes, and an index that is broken."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from msgspec.structs import replace

from overlayfs.image.archive.load import load
from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.errors import ImageError, LimitError
from overlayfs.image.oci.limits import DEFAULT_LIMITS
from overlayfs.image.store.store import Store
from tests.image.archive.test_load_save import is_untouched, layout, names, spread, tampered_blobs
from tests.image.making import docker_files, tar, whole

A, B = tar({"a": b"a" * 5000}), tar({"b": b"b"})


def test_of_several_members_of_one_name_the_last_counts(store: Store) -> None:
    """As where docker extracts the archive, and tar."""
    old, new = docker_files(["old:1"], A), docker_files(["new:1"], A, B)
    images = load(store, io.BytesIO(tar([*old.items(), *new.items(), ("./manifest.json", new["manifest.json"])])))
    assert names(images) == ["new:1"]
    assert [layer.digest for layer in images[0].manifest.layers] == [digest_of(A), digest_of(B)]


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_blob_may_be_there_twice(store: Store, known: bool) -> None:
    """The blob is one that the store has, or not."""
    members = [*layout(None).finished().items()]
    if known:
        load(store, io.BytesIO(tar(members)))
    (image,) = load(store, io.BytesIO(tar(members + members)))
    assert whole(store, image)
    assert os.listdir(store.path / "tmp") == []


def test_link_is_replaced_by_a_file_of_its_name(store: Store) -> None:
    files = docker_files(["x:1"], A)
    (layer,) = json.loads(files["manifest.json"])[0]["Layers"]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(layer)
        member.type, member.linkname = tarfile.SYMTYPE, "../elsewhere"
        archive.addfile(member)
    (image,) = load(store, io.BytesIO(out.getvalue()[:512] + tar(files)))
    assert [layer.digest for layer in image.manifest.layers] == [digest_of(A)]


@pytest.mark.parametrize("name", ["a/b/c/d", "usr/share/doc/x/copyright", "blobs/sha256/x/y"])
def test_what_lies_deep_in_an_archive_is_passed_over(store: Store, name: str) -> None:
    for files in (docker_files(["x:1"], A), layout().finished()):
        assert names(load(store, io.BytesIO(tar({name: b"x", **files})))) == ["x:1"]


SPARSE_TARS = {
    "old GNU": ("--format=gnu",),
    "pax 0.0": ("--format=posix", "--sparse-version=0.0"),
    "pax 0.1": ("--format=posix", "--sparse-version=0.1"),
    "pax 1.0": ("--format=posix", "--sparse-version=1.0"),
}


@pytest.mark.parametrize("form", SPARSE_TARS)
def test_archive_that_tar_made_sparse(store: Store, tmp_path: Path, form: str) -> None:
    """`tar -S` finds holes in layers that hold zeros; digests are of the content with zeros."""
    layer = tar({"a": b"x" + bytes(2 << 20) + b"y" + bytes(1 << 20)})
    files = docker_files(["x:1"], layer)
    spread(files, tmp_path / "files")
    (path,) = json.loads(files["manifest.json"])[0]["Layers"]
    holes = tmp_path / "files" / path
    with open(holes, "wb") as file:
        file.truncate(len(layer))
        for start in range(0, len(layer), 4096):
            if any(layer[start : start + 4096]):
                os.pwrite(file.fileno(), layer[start : start + 4096], start)
    command: list[str | Path] = ["tar", "-cSf", tmp_path / "x.tar", *SPARSE_TARS[form], "-C", tmp_path / "files", "."]
    subprocess.run(command, check=True)
    assert (tmp_path / "x.tar").stat().st_size < len(layer) // 10
    (image,) = load(store, tmp_path / "x.tar")
    (blob,) = image.manifest.layers
    assert (blob.digest, store.read_blob(blob)) == (digest_of(layer), layer)
    assert store.blob_path(blob.digest).stat().st_blocks * 512 < len(layer) // 10


def test_sparse_bomb_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "layer").touch()
    os.truncate(tmp_path / "layer", 1 << 38)
    subprocess.run(["tar", "-cSf", tmp_path / "x.tar", "-C", tmp_path, "layer"], check=True)
    with pytest.raises(LimitError, match="'layer' has holes and 274877906944 bytes"):
        load(store, tmp_path / "x.tar")
    assert is_untouched(store)


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"{}", b"[]", b"null", b"\xff", b" " * (5 << 20), b'{"schemaVersion": 2, "manifests": null}']
)
@pytest.mark.parametrize("as_directory", [False, True], ids=["archive", "directory"])
def test_broken_index_beside_a_good_manifest_does_no_harm(
    store: Store, tmp_path: Path, broken: bytes, as_directory: bool
) -> None:
    files, told = docker_files(["x:1"], A) | {"index.json": broken}, list[str]()
    spread(files, tmp_path / "files")
    source = tmp_path / "files" if as_directory else io.BytesIO(tar(files))
    assert names(load(store, source, tell=told.append)) == ["x:1"]
    is_empty = b"schemaVersion" in broken
    assert [line.endswith("; manifest.json is read instead") for line in told] == ([] if is_empty else [True])


def test_good_index_counts_more_than_manifest_json(store: Store) -> None:
    files = docker_files(["docker:1"], A) | layout().finished()
    assert names(load(store, io.BytesIO(tar(files)))) == ["x:1"]


def test_damaged_blob_of_a_good_index_is_no_reason_to_read_manifest_json(store: Store) -> None:
    files = docker_files(["docker:1"], A) | tampered_blobs(layout().finished())
    with pytest.raises(ImageError, match="other content"):
        load(store, io.BytesIO(tar(files)))
    assert is_untouched(store)


def test_large_root_filesystem_is_said_to_be_none_of_an_image(store: Store) -> None:
    """It has more members than any image archive, before it is known that nothing of an image is among them."""
    root = tar({f"usr/share/doc/{number}/copyright": b"" for number in range(20)})
    with pytest.raises(LimitError, match=r"more than 10 members.*; a root filesystem is taken in by import"):
        load(store, io.BytesIO(root), limits=replace(DEFAULT_LIMITS.of_archive, members=10))
    assert is_untouched(store)
