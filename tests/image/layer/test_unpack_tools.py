"""Layers that other tools wrote come out as other tools unpack them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from overlayfs.image.layer.disk_format import OverrideFormat, RealFormat
from overlayfs.image.layer.file_index import VERSION, LayerIndex
from overlayfs.image.layer.tampering import differences
from overlayfs.image.layer.unpack import Unpacker
from overlayfs.image.oci.digest import digest_of
from overlayfs.image.tar.reader import TarReader
from overlayfs.overlay.layer import open_layer
from overlayfs.overlay.view import View
from tests.contract.tree import Tree, acl, build, char, directory, fifo, file, hardlink, symlink
from tests.image.snapshot import snapshot

TREE: Tree = {
    "a": directory(0o2755, 1, 2, mtime=1_000_000_000),
    "a/file": file(b"content", 0o640, 70_000, 2_000_000, mtime=1_234_567_890_987_654_321),
    "a/link": hardlink("a/file"),
    "a/setuid": file(b"x", 0o4755),
    "a/big": file(bytes(range(256)) * 5000),
    "a/sparse": file(b"x" * 5000, size=4 << 20, sparse=True),
    "a/note": file(b"1", xattrs={"user.note": b"\0\x01=\n", "user.empty": b""}),
    "a/acl": file(b"", 0o640, xattrs={"system.posix_acl_access": acl(6, 4, 0, 6, {1000: 6})}),
    "dev/null": char(1, 3, 0o666),
    "dev/pipe": fifo(0o600, 3, 4),
    "s": symlink("a/../../x", 5, 6),
    "/".join(["deep" * 10] * 12) + "/end": file(b"deep"),
    "n" * 200: file(b"name"),
    "h\u00e9": symlink("t" * 300),
    "old": file(b"", mtime=-1_500_000_000),
}
FORMATS = {
    "gnu": ("--format=gnu", "--sparse"),
    "posix": ("--format=posix", "--xattrs", "--xattrs-include=*"),
    "sparse 0.0": ("--format=posix", "--sparse", "--sparse-version=0.0"),
    "sparse 0.1": ("--format=posix", "--sparse", "--sparse-version=0.1"),
    "sparse 1.0": ("--format=posix", "--sparse", "--sparse-version=1.0", "--xattrs", "--xattrs-include=*"),
}


def archive(tree: Path, *options: str) -> bytes:
    command: list[str | Path] = ["tar", *options, "--numeric-owner", "--sort=name", "-cf", "-", "-C", tree, "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


def unpack(data: bytes, directory: Path, disk_format: RealFormat | OverrideFormat) -> list[str]:
    """Unpack; what `verify` finds then."""
    directory.mkdir()
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        chunks = (memoryview(data)[at : at + 10_000] for at in range(0, len(data), 10_000))
        unpacked = Unpacker(root, disk_format).run(TarReader(chunks))
        return list(differences(root, LayerIndex(VERSION, digest_of(data), unpacked.size, unpacked.records)))
    finally:
        os.close(root)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tools") / "tree"
    build(os.fsencode(top), TREE)
    return top


@pytest.mark.parametrize("name", FORMATS)
def test_unpacked_as_gnu_tar_does(tree: Path, tmp_path: Path, name: str) -> None:
    data = archive(tree, *FORMATS[name])
    assert unpack(data, tmp_path / "ours", RealFormat()) == []
    (tmp_path / "theirs").mkdir()
    command: list[str | Path] = [
        "tar",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "-xpf",
        "-",
        "-C",
        tmp_path / "theirs",
    ]
    subprocess.run(command, input=data, check=True, capture_output=True)
    assert snapshot(tmp_path / "ours") == snapshot(tmp_path / "theirs")


def test_unpacked_as_umoci_does(tree: Path, tmp_path: Path) -> None:
    data = archive(tree, *FORMATS["posix"])
    (tmp_path / "layer.tar").write_bytes(data)
    layout = tmp_path / "layout"
    for command in (
        ["init", "--layout", layout],
        ["new", "--image", f"{layout}:x"],
        ["raw", "add-layer", "--image", f"{layout}:x", tmp_path / "layer.tar"],
        ["raw", "unpack", "--image", f"{layout}:x", tmp_path / "theirs"],
    ):
        subprocess.run(["umoci", *command], check=True, capture_output=True)
    assert unpack(data, tmp_path / "ours", RealFormat()) == []
    os.removexattr(tmp_path / "ours/a/note", "user.empty")  # which Go takes for a record that is taken back
    assert snapshot(tmp_path / "ours") == snapshot(tmp_path / "theirs")


def test_sparse_files_take_no_space(tree: Path, tmp_path: Path) -> None:
    assert unpack(archive(tree, *FORMATS["sparse 1.0"]), tmp_path / "ours", RealFormat()) == []
    found = (tmp_path / "ours/a/sparse").stat()
    assert (found.st_size, found.st_blocks * 512 < 100_000) == (4 << 20, True)


def shown(top: Path) -> dict[bytes, tuple[object, ...]]:
    """What a mount of the layer shows; owners of symlinks are not kept for ordinary users."""
    layer = open_layer(0, os.fsencode(top))
    view, found = View([layer]), dict[bytes, tuple[object, ...]]()
    pending = [view.root()]
    try:
        while pending:
            node = pending.pop()
            version = view.version(node)
            st = version.stat
            owner = () if version.target is not None else (st.uid, st.gid)
            found[node.path] = (st.mode, owner, st.size * (not node.is_directory), st.mtime_ns, st.rdev, version.target)
            found[node.path] += (sorted(version.xattrs.items()),)
            if node.is_directory:
                pending += [view.node(node, name, child) for name, child in view.children(node).items()]
    finally:
        os.close(layer.root_fd)
    return found


AS_USER = """
import os, sys
from pathlib import Path
from overlayfs.image.layer.disk_format import OverrideFormat, choose_format
from tests.image.layer.test_unpack_tools import unpack
os.chdir(sys.argv[1])  # the directories above are not the user's
os.setgroups([]); os.setgid(12345); os.setuid(12345)
format = choose_format(b".")
assert isinstance(format, OverrideFormat)
print(unpack(sys.stdin.buffer.read(), Path("layer"), format), dict(format.warnings))
"""


def test_ordinary_user_sees_the_same_layer_as_root(tree: Path, tmp_path: Path) -> None:
    data = archive(tree, *FORMATS["posix"])
    assert unpack(data, tmp_path / "root's", RealFormat()) == []
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 12345, 12345)
    here = os.fspath(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", AS_USER, home],
        input=data,
        capture_output=True,
        check=False,
        cwd=here,
        env={**os.environ, "PYTHONPATH": here},
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == "[] {'owner of a symlink not stored': 1}\n"
    assert shown(home / "layer") == shown(tmp_path / "root's")
    assert all(seen.uid == 12345 and not seen.mode & 0o6000 for seen in snapshot(home / "layer").values())
