"""Archives of images: in from whatever wrote them, out the same, and nothing from what is not sound."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from overlayfs.image.archive.load import load, save, save_directory
from overlayfs.image.oci.digest import digest_of, hex_of
from overlayfs.image.oci.documents import OCI_INDEX
from overlayfs.image.oci.errors import ImageError
from overlayfs.image.store.pruning import prune
from overlayfs.image.store.store import Image, Store
from tests.image import tars
from tests.image.making import LayoutFiles, docker_files, packed, put, tar, whole

A, B = tar({"a": b"a" * 5000}), tar({"b": b"b"})


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "other") as opened:
        yield opened


def layout(name: str | None = "docker.io/library/x:1", *layers: bytes, kind: str | None = "gzip") -> LayoutFiles:
    files = LayoutFiles()
    files.image(name, *(layers or (A, B)), kind=kind)
    return files


def names(images: list[Image]) -> list[str | None]:
    return [image.reference.familiar if image.reference else None for image in images]


def is_untouched(store: Store) -> bool:
    return store.entries() == [] and os.listdir(store.path / "tmp") == []


# in


@pytest.mark.parametrize("outer", [None, "gzip", "zstd"])
@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
def test_oci_archive_is_loaded_however_it_is_compressed(store: Store, outer: str | None, kind: str | None) -> None:
    files = layout(kind=kind)
    (image,) = load(store, io.BytesIO(packed(tar(files.finished()), outer)))
    assert names([image]) == ["x:1"]
    assert image.digest == files.manifests[0]["digest"]
    assert len(whole(store, image)) == 4
    assert os.listdir(store.path / "tmp") == []


@pytest.mark.parametrize("outer", [None, "gzip", "zstd"])
def test_docker_archive_is_loaded_with_its_id(store: Store, outer: str | None) -> None:
    files = docker_files(["x:1", "reg.example:5000/y:2"], A, B)
    images = load(store, io.BytesIO(packed(tar(files), outer)))
    assert names(images) == ["x:1", "reg.example:5000/y:2"]
    assert [f"{hex_of(image.id)}.json" in files for image in images] == [True, True]
    assert [layer.digest for layer in images[0].manifest.layers] == [digest_of(A), digest_of(B)]
    assert b"x-unknown" in store.read_blob(images[0].manifest.config)
    assert len(whole(store, images[0])) == 4


def test_docker_archive_with_links_between_layers(store: Store) -> None:
    out = io.BytesIO()
    files = docker_files(None, A, A, A)
    manifest = json.loads(files["manifest.json"])
    manifest[0]["Layers"] = ["one/layer.tar", "./two/layer.tar", "three/layer.tar"]
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind, target in (
            ("two/layer.tar", tarfile.SYMTYPE, "../one/layer.tar"),
            ("three/layer.tar", tarfile.LNKTYPE, "one/layer.tar"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    files = {"one/layer.tar": A, **files, "manifest.json": json.dumps(manifest).encode()}
    links = out.getvalue().rstrip(b"\0")
    (image,) = load(store, io.BytesIO(links + bytes(-len(links) % 512) + tar(files)))
    assert [layer.digest for layer in image.manifest.layers] == [digest_of(A)] * 3


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_docker_archive_may_have_compressed_layers(store: Store, kind: str) -> None:
    files = {
        name: packed(data, kind) if name.endswith(".tar") else data for name, data in docker_files(None, A).items()
    }
    (image,) = load(store, io.BytesIO(tar(files)))
    assert image.manifest.layers[0].media_type.endswith(f"+{kind}")


def test_layout_directory_is_loaded(store: Store, tmp_path: Path) -> None:
    files = LayoutFiles()
    files.image("12", A)
    files.image("13", B)
    spread(files.finished(), tmp_path / "debian")
    assert names(load(store, tmp_path / "debian")) == ["debian:12", "debian:13"]
    assert len(store.images()) == 2


def spread(files: dict[str, bytes], directory: Path) -> None:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("annotation", "file", "expected"),
    [
        ("docker.io/library/debian:12", "x.tar", "debian:12"),
        ("debian:12", "x.tar", "debian:12"),
        ("quay.io/a/b", "x.tar", "quay.io/a/b:latest"),
        ("12", "debian.tar", "debian:12"),
        ("12", "Debian.oci.tar.gz", "debian:12"),
        ("latest", "-", None),
        ("no/UPPER:x", "x.tar", None),
        (None, "x.tar", None),
    ],
)
def test_name_of_an_image_in_a_layout(
    store: Store, tmp_path: Path, annotation: str | None, file: str, expected: str | None
) -> None:
    (tmp_path / file).write_bytes(tar(layout(annotation).finished()))
    source = tmp_path / file if file != "-" else io.BytesIO((tmp_path / file).read_bytes())
    assert names(load(store, source)) == [expected]


def test_name_may_be_given(store: Store) -> None:
    assert names(load(store, io.BytesIO(tar(layout().finished())), "mine")) == ["mine:latest"]


def test_one_name_is_not_for_two_images(store: Store) -> None:
    files = layout()
    files.image("docker.io/library/y:1", B)
    with pytest.raises(ImageError, match="2 images"):
        load(store, io.BytesIO(tar(files.finished())), "mine")


def test_loading_again_changes_nothing(store: Store) -> None:
    archive = tar(layout().finished())
    first = load(store, io.BytesIO(archive))
    inodes = {path.name: path.stat().st_ino for path in (store.path / "blobs" / "sha256").iterdir()}
    assert load(store, io.BytesIO(archive)) == first
    assert {path.name: path.stat().st_ino for path in (store.path / "blobs" / "sha256").iterdir()} == inodes
    assert len(store.entries()) == 1


def test_index_is_loaded_and_saved_with_those_of_its_images_that_are_there(store: Store, other: Store) -> None:
    files = LayoutFiles()
    members = [
        files.image(None, A) | {"platform": {"architecture": "amd64", "os": "linux"}},
        files.image(None, B) | {"platform": {"architecture": "arm64", "os": "linux"}},
        {
            "mediaType": members_type(),
            "digest": digest_of(b"absent"),
            "size": 1,
            "platform": {"architecture": "s390x", "os": "linux"},
        },
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": members}
    root = files.blob(json.dumps(document).encode(), OCI_INDEX)
    files.manifests = [root | {"annotations": {"org.opencontainers.image.ref.name": "multi:1"}}]
    (image,) = load(store, io.BytesIO(tar(files.finished())))
    assert image.digest == root["digest"]
    assert all(store.has_blob(member["digest"]) for member in members[:2])
    assert load(other, io.BytesIO(saved(store, [image], "oci-archive"))) == [image]
    assert [other.has_blob(member["digest"]) for member in members] == [True, True, False]
    prune(store)
    assert all(store.has_blob(member["digest"]) for member in members[:2])


def members_type() -> str:
    return "application/vnd.oci.image.manifest.v1+json"


# out


@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
def test_untouched_image_has_the_same_digests_after_load_and_save(store: Store, other: Store, kind: str | None) -> None:
    (image,) = load(store, io.BytesIO(tar(layout(kind=kind).finished())))
    (again,) = load(other, io.BytesIO(saved(store, [image], "oci-archive")))
    assert again == image
    assert whole(other, again) == whole(store, image)


def saved(store: Store, images: list[Image], kind: str) -> bytes:
    out = io.BytesIO()
    save(store, images, out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_saving_gives_the_same_bytes_again(store: Store, other: Store, kind: str) -> None:
    images = [put(store, "x:1", A, B), put(store, "y:2", B)]
    copies = load(other, io.BytesIO(saved(store, images, "oci-archive")))
    assert saved(store, images, kind) == saved(other, copies, kind)


@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
def test_docker_archive_holds_plain_layers_and_the_same_id(store: Store, other: Store, kind: str | None) -> None:
    image = put(store, "x:1", A, B, A, kind=kind)
    data = saved(store, [image], "docker-archive")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    (item,) = json.loads(found["manifest.json"])
    assert item["RepoTags"] == ["docker.io/library/x:1"]
    assert [found[name] for name in item["Layers"]] == [A, B, A]
    assert digest_of(found[item["Config"]]) == image.id
    (again,) = load(other, io.BytesIO(data))
    assert again.id == image.id


def test_oci_archive_is_read_by_docker_rules_too(store: Store, other: Store) -> None:
    image = put(store, "x:1", A)
    files = contents(saved(store, [image], "oci-archive"))
    del files["index.json"]
    (again,) = load(other, io.BytesIO(tar(files)))
    assert (again.id, again.name) == (image.id, "x:1")


def contents(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def test_image_with_two_names_is_saved_once(store: Store, other: Store) -> None:
    image = put(store, "x:1", A)
    store.tag(image.descriptor, image.reference.__class__.parse("y:1"))  # type: ignore[union-attr]
    assert names(load(other, io.BytesIO(saved(store, store.images(), "oci-archive")))) == ["x:1", "y:1"]
    names_of = [names(load(other, io.BytesIO(saved(store, store.images(), "docker-archive"))))]
    assert names_of == [["x:1", "y:1"]]


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_images_of_the_same_id_are_saved_together(store: Store, other: Store, kind: str) -> None:
    images = [put(store, "x:1", A, kind="gzip"), put(store, "y:1", A, kind="zstd"), put(store, "z:1", A, B)]
    again = load(other, io.BytesIO(saved(store, images, kind)))
    assert {image.name: image.id for image in again} == {image.name: image.id for image in images}


def test_directory_is_saved_whole(store: Store, other: Store, tmp_path: Path) -> None:
    image = put(store, "x:1", A)
    save_directory(store, [image], tmp_path / "out")
    assert load(other, tmp_path / "out") == [image]
    with pytest.raises(ImageError, match="not empty"):
        save_directory(store, [image], tmp_path / "out")


def test_directory_on_a_full_disk_does_not_appear(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last blob is cut short, which write(2) says only by how much it has written."""
    image = put(store, "x:1", tar({"noise": Random(1).randbytes(1 << 20)}), kind=None)
    before, limit = resource.getrlimit(resource.RLIMIT_FSIZE), image.manifest.layers[0].size - 1000
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            save_directory(store, [image], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "out" not in os.listdir(tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    save_directory(store, [image], Path("."))
    assert (tmp_path / "empty/index.json").is_file()


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_damaged_blob_is_not_saved(store: Store, kind: str) -> None:
    image = put(store, "x:1", A, kind=None)
    path = store.blob_path(image.manifest.layers[0].digest)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ImageError, match="other content"):
        saved(store, [image], kind)


# hostile


def replaced(**changes: Any) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """Change docker's manifest.json."""

    def change(files: dict[str, bytes]) -> dict[str, bytes]:
        manifest = json.loads(files["manifest.json"])
        manifest[0] |= changes
        return {**files, "manifest.json": json.dumps(manifest).encode()}

    return change


def with_file(name: str, data: bytes) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {**files, name: data}


def tampered_layer(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data[:-1] + b"x" if name.endswith(".tar") else data for name, data in files.items()}


DOCKER_CASES: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "layer that is not there": (replaced(Layers=["nowhere"]), "not there"),
    "layer outside": (replaced(Layers=["../../../etc/passwd"]), "not there"),
    "absolute layer": (replaced(Layers=["/etc/passwd"]), "not there"),
    "configuration outside": (replaced(Config="../../../etc/passwd"), "not there"),
    "too few layers": (replaced(Layers=[]), "0 layers"),
    "layers that are no list": (replaced(Layers="x"), "manifest.json is not valid"),
    "name that is none": (replaced(RepoTags=["UPPER CASE"]), "UPPER CASE"),
    "no image": (with_file("manifest.json", b"[]"), "holds no image"),
    "manifest that is no JSON": (with_file("manifest.json", b"[" * 100_000), "manifest.json is not valid"),
    "manifest that is no text": (with_file("manifest.json", b'[{"Config": "\x80"}]'), "manifest.json is not valid"),
    "huge manifest": (with_file("manifest.json", b" " * (5 << 20)), "at most"),
    "manifest of another shape": (with_file("manifest.json", b'{"a": 1}'), "manifest.json is not valid"),
    "layer with other content": (tampered_layer, "instead of"),
    "configuration with other content": (
        lambda files: {name: data + b" " if len(name) == 69 else data for name, data in files.items()},
        "other content",
    ),
    "root filesystem": (lambda _: {"bin/sh": b"x", "usr/share/doc/x/copyright": b""}, "import"),
    "name that leads out": (with_file("../x", b""), r"\.\./x"),
    "nothing": (lambda _: {}, "neither manifest.json nor index.json"),
    "format of old": (lambda files: {k: v for k, v in files.items() if k != "manifest.json"}, "neither manifest.json"),
}


@pytest.mark.parametrize("case", DOCKER_CASES)
def test_unsound_docker_archive_leaves_nothing(store: Store, tmp_path: Path, case: str) -> None:
    change, message = DOCKER_CASES[case]
    with pytest.raises(ImageError, match=message) as caught:
        load(store, io.BytesIO(tar(change(docker_files(["x:1"], A, B)))))
    assert "\n" not in str(caught.value)
    assert is_untouched(store)
    assert sorted(os.listdir(tmp_path)) == ["store"]


def index_with(**changes: Any) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """Change the only descriptor of index.json."""

    def change(files: dict[str, bytes]) -> dict[str, bytes]:
        index = json.loads(files["index.json"])
        index["manifests"][0] |= changes
        return {**files, "index.json": json.dumps(index).encode()}

    return change


def manifest_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """Change the image's manifest, with a new digest."""

    def replace(files: dict[str, bytes]) -> dict[str, bytes]:
        index = json.loads(files["index.json"])
        (descriptor,) = index["manifests"]
        manifest = json.loads(files.pop(f"blobs/sha256/{hex_of(descriptor['digest'])}"))
        change(manifest)
        data = json.dumps(manifest).encode()
        descriptor |= {"digest": digest_of(data), "size": len(data)}
        return {**files, f"blobs/sha256/{hex_of(digest_of(data))}": data, "index.json": json.dumps(index).encode()}

    return replace


def layer_with(**changes: Any) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return manifest_with(lambda manifest: manifest["layers"][0].update(changes))


def without_blobs(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if not name.startswith("blobs/")}


def tampered_blobs(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data[:-1] + b"\n" if name.startswith("blobs/") else data for name, data in files.items()}


OCI_CASES: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "digest that leads out": (index_with(digest="sha256:../../../etc/passwd"), "not a sha256 digest"),
    "digest of another kind": (index_with(digest="md5:d41d8cd98f00b204e9800998ecf8427e"), "not a sha256 digest"),
    "wrong size of the manifest": (index_with(size=1), "instead of 1"),
    "negative size": (index_with(size=-1), "negative"),
    "manifest of an unknown type": (index_with(mediaType="text/plain"), "holds no image; .* of the type 'text/plain'"),
    "manifest taken for an index": (index_with(mediaType=OCI_INDEX), "not valid"),
    "blobs that are missing": (without_blobs, "not there"),
    "blobs with other content": (tampered_blobs, "other content"),
    "wrong size of a layer": (layer_with(size=1), "instead of 1|more than its 1"),
    "layer of a huge size": (layer_with(size=1 << 62), "instead of"),
    "foreign layer": (
        layer_with(
            mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=["http://169.254.169.254/"]
        ),
        "not supported",
    ),
    "encrypted layer": (layer_with(mediaType="application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "not supported"),
    "too few layers": (manifest_with(lambda manifest: manifest["layers"].pop()), "has 1 layers"),
    "manifest that is an index too": (manifest_with(lambda manifest: manifest.update(manifests=[])), "both"),
    "schema 1": (manifest_with(lambda manifest: manifest.update(fsLayers=[])), "both"),
    "index that is no JSON": (with_file("index.json", b"{"), "index.json"),
    "huge index": (with_file("index.json", b" " * (5 << 20)), "at most"),
    "empty index": (with_file("index.json", b'{"schemaVersion": 2, "manifests": []}'), "holds no image"),
}


@pytest.mark.parametrize("as_directory", [False, True], ids=["archive", "directory"])
@pytest.mark.parametrize("case", OCI_CASES)
def test_unsound_layout_leaves_nothing(store: Store, tmp_path: Path, case: str, as_directory: bool) -> None:
    change, message = OCI_CASES[case]
    files = change(layout().finished())
    spread(files, tmp_path / "layout")
    with pytest.raises(ImageError, match=message) as caught:
        load(store, tmp_path / "layout" if as_directory else io.BytesIO(tar(files)))
    assert "\n" not in str(caught.value)
    assert is_untouched(store)


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_device_in_an_archive_is_refused(store: Store, kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("index.json")
        member.type = kind
        archive.addfile(member)
    with pytest.raises(ImageError, match="no image archive"):
        load(store, io.BytesIO(out.getvalue()))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", "manifest.json", "missing"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_link_in_an_archive_never_leads_out(store: Store, target: str, kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("manifest.json")
        member.type, member.linkname = kind, target
        archive.addfile(member)
    with pytest.raises(ImageError):
        load(store, io.BytesIO(out.getvalue()))
    assert is_untouched(store)


@pytest.mark.parametrize("name", ["index.json", "blobs/sha256"])
def test_link_in_a_layout_directory_is_not_followed(store: Store, tmp_path: Path, name: str) -> None:
    spread(layout().finished(), tmp_path / "layout")
    (tmp_path / "layout" / name).rename(tmp_path / "moved")
    (tmp_path / "layout" / name).symlink_to(tmp_path / "moved")
    with pytest.raises((ImageError, OSError)):
        load(store, tmp_path / "layout")
    assert is_untouched(store)


def test_fifo_in_a_layout_directory_does_not_hang(store: Store, tmp_path: Path) -> None:
    spread(layout().finished(), tmp_path / "layout")
    (tmp_path / "layout" / "index.json").unlink()
    os.mkfifo(tmp_path / "layout" / "index.json")
    with pytest.raises(ImageError, match="no regular file"):
        load(store, tmp_path / "layout")


@pytest.mark.parametrize("outer", [None, "gzip", "zstd"])
def test_archive_that_is_cut_short_leaves_nothing(store: Store, outer: str | None) -> None:
    data = packed(tar(layout(None, A, B, kind=None).finished()), outer)
    end = data.rstrip(b"\0")
    for cut in range(1, len(end) - 600, max(1, len(end) // 40)):
        with pytest.raises(ImageError):
            load(store, io.BytesIO(data[:cut]))
        assert is_untouched(store)


def test_bomb_is_refused(store: Store) -> None:
    from overlayfs.image.oci.limits import Limits

    for content, limits, words in (
        (bytes(30 << 20), Limits(full_size=20 << 20), "'bomb' makes it larger than"),
        (b"bomb" * (5 << 20), Limits(disk_size=10 << 20), "'bomb' makes it take more than"),
    ):
        data = packed(tar({"bomb": content}), "gzip")
        with pytest.raises(ImageError, match=words):
            load(store, io.BytesIO(data), limits=limits)
        assert is_untouched(store)


def test_zeros_of_an_archive_take_no_disk(store: Store) -> None:
    """A layer that is not compressed, as docker saves it, of a sparse file."""
    layer = tar({"sparse": b"start" + bytes(30 << 20) + b"end"})
    (image,) = load(store, io.BytesIO(packed(tar(docker_files(["a:1"], layer)), "gzip")))
    blob = store.blob_path(image.manifest.layers[0].digest)
    assert blob.read_bytes() == layer
    assert blob.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("time", [(1 << 80), -(1 << 80), 1 << 40])
def test_times_of_the_archive_itself_mean_nothing(store: Store, time: int) -> None:
    members = (
        tars.file(name.encode(), data, mtime=tars.base256(time, 12)) for name, data in docker_files(["a:1"], A).items()
    )
    (image,) = load(store, io.BytesIO(tars.tar(*members)))
    assert image.name == "a:1"


def test_archive_of_too_many_members_is_refused(store: Store) -> None:
    from overlayfs.image.oci.limits import Limits

    with pytest.raises(ImageError, match="members"):
        load(store, io.BytesIO(tar({str(n): b"" for n in range(50)})), limits=Limits(members=20))
    assert is_untouched(store)


@pytest.mark.parametrize("seed", range(10))
def test_archive_with_changed_bytes_is_refused_or_sound(store: Store, seed: int) -> None:
    check_mutations(store, seed, 8)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_archive_with_many_changed_bytes_is_refused_or_sound(store: Store, seed: int) -> None:
    check_mutations(store, seed, 200)


def check_mutations(store: Store, seed: int, count: int) -> None:
    """Load archives with a few bytes changed, moved or cut out: an ImageError, or images that are whole."""
    random, lines = Random(seed), list[str]()
    docker, oci = tar(docker_files(["x:1"], B)), tar(layout(None, B).finished())
    sources = (docker, oci, packed(docker, "gzip"))
    for _ in range(count):
        data = mutated(random, bytearray(random.choice(sources)))
        try:
            images = load(store, io.BytesIO(data), unpack=True)
        except ImageError as error:
            lines.append(str(error))
        else:
            for image in images:
                whole(store, image)
        assert os.listdir(store.path / "tmp") == []
    assert [line for line in lines if "\n" in line] == []


def mutated(random: Random, data: bytearray) -> bytes:
    for _ in range(random.randint(1, 6)):
        at = random.choice((random.randrange(len(data)), random.randrange(min(len(data), 1024))))
        match random.randrange(5):
            case 0:
                data[at] = random.choice((0, 0xFF, 0x80, ord("-"), ord("7"), random.randrange(256)))
            case 1:
                del data[at : at + random.choice((1, 8, 512))]
            case 2:
                data[at:at] = random.randbytes(random.choice((1, 8, 512)))
            case 3:
                block = at // 512 * 512
                data[at : at + 512] = data[block : block + 512]
            case _:
                data[at : at + 12] = random.choice((b"77777777777\0", b"\x80" + bytes(10) + b"\1", b"-0000000001\0"))
        data = data or bytearray(b"x")
    return bytes(data)
