"""The store: blobs, names, use by several processes at once, and what pruning leaves."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from overlayfs.image.oci.digest import chain_ids, digest_of, hex_of
from overlayfs.image.oci.documents import MAX_DOCUMENT, OCI_INDEX, OCI_LAYER, Descriptor, Index, Platform, dump
from overlayfs.image.oci.errors import DigestError, InUseError, InvalidError, LimitError, NotFoundError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store import names as layout
from overlayfs.image.store import pruning, staging
from overlayfs.image.store.blobs import verified
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.pruning import prune, remove_image
from overlayfs.image.store.staging import occupied, remove_tree
from overlayfs.image.store.store import Image, Store
from overlayfs.image.store.uses import Process, Use
from overlayfs.image.store.verify import mend, verify
from tests.image.making import packed, put, tar

A, B = tar({"a": b"a"}), tar({"b": b"b"})
PATIENCE_S = 30


def named(store: Store) -> dict[str, str]:
    return {entry.reference.familiar if entry.reference else "": entry.descriptor.digest for entry in store.entries()}


def blobs(store: Store) -> set[str]:
    return set(os.listdir(store.path / "blobs" / "sha256"))


# the directory


def test_store_is_made_for_its_owner_only(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a" / "b") as store:
        modes = {path.name: path.stat().st_mode & 0o777 for path in (store.path, *store.path.iterdir())}
    assert modes["b"] == modes["layers"] == modes["containers"] == modes["tmp"] == 0o700


def test_wider_mode_of_a_store_is_narrowed(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s"):
        pass
    (tmp_path / "s").chmod(0o755)
    with Store.open(tmp_path / "s") as store:
        assert store.path.stat().st_mode & 0o777 == 0o700


def test_directory_with_other_things_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    tmp_path.chmod(0o755)
    with pytest.raises(InvalidError, match="no store, and not empty"):
        Store.open(tmp_path)
    assert os.listdir(tmp_path) == ["precious"]
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("lost", ["oci-layout", "index.json"])
def test_store_that_has_lost_a_file_is_one(store: Store, lost: str) -> None:
    (store.path / "volumes").mkdir()
    (store.path / lost).unlink()
    Store.open(store.path).close()
    assert (store.path / lost).exists()


def test_store_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "s"):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(InvalidError, match="belongs to user"):
        Store.open(tmp_path / "s")


def test_store_may_be_made_by_many_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def make() -> None:
        try:
            with Store.open(tmp_path / "s") as store:
                put(store, f"x:{threading.get_ident()}", A)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert failures == []
    with Store.open(tmp_path / "s") as store:
        assert len(store.images()) == len({thread.ident for thread in threads})


# blobs


def test_blob_is_read_as_it_was_written(store: Store) -> None:
    blob = store.add_blob(b"data", OCI_LAYER)
    assert blob == Descriptor(OCI_LAYER, digest_of(b"data"), 4)
    assert store.has_blob(blob.digest)
    assert store.read_blob(blob) == b"data"
    assert os.listdir(store.path / "tmp") == []


def test_blob_without_commit_leaves_nothing(store: Store) -> None:
    with store.new_blob() as blob:
        blob.write(b"half")
    assert blobs(store) == set()
    assert os.listdir(store.path / "tmp") == []


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (Descriptor(OCI_LAYER, digest_of(b"other"), 4), "other content"),
        (Descriptor(OCI_LAYER, digest_of(b"data"), 5), "4 bytes instead of 5"),
        (Descriptor(OCI_LAYER, digest_of(b"data"), 3), "instead of 3"),
    ],
)
def test_blob_that_is_not_what_was_promised_is_not_kept(store: Store, expected: Descriptor, message: str) -> None:
    with store.new_blob() as blob:
        blob.write(b"data")
        with pytest.raises(DigestError, match=message):
            blob.commit(expected)
    assert blobs(store) == set()
    assert os.listdir(store.path / "tmp") == []


def test_too_many_bytes_are_refused_before_they_are_written(store: Store) -> None:
    with (
        pytest.raises(DigestError, match="more than"),
        store.new_blob(Descriptor(OCI_LAYER, digest_of(b""), 3)) as blob,
    ):
        blob.write(b"data")


@pytest.mark.parametrize("damage", [b"dat", b"dada", b"dataa", b""])
def test_damaged_blob_is_never_taken_for_whole(store: Store, damage: bytes) -> None:
    blob = store.add_blob(b"data", OCI_LAYER)
    store.blob_path(blob.digest).write_bytes(damage)
    with pytest.raises(DigestError):
        store.read_blob(blob)
    with pytest.raises(DigestError):
        _read_by_bytes(store, blob)


def _read_by_bytes(store: Store, blob: Descriptor) -> None:
    with store.open_blob(blob) as file:
        while file.read(1):
            pass


def test_missing_blob_says_what_to_do(store: Store) -> None:
    with pytest.raises(NotFoundError, match="load or pull"):
        store.read_blob(Descriptor(OCI_LAYER, digest_of(b"x"), 1))


def test_document_has_a_largest_size(store: Store) -> None:
    with pytest.raises(LimitError):
        store.read_blob(Descriptor(OCI_LAYER, digest_of(b"x"), MAX_DOCUMENT + 1))


@pytest.mark.parametrize("size", [-1, 1, 999, 5000])
def test_verified_reader_checks_in_pieces_of_any_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(b"data" * 1000)
    with verified(open(tmp_path / "f", "rb"), Descriptor(OCI_LAYER, digest_of(b"data" * 1000), 4000)) as file:
        assert b"".join(iter(lambda: file.read(size), b"")) == b"data" * 1000
    wrong = Descriptor(OCI_LAYER, digest_of(b"x"), 4000)
    with verified(open(tmp_path / "f", "rb"), wrong) as file, pytest.raises(DigestError):
        list(iter(lambda: file.read(size), b""))


# names


def test_image_is_found_by_name_and_by_its_ids(store: Store) -> None:
    image = put(store, "debian:12", A)
    put(store, "other", B)
    for name in (
        "debian:12",
        "docker.io/library/debian:12",
        f"debian@{image.digest}",
        image.id,
        hex_of(image.id),
        hex_of(image.id)[:12],
        image.digest,
        hex_of(image.digest)[:9],
    ):
        assert store.find(name).id == image.id, name
    assert store.find("debian:12") == image


@pytest.mark.parametrize(
    "name", ["debian", "debian:11", "deban:12", "../x", "sha256:", "", "abc", f"debian@{digest_of(b'')}"]
)
def test_unknown_image_is_not_found(store: Store, name: str) -> None:
    put(store, "debian:12", A)
    with pytest.raises(NotFoundError, match="no image"):
        store.find(name)


def test_similar_names_are_offered(store: Store) -> None:
    put(store, "debian:12", A)
    with pytest.raises(NotFoundError, match="there is debian:12"):
        store.find("debian:11")


def test_start_of_several_ids_is_ambiguous(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [put(store, f"x:{number}", A, author=str(number)) for number in range(2)]
    monkeypatch.setattr("overlayfs.image.store.store.is_start_of", lambda text, digests: True)
    with pytest.raises(InvalidError, match="several images"):
        store.find("abcd")
    assert images[0].id != images[1].id


def test_new_owner_of_a_name_leaves_the_old_image_without_one(store: Store) -> None:
    old = put(store, "x", A)
    new = put(store, "x", B)
    assert named(store) == {"": old.digest, "x:latest": new.digest}
    assert store.find(old.id).reference is None
    store.tag(old.descriptor, Reference.parse("y"))
    assert named(store) == {"y:latest": old.digest, "x:latest": new.digest}


def test_image_may_have_several_names(store: Store) -> None:
    image = put(store, "x", A)
    store.tag(image.descriptor, Reference.parse("y:1"))
    store.tag(image.descriptor, Reference.parse("y:1"))
    assert named(store) == {"x:latest": image.digest, "y:1": image.digest}
    store.untag(Reference.parse("x"))
    assert named(store) == {"y:1": image.digest}
    with pytest.raises(NotFoundError):
        store.untag(Reference.parse("x"))


def test_incomplete_image_gets_no_name(store: Store) -> None:
    image = put(store, "x", A)
    store.blob_path(image.manifest.layers[0].digest).unlink()
    with pytest.raises(NotFoundError, match="not complete"):
        store.tag(image.descriptor, Reference.parse("y"))


def test_index_stands_for_this_machines_image(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    amd64, arm64 = put(store, None, A), put(store, None, B)
    absent = Descriptor(amd64.descriptor.media_type, digest_of(b"absent"), 1, platform=Platform("s390x", "linux"))
    members = [
        Descriptor(image.descriptor.media_type, image.digest, image.descriptor.size, platform=Platform(name, "linux"))
        for name, image in (("arm64", arm64), ("amd64", amd64))
    ]
    root = store.add_blob(dump(Index(2, [absent, *members], OCI_INDEX)), OCI_INDEX)
    store.tag(root, Reference.parse("multi"))
    monkeypatch.setattr("overlayfs.image.oci.platforms.this_platform", lambda: Platform("amd64", "linux"))
    image = store.find("multi")
    assert (image.id, image.digest, image.root) == (amd64.id, root.digest, root)
    assert store.load_image(root, platform=Platform("arm64", "linux")).id == arm64.id
    with pytest.raises(NotFoundError, match="no image for linux/s390x"):
        store.load_image(root, platform=Platform("s390x", "linux"))
    monkeypatch.setattr("overlayfs.image.oci.platforms.this_platform", lambda: Platform("riscv64", "linux"))
    assert store.find("multi").id == arm64.id  # what was pulled for another platform is to be seen


def test_names_written_by_other_programs_are_understood(store: Store) -> None:
    put(store, "x", A)
    path = store.path / "index.json"
    document = json.loads(path.read_text())
    document["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "debian", "other": "kept"}
    path.write_text(json.dumps(document))
    assert store.find("debian").name == "debian:latest"
    put(store, "y", B)
    assert json.loads(path.read_text())["manifests"][0]["annotations"]["other"] == "kept"


def test_concurrent_names_are_all_kept(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from overlayfs.image.store.store import Store; from overlayfs.image.oci.reference import Reference\n"
        "with Store.open(Path(sys.argv[1])) as store:\n"
        "    image = store.find('x')\n"
        "    for number in range(10): store.tag(image.descriptor, Reference.parse(f'{sys.argv[2]}:{number}'))\n"
    )
    with Store.open(tmp_path / "s") as store:
        put(store, "x", A)
        running = [
            subprocess.Popen([sys.executable, "-c", code, store.path, name], cwd=Path(__file__).parents[3])
            for name in ("p", "q")
        ]
        assert [process.wait(PATIENCE_S) for process in running] == [0, 0]
        assert len(store.entries()) == 21


def test_index_that_nobody_could_read_is_not_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    image = put(store, "x", A)
    monkeypatch.setattr(layout, "MAX_DOCUMENT", (store.path / "index.json").stat().st_size + 100)
    with pytest.raises(LimitError, match="too many images: prune it"):
        store.tag(image.descriptor, Reference.parse("y"))
    assert [entry.reference for entry in store.entries()] == [image.reference]


# removal


def test_prune_removes_what_nothing_refers_to(store: Store) -> None:
    kept = put(store, "x", A)
    unnamed = put(store, None, B)
    store.add_blob(b"orphan", OCI_LAYER)
    (store.path / "tmp" / "left").mkdir()
    (store.path / "layers" / hex_of(digest_of(B)) / "diff").mkdir(parents=True)
    (store.path / "layers" / hex_of(digest_of(A)) / "diff").mkdir(parents=True)
    report = prune(store, dry_run=True)
    assert (report.images, report.blobs, report.layers, report.leftovers) == ((unnamed.digest,), 4, 1, 1)
    assert len(blobs(store)) == 7
    done = prune(store)
    assert (done.images, done.blobs, done.layers, done.leftovers) == ((unnamed.digest,), 4, 1, 1)
    assert done.freed > 0
    assert [image.id for image in store.images()] == [kept.id]
    assert blobs(store) == {hex_of(blob) for blob in (kept.digest, kept.id, kept.manifest.layers[0].digest)}
    assert os.listdir(store.path / "layers") == [hex_of(digest_of(A))]
    assert os.listdir(store.path / "tmp") == []


def test_prune_of_named_images_spares_those_of_containers(store: Store) -> None:
    used, unused = put(store, "used", A), put(store, "unused", B)
    container = store.path / "containers" / "c"
    container.mkdir()
    (container / "container.json").write_text(json.dumps({"any": [{"shape": used.digest}]}))
    assert prune(store, named=True).images == ("unused:latest",)
    assert [image.id for image in store.images()] == [used.id]
    assert not store.has_blob(unused.id)


def test_layers_of_live_mounts_stay_when_their_image_goes(store: Store) -> None:
    image = put(store, "x", A, B)
    keys = chain_ids(image.config.rootfs.diff_ids)
    for key in keys:
        (store.path / "layers" / hex_of(key) / "diff").mkdir(parents=True)
    record = store.record_mount(Use(Process.of(os.getpid()), keys, mountpoint="/m"))
    store.untag(Reference.parse("x"))
    assert store.uses() == set(keys)
    prune(store, named=True)
    assert len(os.listdir(store.path / "layers")) == 2
    store.forget_mount(record)
    prune(store, named=True)
    assert os.listdir(store.path / "layers") == []


def test_record_of_a_process_that_ended_keeps_nothing(store: Store) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        store.record_mount(Use(Process.of(child.pid), [digest_of(b"x")]))
        assert store.uses() == {digest_of(b"x")}
        child.kill()
    assert store.uses() == set()
    prune(store)
    assert os.listdir(store.path / "mounts") == []


def test_record_that_a_crash_left_incomplete_holds_nothing_up(store: Store) -> None:
    image = put(store, "x", A)
    empty, torn = (store.path / "mounts" / name for name in ("empty.json", "torn.json"))
    empty.touch()
    torn.write_bytes(bytes(300))
    with pytest.raises(InvalidError, match=r"torn\.json is damaged: .*; remove it if nothing is mounted"):
        store.mounts()
    os.utime(torn, (0, 0))  # before this boot
    assert store.mounts() == {} and remove_image(store, "x") == ["x:latest"]
    prune(store)
    assert os.listdir(store.path / "mounts") == [] and not store.has_blob(image.digest)


def test_record_of_another_pid_namespace_or_boot() -> None:
    here = Process.of(os.getpid())
    assert here.is_alive()
    assert Process(2**22, 1, here.boot, here.pid_namespace + 1).is_alive()  # nobody here can tell
    assert not Process(here.pid, here.started, "another boot", here.pid_namespace + 1).is_alive()
    assert not Process(here.pid, here.started + 1, here.boot, here.pid_namespace).is_alive()


def test_prune_waits_for_nobody_who_stays(store: Store) -> None:
    code = (
        "import sys; from pathlib import Path\nfrom overlayfs.image.store.store import Store\n"
        "with Store.open(Path(sys.argv[1])): print('open', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, store.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with pytest.raises(InUseError, match=f"in use by process {other.pid}"), store.alone(patience_s=0):
            pass
        other.communicate()
    with store.alone(patience_s=0):
        pass


def test_remains_of_interrupted_work_are_swept_where_nobody_works(store: Store) -> None:
    (store.path / "tmp" / "1-2").mkdir()
    (store.path / "tmp" / "partial-x").write_text("to be continued")
    with Store.open(store.path) as other:
        other.sweep()
        assert len(os.listdir(store.path / "tmp")) == 2
    store.sweep()
    assert os.listdir(store.path / "tmp") == ["partial-x"]
    assert prune(store).leftovers == 1
    assert os.listdir(store.path / "tmp") == []


def test_prune_of_a_store_with_a_damaged_image_removes_nothing(store: Store) -> None:
    image = put(store, "x", A)
    put(store, None, B)
    store.blob_path(image.digest).write_bytes(b"{}")
    with pytest.raises(InvalidError, match=r"x:latest is damaged.*rmi"):
        prune(store)
    assert len(blobs(store)) == 6
    assert remove_image(store, "x") == ["x:latest"]
    assert prune(store).blobs == 6


@pytest.mark.parametrize("clean", [Store.sweep, prune])
def test_leftover_that_cannot_be_removed_holds_nothing_up(
    clean: Callable[[Store], object], store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left, later = store.path / "tmp/1-a", store.path / "tmp/1-b"
    for path in (left, later):
        path.mkdir()

    def removed(path: Path) -> int:
        if path == left:
            raise OSError(errno.EUCLEAN, "Structure needs cleaning", "x")
        return remove_tree(path)

    monkeypatch.setattr(staging, "remove_tree", removed)
    clean(store)
    assert left.exists() and not later.exists()
    assert f"{left} cannot be removed" in capfd.readouterr().err


@pytest.mark.parametrize("remove", [lambda store: prune(store, named=True), lambda store: mend(store, verify(store))])
def test_no_layer_comes_back_without_its_files_after_a_power_loss(
    remove: Callable[[Store], object], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = unpack_image(store, put(store, "x", A))
    layer, on_disk, sync = store.path / "layers" / hex_of(key), list[list[str]](), os.fsync
    (layer / "diff/a").write_text("changed")

    def synced(fd: int) -> None:
        sync(fd)
        if os.path.samestat(os.fstat(fd), layer.parent.stat()):
            on_disk.append(os.listdir(fd))

    def removed(path: Path) -> int:
        if (path / "diff").exists():
            assert on_disk == [[]]
        return remove_tree(path)

    monkeypatch.setattr(os, "fsync", synced)
    for module in (staging, pruning):
        monkeypatch.setattr(module, "remove_tree", removed)
    remove(store)
    assert on_disk == [[]] and not layer.exists() and not os.listdir(store.path / "tmp")


@pytest.mark.parametrize("is_missing", [True, False])
def test_no_image_is_lost_with_the_list_of_images(store: Store, *, is_missing: bool) -> None:
    image = put(store, "x", A)
    listed = store.path / "index.json"
    before = listed.read_bytes()
    listed.unlink() if is_missing else listed.write_bytes(b"")
    Store.open(store.path).close()
    for ask in (store.entries, lambda: prune(store), lambda: put(store, "y", B), lambda: store.find("x")):
        with pytest.raises(InvalidError, match=r"index\.json is (missing|not valid).*: put a copy of it back, or"):
            ask()
    assert store.load_by_manifest(image.descriptor.digest).id == image.id
    listed.write_bytes(before)
    prune(store)
    assert store.find("x") == image


def test_damaged_record_of_use_stops_pruning(store: Store) -> None:
    (store.path / "mounts" / "x.json").write_text("{")
    with pytest.raises(InvalidError, match=r"x\.json is damaged"):
        prune(store)


def test_removing_an_image_by_name_and_by_id(store: Store) -> None:
    image = put(store, "x", A)
    store.tag(image.descriptor, Reference.parse("y"))
    with pytest.raises(InUseError, match="several names: x:latest, y:latest"):
        remove_image(store, hex_of(image.id))
    assert remove_image(store, "x") == ["x:latest"]
    assert remove_image(store, hex_of(image.id)[:8]) == ["y:latest"]
    with pytest.raises(NotFoundError):
        remove_image(store, "y")


def test_image_of_a_container_is_removed_by_force_only(store: Store) -> None:
    image = put(store, "x", A)
    (store.path / "containers" / "c").mkdir()
    (store.path / "containers" / "c" / "container.json").write_text(json.dumps({"image": image.digest}))
    with pytest.raises(InUseError, match="remove it first"):
        remove_image(store, "x")
    assert remove_image(store, "x", force=True) == ["x:latest"]
    prune(store, named=True)
    assert store.load_image(image.descriptor).id == image.id


def test_trees_of_any_depth_and_mode_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(1200):  # more than the stack, or descriptors, would allow
        os.mkdir("d" * 200, 0o700, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.symlink(tmp_path, "link", dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    (top / "a").write_bytes(b"x")
    os.link(top / "a", top / "b")
    counted = occupied(top)
    for directory in (top, top / ("d" * 200)):
        directory.chmod(0)
    (tmp_path / "canary").write_text("x")
    assert remove_tree(top) == counted
    remove_tree(top)
    assert os.listdir(tmp_path) == ["canary"]


def test_tree_that_somebody_changes_meanwhile_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "top"
    (top / "inner").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (top / name).touch()
    listdir, rmdir, is_used = os.listdir, Path.rmdir, [True]

    def list_and_lose(directory: int) -> list[str]:
        names = listdir(directory)
        (top / "a").unlink(missing_ok=True)
        return names

    def find_new_file(path: Path) -> None:
        if is_used:
            (path / "new").touch()
            is_used.pop()
        rmdir(path)

    monkeypatch.setattr(os, "listdir", list_and_lose)
    monkeypatch.setattr(Path, "rmdir", find_new_file)
    remove_tree(top)
    assert not top.exists() and not is_used


# the same image by another manifest


def repacked(store: Store, image: Image, name: str | None) -> Image:
    """The image with its layers packed otherwise, as a docker archive has it."""
    layers = [store.add_blob(packed(layer, "zstd"), f"{OCI_LAYER}+zstd") for layer in (A, B)]
    return store.put_image(
        replace(image.manifest, layers=layers), image.config, Reference.parse(name) if name else None
    )


def lines(store: Store) -> list[tuple[str, str]]:
    """Name and manifest of each entry, as `images` lists them."""
    entries = [
        (entry.reference.familiar if entry.reference else "", entry.descriptor.digest) for entry in store.entries()
    ]
    return sorted(entries)


@pytest.mark.parametrize("first", ["x:1", None])
def test_other_manifest_of_an_image_leaves_no_second_line(store: Store, first: str | None) -> None:
    old = put(store, first, A, B)
    new = repacked(store, old, "x:1")
    assert (new.id, new.digest != old.digest) == (old.id, True)
    assert lines(store) == [("x:1", new.digest)]


def test_image_without_a_name_is_listed_once(store: Store) -> None:
    old = put(store, "x:1", A, B)
    repacked(store, old, None)
    assert lines(store) == [("x:1", old.digest)]


def test_other_names_keep_their_manifest(store: Store) -> None:
    old = put(store, "x:1", A, B)
    store.tag(old.descriptor, Reference.parse("y:1"))
    new = repacked(store, old, "x:1")
    assert lines(store) == [("x:1", new.digest), ("y:1", old.digest)]


def test_another_image_keeps_its_line_without_a_name(store: Store) -> None:
    old, new = put(store, "x:1", A), put(store, "x:1", B)
    assert lines(store) == [("", old.digest), ("x:1", new.digest)]


def test_image_with_a_lost_layer_does_not_stand_for_a_whole_one(store: Store) -> None:
    old = put(store, "x:1", A, B)
    store.blob_path(old.manifest.layers[0].digest).unlink()
    new = repacked(store, old, None)
    assert lines(store) == [("", new.digest), ("x:1", old.digest)]


def test_index_keeps_its_line_as_it_has_other_images_too(store: Store) -> None:
    first, second = put(store, None, A, B), put(store, None, B)
    members = [
        replace(image.descriptor, platform=Platform("amd64", "linux", f"v{n}"))
        for n, image in enumerate((first, second))
    ]
    root = store.add_blob(dump(Index(2, members, OCI_INDEX)), OCI_INDEX)
    store.forget(first.digest)
    store.forget(second.digest)
    store.tag(root, Reference.parse("x:1"))
    new = repacked(store, store.load_by_manifest(first.descriptor.digest), "x:1")
    assert lines(store) == [("", root.digest), ("x:1", new.digest)]
