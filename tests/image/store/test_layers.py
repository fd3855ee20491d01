"""Layers of images in the store: unpacked once, verified, resolved against what is below them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from overlayfs.image.layer.disk_format import storable_times
from overlayfs.image.oci.digest import chain_ids, digest_of, hex_of
from overlayfs.image.oci.documents import OCI_LAYER, Manifest
from overlayfs.image.oci.errors import DigestError, InvalidError, LimitError, NotFoundError
from overlayfs.image.oci.limits import Limits
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.lowers import lower_directories
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Image, Store
from overlayfs.image.store.verify import mend, verify
from overlayfs.overlay.layer import open_layer
from overlayfs.overlay.view import View
from tests.image import tars
from tests.image.making import config_of, put
from tests.image.tars import directory, file, link, pax, symlink, tar, xattrs

BASE = tar(
    directory(b"./", 0o755),
    directory(b"tmp", 0o1777, uid=5, gid=6, mtime=1234),
    directory(b"etc"),
    xattrs({b"user.note": b"1"}),
    file(b"etc/passwd", b"root\n", mode=0o640, uid=7, gid=8, mtime=77),
    symlink(b"etc/mtab", b"/proc/mounts"),
)


def merged(store: Store, image: Image) -> dict[bytes, tuple[int, int, int, int, bytes, int]]:
    """What the layers show together: mode, owner, time, content or target, links."""
    directories = lower_directories(store, image)
    layers = [open_layer(number, os.fsencode(path)) for number, path in enumerate(directories)]
    view, shown = View(layers), {}
    pending = [view.root()]
    try:
        while pending:
            node = pending.pop()
            version = view.version(node)
            data = version.target or b""
            if stat.S_ISREG(version.stat.mode):
                assert version.data is not None
                fd = view.open(version.data, os.O_RDONLY)
                data = os.read(fd, 1 << 20)
                os.close(fd)
            st = version.stat
            shown[node.path] = (st.mode, st.uid, st.gid, st.mtime_ns, data, st.nlink if not node.is_directory else 0)
            if node.is_directory:
                pending += [view.node(node, name, child) for name, child in view.children(node).items()]
    finally:
        for layer in layers:
            os.close(layer.root_fd)
    return shown


def is_empty(store: Store) -> bool:
    return not os.listdir(store.path / "layers") and not os.listdir(store.path / "tmp")


@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
@pytest.mark.parametrize("length", [0, 40, None])
def test_blob_that_was_damaged_in_the_store_is_told_from_a_bad_layer(
    store: Store, kind: str | None, length: int | None
) -> None:
    image = put(store, "a", BASE, kind=kind)
    blob = store.blob_path(image.manifest.layers[0].digest)
    blob.write_bytes(bytes(blob.stat().st_size) if length is None else blob.read_bytes()[:length])
    with pytest.raises(DigestError, match="its blob is damaged in the store: run overlayfs verify --repair, then load"):
        unpack_image(store, image)
    assert mend(store, verify(store, ["a"]))
    assert unpack_image(store, put(store, "a", BASE, kind=kind))


@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
def test_layers_are_unpacked_under_their_diff_ids(store: Store, kind: str | None) -> None:
    image = put(store, "a", BASE, tar(file(b"etc/.wh.passwd"), file(b"new", b"1")), kind=kind)
    layers = LayerStore(store)
    assert layers.keys(image) is None
    keys = unpack_image(store, image)
    assert layers.keys(image) == keys
    assert keys[0] == image.config.rootfs.diff_ids[0]
    assert [layers.verify(key) for key in keys] == [[], []]
    assert [record.path for record in layers.index(keys[1]).records if record.kind == "w"] == [b"etc/passwd"]
    assert set(merged(store, image)) == {b"", b"tmp", b"etc", b"etc/mtab", b"new"}
    assert not os.listdir(store.path / "tmp")


def test_layer_is_unpacked_once_for_all_images(store: Store) -> None:
    layers = LayerStore(store)
    first = put(store, "a", BASE, tar(directory(b"./"), file(b"x")))
    second = put(store, "b", BASE, tar(directory(b"./"), file(b"y")))
    unpack_image(store, first)
    inode = layers.path(image_key(first)).stat().st_ino
    unpack_image(store, second)
    assert layers.path(image_key(second)).stat().st_ino == inode
    assert len(os.listdir(store.path / "layers")) == 3


def image_key(image: Image):  # type: ignore[no-untyped-def]
    return image.config.rootfs.diff_ids[0]


def test_same_layer_twice_in_an_image(store: Store) -> None:
    layer = tar(directory(b"./"), file(b"x", b"1"))
    image = put(store, "a", layer, layer)
    assert len(unpack_image(store, image)) == 2
    assert len(os.listdir(store.path / "layers")) == 1


def test_wrong_diff_id_is_not_published(store: Store) -> None:
    blob = put(store, "a", tar(file(b"evil"))).manifest.layers[0]
    image = store.put_image(Manifest(2, blob, [blob]), config_of([digest_of(BASE)]), None)
    with pytest.raises(DigestError, match="another digest"):
        unpack_image(store, image)
    assert is_empty(store)


def test_missing_blob_says_what_to_do(store: Store) -> None:
    image = put(store, "a", BASE)
    store.blob_path(image.manifest.layers[0].digest).unlink()
    with pytest.raises(NotFoundError, match="load or pull"):
        unpack_image(store, image)


def test_foreign_layer_is_refused(store: Store) -> None:
    foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    blob = store.add_blob(BASE, foreign)
    image = store.put_image(Manifest(2, blob, [blob]), config_of([digest_of(BASE)]), None)
    with pytest.raises(InvalidError, match="cannot be used"):
        unpack_image(store, image)


def test_one_bad_layer_leaves_nothing_of_itself(store: Store) -> None:
    image = put(store, "a", BASE, tar(file(b"../evil")), tar(file(b"x")))
    with pytest.raises(InvalidError, match="leads out"):
        unpack_image(store, image)
    assert hex_of(image.config.rootfs.diff_ids[1]) not in os.listdir(store.path / "layers")
    assert not os.listdir(store.path / "tmp")


def test_limits_are_the_callers(store: Store) -> None:
    image = put(store, "a", tar(file(b"zeros", bytes(1 << 20)), file(b"bomb", b"bomb" * (1 << 18))))
    with pytest.raises(LimitError, match="'zeros' makes it larger than"):
        unpack_image(store, image, limits=Limits(full_size=1 << 16))
    with pytest.raises(LimitError, match="'bomb' makes it take more than"):
        unpack_image(store, image, limits=Limits(disk_size=1 << 16))
    assert is_empty(store)
    assert unpack_image(store, image)


def test_hard_link_into_a_lower_layer_is_one_file_again(store: Store) -> None:
    upper = tar(directory(b"./"), directory(b"etc"), link(b"etc/shadow", b"etc/passwd"), link(b"etc/l", b"etc/mtab"))
    image = put(store, "a", BASE, upper)
    keys = unpack_image(store, image)
    assert keys[1] == chain_ids(image.config.rootfs.diff_ids)[1] != image.config.rootfs.diff_ids[1]
    assert LayerStore(store).keys(image) == keys
    tree = merged(store, image)
    assert tree[b"etc/shadow"] == tree[b"etc/passwd"] == (0o100640, 7, 8, 77_000_000_000, b"root\n", 2)
    assert tree[b"etc/l"][4] == b"/proc/mounts"
    assert LayerStore(store).verify(keys[1]) == []


def test_hard_link_to_what_the_layer_deletes_keeps_the_bytes(store: Store) -> None:
    image = put(store, "a", BASE, tar(directory(b"etc"), link(b"kept", b"etc/passwd"), file(b"etc/.wh.passwd")))
    tree = merged(store, image)
    assert b"etc/passwd" not in tree
    assert tree[b"kept"][4:] == (b"root\n", 1)
    assert LayerStore(store).verify(unpack_image(store, image)[1]) == []


@pytest.mark.parametrize("target", [b"etc/nothing", b"etc"])
def test_hard_link_to_nothing_below_is_refused(store: Store, target: bytes) -> None:
    with pytest.raises(InvalidError, match="hard link"):
        unpack_image(store, put(store, "a", BASE, tar(link(b"h", target))))


def test_hard_link_out_of_the_bottom_layer_is_refused(store: Store) -> None:
    with pytest.raises(InvalidError, match="no layer is below"):
        unpack_image(store, put(store, "a", tar(link(b"h", b"etc/passwd"))))


def test_directories_that_a_layer_does_not_describe_stay_as_they_are(store: Store) -> None:
    image = put(store, "a", BASE, tar(file(b"tmp/x", b"1"), file(b"opt/y", b"2")))
    tree = merged(store, image)
    assert tree[b"tmp"][:4] == (0o041777, 5, 6, 1234_000_000_000)
    assert tree[b"opt"][:3] == (0o040755, 0, 0)


def test_undescribed_directory_that_replaces_a_deleted_one_is_new(store: Store) -> None:
    tree = merged(store, put(store, "a", BASE, tar(file(b".wh.tmp"), file(b"tmp/x", b"1"))))
    assert tree[b"tmp"][:3] == (0o040755, 0, 0)


def test_undescribed_directory_that_is_opaque_stays_as_it_is(store: Store) -> None:
    tree = merged(store, put(store, "a", BASE, tar(file(b"etc/.wh..wh..opq"), file(b"tmp/.wh..wh..opq"))))
    assert tree[b"tmp"][:4] == (0o041777, 5, 6, 1234_000_000_000)
    assert b"etc/passwd" not in tree


THROUGH_SYMLINKS = tar(
    directory(b"x/y", uid=3),
    symlink(b"a", b"/x/y"),
    file(b"a/f", b"1"),
    link(b"a/g", b"a/f"),
    symlink(b"x/up", b"../../../usr"),
    file(b"x/up/lib/h", b"2"),
    symlink(b"a/m", b"../up"),
    directory(b"a/m/n", uid=4),
    file(b"a/m/.wh.old"),
)


def test_symlinks_of_a_layer_lead_where_umoci_follows_them(store: Store, tmp_path: Path) -> None:
    base = tar(directory(b"usr"), file(b"usr/old", b"3"), directory(b"etc"))
    image = put(store, "through:1", base, THROUGH_SYMLINKS)
    source, target = f"{store.path}:docker.io/library/through:1", tmp_path / "umoci"
    subprocess.run(["umoci", "raw", "unpack", "--image", source, target], check=True, capture_output=True)
    expected = {os.fsencode(found.relative_to(target)): found.lstat() for found in target.rglob("*")}
    tree = merged(store, image)
    del tree[b""]
    assert {path: shown[:3] for path, shown in tree.items()} == {
        path: (st.st_mode, st.st_uid, st.st_gid) for path, st in expected.items()
    }
    assert tree[b"usr/lib/h"][4] == b"2" and tree[b"x/y/g"][5] == 2


def test_layer_fits_only_where_it_was_unpacked_for(store: Store) -> None:
    layer = tar(file(b"tmp/x", b"1"))
    other = tar(directory(b"tmp", 0o700, uid=1))
    first, second, third = put(store, "a", BASE, layer), put(store, "b", other, layer), put(store, "c", layer)
    keys = [unpack_image(store, image)[-1] for image in (first, second, third)]
    assert len(set(keys)) == 3
    assert [merged(store, image)[b"tmp"][1] for image in (first, second, third)] == [5, 1, 0]


def test_root_is_that_of_the_layer_that_describes_it(store: Store) -> None:
    base = tar(directory(b"./", 0o555, uid=3), directory(b"a"))
    assert merged(store, put(store, "a", base, tar(file(b"x"))))[b""][:2] == (0o040555, 3)


def test_threads_and_stores_may_unpack_the_same_image(store: Store, tmp_path: Path) -> None:
    image = put(store, "a", BASE, *(tar(directory(b"./"), file(b"%d" % n, bytes(n))) for n in range(5)))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with Store.open(tmp_path / "store") as other:
                unpack_image(other, image)
        except BaseException as error:  # noqa: BLE001 - asserted below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(os.listdir(store.path / "layers")) == 6
    assert not os.listdir(store.path / "tmp")


def test_progress_counts_the_compressed_bytes(store: Store) -> None:
    image = put(store, "a", BASE)

    class Seen:
        count, notes = 0, list[str]()

        def begin(self, what: str, total: int | None) -> Seen:
            assert what.startswith("layer sha256:") and total == image.manifest.layers[0].size
            return self

        def advance(self, n: int) -> None:
            self.count += n

        def done(self, note: str = "") -> None:
            self.notes.append(note)

    seen = Seen()
    unpack_image(store, image, seen)
    assert seen.count == image.manifest.layers[0].size and seen.notes == [""]


def test_attributes_that_cannot_be_kept_are_counted(store: Store) -> None:
    given = {
        b"trusted.overlay.opaque": b"y",
        b"user.overlay.redirect": b"/e",
        b"user.overlay.opaque": b"y",
        b"os2.x": b"1",
    }
    image = put(store, "a", tar(xattrs(given), directory(b"d"), file(b"f")))
    layers = LayerStore(store)
    (key,) = unpack_image(store, image)
    assert layers.info(key).warnings == {
        "xattr os2.x not stored: Operation not supported": 1,
        "xattr user.overlay.opaque not stored: reserved": 1,
    }
    assert layers.index(key).records[1].xattrs == {b"trusted.overlay.opaque": b"y", b"user.overlay.redirect": b"/e"}
    assert os.listxattr(layers.path(key) / "d") == ["trusted.overlay.overlay.opaque", "user.overlay.redirect"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "etc/passwd").write_bytes(b"toor\n"), "'etc/passwd' differs: time, content"),
        (lambda d: (d / "etc/passwd").chmod(0o777), "'etc/passwd' differs: mode"),
        (lambda d: os.chown(d / "etc/passwd", 1, 2), "'etc/passwd' differs: owner, group"),
        (lambda d: os.setxattr(d / "etc/passwd", "user.note", b"2"), "'etc/passwd' differs: xattrs"),
        (lambda d: (d / "tmp/new").write_bytes(b""), "'tmp/new' is not of the layer"),
        (lambda d: (d / "etc/passwd").unlink(), "'etc/passwd' is missing"),
        (lambda d: os.setxattr(d / "etc", "trusted.overlay.opaque", b"y"), "'etc' differs: opacity"),
    ],
)
def test_verify_finds_what_was_changed(store: Store, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    layers = LayerStore(store)
    (key,) = unpack_image(store, put(store, "a", BASE))
    damage(layers.path(key))
    assert words in layers.verify(key)


def test_damaged_index_is_an_error(store: Store) -> None:
    layers = LayerStore(store)
    (key,) = unpack_image(store, put(store, "a", BASE))
    (layers.path(key).parent / "index").write_bytes(b"rubbish")
    with pytest.raises(InvalidError, match="damaged"):
        layers.index(key)
    with pytest.raises(NotFoundError, match="not unpacked"):
        layers.index(digest_of(b""))


@pytest.mark.parametrize("years", [10**12, -(10**12)])
def test_time_that_the_disk_cannot_hold_is_the_nearest(store: Store, years: int) -> None:
    time = b"%d" % (years * 31_556_952)
    image = put(
        store,
        "a",
        tar(
            pax({b"mtime": time}),
            file(b"f", b"1"),
            link(b"h", b"f"),
            pax({b"mtime": time}),
            directory(b"d"),
            pax({b"mtime": time}),
            symlink(b"l", b"f"),
            file(b"g", b"1", mtime=5),
        ),
    )
    (key,) = unpack_image(store, image)
    place = LayerStore(store).path(key)
    probe = store.path / "probe"
    probe.touch()
    nearest = min(max(years * 31_556_952, -(1 << 63) // 10**9 + 1), (1 << 64) // 10**9 - 1)
    os.utime(probe, (nearest, nearest))
    kept = probe.stat().st_mtime
    assert [(place / name).lstat().st_mtime for name in ("f", "d", "l")] == [pytest.approx(kept, abs=2)] * 3
    assert (place / "g").stat().st_mtime == 5
    assert LayerStore(store).info(key).warnings == {"time not stored: out of the disk's range": 3}
    assert LayerStore(store).verify(key) == []
    assert merged(store, image)[b"f"][3] == (place / "f").stat().st_mtime_ns


@pytest.mark.parametrize("code", [None, errno.EINVAL, errno.EOVERFLOW])
def test_disk_that_wraps_or_refuses_times_keeps_those_of_today(code: int | None, tmp_path: Path) -> None:
    """As some network and FUSE file systems do."""
    clock = {"ns": 0}

    def utime(_: int, ns: tuple[int, int]) -> None:
        if code is not None:
            raise OSError(code, os.strerror(code))
        clock["ns"] = ns[0] % (1 << 32)

    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "utime", utime)
            patch.setattr(os, "fstat", lambda _: SimpleNamespace(st_mtime_ns=clock["ns"]))
            assert storable_times(fd) == (0, ((1 << 31) - 1) * 10**9)
    finally:
        os.close(fd)


def test_time_after_2262_is_exact(store: Store) -> None:
    """The disks of today hold times up to 2446 (ext4) and 2486 (XFS)."""
    layer = tar(pax({b"mtime": b"13000000000"}), file(b"f", b"1"))
    (key,) = unpack_image(store, put(store, "a", layer))
    assert (LayerStore(store).path(key) / "f").stat().st_mtime == 13_000_000_000
    assert LayerStore(store).info(key).warnings == {}
    assert LayerStore(store).verify(key) == []


def test_exact_times_owners_and_xattrs(store: Store) -> None:
    image = put(
        store,
        "a",
        tar(
            directory(b"./"),
            pax({b"mtime": b"1.000000001", b"uid": b"3000000000"}),
            file(b"a", b"1", mode=0o6711),
            tars.header(b"null", tars.CHAR, device=(1, 3), mode=0o666),
            xattrs({b"security.capability": bytes.fromhex("0100000200040000000000000000000000000000")[:20]}),
            file(b"ping", b"1", mode=0o755, gid=9),
        ),
        kind=None,
    )
    assert image.manifest.layers[0].media_type == OCI_LAYER
    (key,) = unpack_image(store, image)
    diff = LayerStore(store).path(key)
    a, null = (diff / "a").stat(), (diff / "null").stat()
    assert (a.st_mtime_ns, a.st_uid, stat.S_IMODE(a.st_mode)) == (1_000_000_001, 3_000_000_000, 0o6711)
    assert (stat.S_ISCHR(null.st_mode), null.st_rdev, stat.S_IMODE(null.st_mode)) == (True, os.makedev(1, 3), 0o666)
    assert os.getxattr(diff / "ping", "security.capability")[:1] == b"\x01"
    assert LayerStore(store).verify(key) == []
