"""Copies of an image's files: what is kept, and that nothing is written anywhere else, whatever the image holds."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.inspect.browse import EMPTY, Node, merged_tree
from overlayfs.image.inspect.copy_out import Copied, copy_out
from overlayfs.image.inspect.layer_files import Content
from overlayfs.image.layer.file_index import Record
from tests.image.inspect.indexes import EPOCH, directory, file, hard_link, index, symlink

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # struct vfs_cap_data: cap_net_bind_service


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """The directory of a layer that holds a few files."""
    path = tmp_path / "layer"
    (path / "bin").mkdir(parents=True)
    (path / "bin/su").write_bytes(b"x" * 10)
    with open(path / "sparse", "wb") as hole:
        hole.truncate(10 << 20)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Iterator[int]:
    """A directory to copy into; beside it is a canary that must stay as it is, and nothing else appears."""
    (tmp_path / "out").mkdir()
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/file").write_text("safe")
    fd = os.open(tmp_path / "out", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "canary", "layer"}
    assert [path.name for path in (tmp_path / "canary").iterdir()] == ["file"]
    assert (tmp_path / "canary/file").read_text() == "safe"


def copy(tree: Node, layer: Path, out: int, *, archive: bool = False) -> Copied:
    with Content([layer]) as content:
        return copy_out(tree, content, out, b"", archive=archive)


def test_set_id_bits_and_capabilities_are_not_given_away(layer: Path, out: int, tmp_path: Path) -> None:
    record = Record(b"bin/su", "f", 0o6755, 1000, 1000, 10, EPOCH, xattrs={b"security.capability": CAPABILITY})
    copied = copy(merged_tree([index(directory("bin"), record)]), layer, out)
    st = (tmp_path / "out/bin/su").stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_mtime_ns) == (0o755, os.geteuid(), EPOCH)
    assert "security.capability" not in os.listxattr(tmp_path / "out/bin/su")
    assert copied.left_out == {}


def test_archive_keeps_everything(layer: Path, out: int, tmp_path: Path) -> None:
    records = [
        Record(b"bin", "d", 0o2750, 5, 6, mtime_ns=EPOCH + 1),
        Record(b"bin/su", "f", 0o6755, 1000, 1001, 10, EPOCH, xattrs={b"security.capability": CAPABILITY}),
        Record(b"null", "c", 0o666, 0, 7, device=(1, 3), mtime_ns=EPOCH),
        Record(b"link", "l", 0o777, 8, 9, target=b"bin/su", mtime_ns=EPOCH + 2),
    ]
    copied = copy(merged_tree([index(*records)]), layer, out, archive=True)
    top = tmp_path / "out"
    found = {name: os.lstat(top / name) for name in ("bin", "bin/su", "null", "link")}
    assert {name: (st.st_uid, st.st_gid) for name, st in found.items()} == {
        "bin": (5, 6),
        "bin/su": (1000, 1001),
        "null": (0, 7),
        "link": (8, 9),
    }
    assert stat.S_IMODE(found["bin"].st_mode) == 0o2750 and stat.S_IMODE(found["bin/su"].st_mode) == 0o6755
    assert found["null"].st_rdev == os.makedev(1, 3)
    assert (found["link"].st_mtime_ns, found["bin"].st_mtime_ns) == (EPOCH + 2, EPOCH + 1)
    assert os.getxattr(top / "bin/su", "security.capability") == CAPABILITY
    assert (copied.paths, copied.size, copied.left_out) == (4, 10, {})


def test_devices_are_left_out_and_counted(layer: Path, out: int, tmp_path: Path) -> None:
    devices = [Record(b"sda", "b", 0o660, device=(8, 0)), Record(b"null", "c", 0o666, device=(1, 3))]
    assert copy(merged_tree([index(*devices)]), layer, out).left_out == {"device": 2}
    assert not list((tmp_path / "out").iterdir())


def test_devices_that_cannot_be_made_are_left_out(
    layer: Path, out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    devices = [Record(b"null", "c", 0o666, device=(1, 3)), file("bin/su", 10)]
    copied = copy(merged_tree([index(*devices)]), layer, out, archive=True)
    assert (copied.left_out, copied.paths) == ({"device": 1}, 2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bin"]


def test_holes_stay_holes(layer: Path, out: int, tmp_path: Path) -> None:
    copy(merged_tree([index(file("sparse", 10 << 20))]), layer, out)
    st = (tmp_path / "out/sparse").stat()
    assert (st.st_size, st.st_blocks) == (10 << 20, 0)


def test_first_name_of_a_file_may_be_in_a_deeper_directory(layer: Path, out: int, tmp_path: Path) -> None:
    copy(merged_tree([index(directory("bin"), file("bin/su", 10), hard_link("su", "bin/su"))]), layer, out)
    assert (tmp_path / "out/bin/su").samefile(tmp_path / "out/su")


@pytest.mark.parametrize("kind", ["symlink to a directory", "symlink to a file", "dangling symlink"])
def test_nothing_is_written_through_what_is_there(layer: Path, out: int, tmp_path: Path, kind: str) -> None:
    targets = {"symlink to a directory": "canary", "symlink to a file": "canary/file", "dangling symlink": "nowhere"}
    (tmp_path / "out/bin").symlink_to(tmp_path / targets[kind])
    with pytest.raises(OSError, match="cannot be copied") as caught:
        copy(merged_tree([index(directory("bin"), file("bin/su", 10))]), layer, out)
    assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)


def test_image_cannot_plant_a_symlink_and_write_through_it(layer: Path, out: int, tmp_path: Path) -> None:
    """Such a tree comes from no index of ours: a symlink with something in it."""
    inside = Node(file("bin/su", 10), 0, (0, b"bin/su"))
    link = Node(symlink("bin", f"{tmp_path}/canary"), 0, (0, b"bin"), {b"su": inside})
    with pytest.raises(OSError, match="cannot be copied"):
        copy(Node(EMPTY.record, 0, EMPTY.origin, {b"bin": link}), layer, out)


@pytest.mark.parametrize("name", ["..", "../canary/file", "a/../../canary/new", ".", "/etc/overlayfs-escaped"])
def test_names_that_lead_out_are_not_followed(layer: Path, out: int, tmp_path: Path, name: str) -> None:
    """Nor are these in any index of ours."""
    (tmp_path / "out/a").mkdir()
    evil = Node(Record(os.fsencode(name), "p", 0o644), 0, (0, b"evil"))
    with pytest.raises(OSError, match="cannot be copied"):
        copy(Node(EMPTY.record, 0, EMPTY.origin, {b"evil": evil}), layer, out)
    assert not os.path.exists("/etc/overlayfs-escaped")


def test_layer_tampered_with_leads_nowhere(layer: Path, out: int, tmp_path: Path) -> None:
    (layer / "bin/su").unlink()
    (layer / "bin/su").symlink_to(tmp_path / "canary/file")
    with pytest.raises(OSError, match=r"cannot be copied.*verify"):
        copy(merged_tree([index(directory("bin"), file("bin/su", 10))]), layer, out)
    (layer / "bin/su").unlink()
    os.mkfifo(layer / "bin/su")
    with pytest.raises(OSError, match=r"cannot be copied.*verify"):
        copy(merged_tree([index(directory("bin"), file("bin/su", 10))]), layer, out)


def test_paths_longer_than_the_kernel_takes(layer: Path, out: int, tmp_path: Path) -> None:
    paths = ["/".join(["directory" * 20] * depth) for depth in range(1, 40)]
    tree = merged_tree([index(*(directory(path) for path in paths))])
    assert copy(tree, layer, out).paths == 39
    subprocess.run(["rm", "-rf", tmp_path / "out" / ("directory" * 20)], check=True)


def test_no_drafts_are_left_when_it_fails(layer: Path, out: int, tmp_path: Path) -> None:
    (tmp_path / "out/x").mkdir()
    (layer / "x").write_bytes(b"1")
    with pytest.raises(OSError, match="cannot be copied"):
        copy(merged_tree([index(file("x"))]), layer, out)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
