"""The commands that keep images, as people call them; and the other tools of the field on both ends."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import zstandard

from overlayfs.container.containers import Containers
from overlayfs.image.oci.digest import hex_of
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Image, Store
from tests.cli.people import COMMAND
from tests.image.making import LayoutFiles, docker_files, packed, put, tar

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the parser's parts of each other
    from overlayfs.cli.main import main

A, B = tar({"etc/a": b"a" * 5000}), tar({"etc/b": b"b"})
PATIENCE_S = 60


class Kept:
    """A store and the command that works on it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.path = top / "store"

    def put(self, *arguments: Any, **options: Any) -> Image:
        with Store.open(self.path) as store:
            return put(store, *arguments, **options)

    def run(self, *arguments: str | Path, status: int = 0) -> list[str]:
        """The lines that a command prints, in this process; of an error those on standard error."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["overlayfs", "--store", str(self.path), *map(str, arguments)])
            patch.setattr(sys, "stdin", io.StringIO())
            assert main() == status, (out.getvalue(), err.getvalue())
        if status in (0, 3):
            assert err.getvalue() == ""
            return out.getvalue().splitlines()
        return err.getvalue().splitlines()

    def answer(self, *arguments: str | Path, status: int = 0) -> Any:
        return json.loads("\n".join(self.run(*arguments, "--json", status=status)))

    def pipe(self, *arguments: str | Path, data: bytes = b"") -> bytes:
        command = [*COMMAND, "--store", self.path, *arguments]
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=True).stdout

    def names(self) -> list[str]:
        return [tag for image in self.answer("images") for tag in image["RepoTags"] or ["<none>"]]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def archive(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(tar(files))
    return path


# in and out


def test_load_says_what_it_loaded_and_unpacks_it(kept: Kept) -> None:
    file = archive(kept.top / "x.tar", docker_files(["x:1", "y"], A, B))
    assert kept.run("load", "-i", file) == ["Loaded image: x:1", "Loaded image: y:latest"]
    assert kept.answer("images")[0]["IsUnpacked"] is True
    assert len(os.listdir(kept.path / "layers")) == 2


def test_load_from_a_pipe_and_save_into_one(kept: Kept) -> None:
    data = gzip.compress(tar(docker_files(["x:1"], A)))
    assert kept.pipe("load", "--no-unpack", data=data) == b"Loaded image: x:1\n"
    kept.run("save", "x:1", "-o", kept.top / "out.tar")
    data = kept.pipe("save", "x:1", "--compress", "gzip")
    assert gzip.decompress(data) == (kept.top / "out.tar").read_bytes()


def test_load_of_an_image_without_a_name(kept: Kept) -> None:
    files = docker_files(None, A)
    (identity,) = (name.removesuffix(".json") for name in files if len(name) == 69)
    file = archive(kept.top / "x.tar", files)
    assert kept.run("load", "-i", file) == [f"Loaded image ID: sha256:{identity}"]
    assert kept.run("load", "-i", file, "--name", "mine:3") == ["Loaded image: mine:3"]
    assert kept.run("images")[1].split()[:3] == ["mine", "3", identity[:12]]


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive", "oci-dir"])
def test_every_format_is_loaded_again(kept: Kept, kind: str) -> None:
    image = kept.put("x:1", A, B)
    kept.run("save", "x:1", "--format", kind, "-o", kept.top / "out")
    kept.run("rmi", "x:1")
    kept.run("prune")
    assert kept.answer("load", "-i", kept.top / "out") == [{"Id": image.id, "Name": "docker.io/library/x:1"}]


def test_failed_save_leaves_no_file_and_the_old_one_intact(kept: Kept) -> None:
    image = kept.put("x:1", A, kind=None)
    blob = kept.path / "blobs" / "sha256" / hex_of(image.manifest.layers[0].digest)
    blob.write_bytes(bytes(len(A)))
    (kept.top / "old.tar").write_text("old")
    for name in ("old.tar", "new.tar"):
        (line,) = kept.run("save", "x:1", "-o", kept.top / name, status=1)
        assert "other content" in line
    assert (kept.top / "old.tar").read_text() == "old"
    assert sorted(os.listdir(kept.top)) == ["old.tar", "store"]


def test_file_that_cannot_be_made_is_named(kept: Kept) -> None:
    kept.put("x:1", A)
    (line,) = kept.run("save", "x:1", "-o", kept.top / "nowhere" / "x.tar", status=1)
    assert line == f"overlayfs: {kept.top}/nowhere/x.tar: No such file or directory"


def test_file_is_written_through_a_symlink(kept: Kept) -> None:
    kept.put("x:1", A)
    (kept.top / "link").symlink_to("x.tar")
    kept.run("save", "x:1", "-o", kept.top / "link")
    assert (kept.top / "link").is_symlink()
    assert tarfile.is_tarfile(kept.top / "x.tar")


def test_layer_that_is_hostile_leaves_no_image(kept: Kept) -> None:
    file = archive(kept.top / "x.tar", docker_files(["x:1"], tar({"../../escaped": b"x"})))
    (line,) = kept.run("load", "-i", file, status=1)
    assert "escaped" in line
    assert kept.names() == []
    assert not list(kept.top.rglob("escaped"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("load", "-i", "nowhere"), "nowhere"),
        (("inspect", "x"), "no image 'x'"),
        (("tag", "x", "y"), "no image 'x'"),
        (("rmi", "x"), "no image 'x'"),
        (("save", "x", "-o", "out"), "no image 'x'"),
        (("history", "x"), "no image 'x'"),
        (("verify", "x"), "no image 'x'"),
        (("images", "UPPER"), "UPPER"),
        (("save", "x", "--format", "oci-dir"), "-o DIR"),
        (("import", "nowhere"), "nowhere"),
        (("export", "x"), "no image 'x'"),
        (("prune", "--all", "--force", "x"), "unexpected"),
    ],
)
def test_mistake_is_one_line(kept: Kept, arguments: tuple[str, ...], message: str) -> None:
    (line,) = kept.run(*arguments, status=2 if message == "unexpected" else 1)
    assert message in line


def test_attributes_that_cannot_be_kept_are_counted(kept: Kept) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as layer:
        for name in ("a", "b"):
            member = tarfile.TarInfo(name)
            member.pax_headers = {"SCHILY.xattr.nonsense.x": "y"}
            layer.addfile(member)
    file = archive(kept.top / "x.tar", docker_files(["x:1"], out.getvalue()))
    done = subprocess.run(
        [*COMMAND, "--store", kept.path, "load", "-i", file],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stdout == "Loaded image: x:1\n"
    assert "nonsense.x" in done.stderr and "(2 times)" in done.stderr


def test_artifact_beside_an_image_is_said_to_be_skipped(kept: Kept) -> None:
    files = LayoutFiles()
    files.image("docker.io/library/x:1", A)
    files.manifests.append(files.blob(b"{}", "text/\x1b[31mplain"))
    done = subprocess.run(
        [*COMMAND, "--store", kept.path, "load", "-i", archive(kept.top / "x.tar", files.finished())],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stdout == "Loaded image: x:1\n"
    digest = files.manifests[-1]["digest"]
    assert done.stderr.splitlines() == [
        f"overlayfs: {kept.top}/x.tar: skipped, as {digest} is no image: it is of the type 'text/\\x1b[31mplain'"
    ]


@pytest.mark.parametrize("name", [("--name", "x:1"), ()], ids=["named", "unnamed"])
@pytest.mark.parametrize("kinds", [("oci-archive", "docker-archive"), ("docker-archive", "oci-archive")])
def test_image_that_comes_in_two_kinds_of_archive_is_listed_once(
    kept: Kept, kinds: tuple[str, str], name: tuple[str, ...]
) -> None:
    other = Kept(kept.top / "other")
    identity = other.put(None, A, B).id
    for kind in kinds:
        other.run("save", identity, "--format", kind, "-o", kept.top / f"{kind}.tar")
        kept.run("load", "-i", kept.top / f"{kind}.tar", *name)
    assert [image["Id"] for image in kept.answer("images")] == [identity]
    kept.run("prune", "--force")
    assert len(kept.names()) == (1 if name else 0)
    assert kept.run("verify") == []


def test_hostile_text_of_an_image_is_shown_as_text(kept: Kept) -> None:
    kept.put("x:1", A, author="\x1b[31mred\x07", variant="v\n8")
    for command in ("inspect", "history"):
        assert not any(character in line for line in kept.run(command, "x:1") for character in "\x1b\x07")


@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
def test_root_filesystem_is_imported_and_exported(kept: Kept, kind: str | None) -> None:
    (kept.top / "rootfs.tar").write_bytes(packed(A, kind))
    (identity,) = kept.run("import", kept.top / "rootfs.tar", "x:1", "-c", "ENV A=b", "-m", "from afar")
    (document,) = kept.answer("inspect", "x:1")
    assert document["Id"] == identity
    assert document["Config"]["Env"] == ["A=b"]
    assert kept.answer("history", "x:1")[0]["Comment"] == "from afar"
    kept.run("export", "x:1", "-o", kept.top / "out.tar", *(["--compress", kind] if kind else []))
    with tarfile.open(fileobj=io.BytesIO(unpacked((kept.top / "out.tar").read_bytes(), kind))) as archive:
        member = archive.extractfile("etc/a")
        assert member is not None and member.read() == b"a" * 5000


def unpacked(data: bytes, kind: str | None) -> bytes:
    if kind == "gzip":
        return gzip.decompress(data)
    return zstandard.decompress(data, max_output_size=1 << 20) if kind == "zstd" else data


def test_root_filesystem_comes_from_a_pipe_and_goes_into_one(kept: Kept) -> None:
    assert kept.pipe("import", "-", "x:1", data=gzip.compress(A)).startswith(b"sha256:")
    with tarfile.open(fileobj=io.BytesIO(kept.pipe("export", "x:1"))) as archive:
        assert "etc/a" in archive.getnames()


@pytest.mark.parametrize("words", [("save", "x:1"), ("export", "x:1"), ("images",)])
def test_reader_that_has_had_enough_ends_the_command_quietly(kept: Kept, words: tuple[str, ...]) -> None:
    kept.put("x:1", A)
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with os.fdopen(write_fd, "wb") as out:
        command = [*COMMAND, "--store", str(kept.path), *words]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (128 + 13, b"")


def test_container_is_exported_with_what_it_changed(kept: Kept) -> None:
    kept.put("x:1", A)
    with Store.open(kept.path) as store:
        image = store.find("x:1")
        containers = Containers(store)
        made = containers.create("c", image, unpack_image(store, image))
        (containers.upper(made) / "etc").mkdir()
        (containers.upper(made) / "etc" / "new").write_text("new")
    kept.run("export", "c", "-o", kept.top / "out.tar")
    with tarfile.open(kept.top / "out.tar") as archive:
        assert {"etc/a", "etc/new"} <= set(archive.getnames())


# look


def test_images_are_listed_as_docker_does(kept: Kept) -> None:
    debian, mine = kept.put("debian:12", A), kept.put("reg.example:5000/a/b", B)
    kept.put("debian:12", A, B)
    lines = [line.split() for line in kept.run("images")]
    assert lines[0] == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert [line[:2] for line in lines[1:]] == [
        ["debian", "12"],
        ["reg.example:5000/a/b", "latest"],
        ["<none>", "<none>"],
    ]
    assert lines[2][2] == hex_of(mine.id)[:12]
    assert kept.run("images", "-q", "--no-trunc")[1:] == [mine.id, debian.id]
    assert len(kept.run("images", "debian")) == 2
    assert kept.run("images", "debian:11") == []


def test_inspect_has_dockers_names(kept: Kept) -> None:
    image = kept.put("debian:12", A, B)
    (document,) = kept.answer("inspect", "debian:12")
    assert document["Id"] == image.id
    assert document["RepoTags"] == ["debian:12"]
    assert document["RepoDigests"] == [f"debian@{image.digest}"]
    assert document["RootFS"] == {"Type": "layers", "Layers": list(image.config.rootfs.diff_ids)}
    assert document["Config"] == {"Env": ["A=b"], "Cmd": ["/bin/sh"]}
    assert (document["Architecture"], document["Os"]) == ("amd64", "linux")
    text = "\n".join(kept.run("inspect", "debian:12"))
    assert image.id in text and "A=b" in text


def test_inspect_shows_all_of_the_configuration_and_counts_layers_as_others_do(kept: Kept) -> None:
    (kept.top / "rootfs.tar").write_bytes(A)
    changes = ("EXPOSE 80 90/udp", "VOLUME /d", "LABEL a=b", "STOPSIGNAL INT", "USER bob")
    kept.run("import", kept.top / "rootfs.tar", "x:1", *(word for change in changes for word in ("-c", change)))
    lines = [line.split(maxsplit=1) for line in kept.run("inspect", "x:1") if line]
    facts = {line[0]: line[1] for line in lines}
    assert facts["ExposedPorts"] == "80/tcp, 90/udp"
    assert facts["Volumes"] == "/d"
    assert facts["Labels"] == '{"a": "b"}'
    assert (facts["StopSignal"], facts["User"]) == ("INT", "bob")
    assert "in 1 layer" in facts["Size"] and lines[-1][0] == "1"


def test_history_is_newest_first(kept: Kept) -> None:
    image = kept.put("x", A, B)
    steps = kept.answer("history", "x")
    assert [step["CreatedBy"] for step in steps] == ["step 1", "step 0"]
    assert [step["Size"] for step in steps] == [layer.size for layer in image.manifest.layers][::-1]
    assert [step["Id"] for step in steps] == [image.id, "<missing>"]
    assert kept.run("history", "x")[0].split() == ["CREATED", "CREATED", "BY", "SIZE", "COMMENT"]


@pytest.mark.parametrize("what", ["manifest", "description"])
def test_images_are_listed_beside_one_that_cannot_be_read(kept: Kept, what: str) -> None:
    broken = kept.put("broken", A)
    kept.put("whole", B)
    with Store.open(kept.path) as store:
        (key,) = unpack_image(store, broken)
    if what == "manifest":
        path = kept.path / "blobs" / "sha256" / hex_of(broken.descriptor.digest)
        path.unlink()
        path.mkdir()  # a stand-in for a bad sector
    else:
        path = kept.path / "layers" / hex_of(key) / "layer.json"
        path.write_bytes(b"")
    _, first, second = kept.run("images")
    assert "damaged" in first and "damaged" not in second
    assert any("(see overlayfs verify)" in line for line in kept.run("inspect", "broken", status=1))
    assert kept.run("verify", status=3)
    assert kept.run("inspect", "whole")


def test_damaged_image_is_listed_and_can_be_removed(kept: Kept) -> None:
    image = kept.put("x", A)
    (kept.path / "blobs" / "sha256" / hex_of(image.id)).write_text("{}")
    assert "damaged" in kept.run("images")[1]
    (line,) = kept.run("prune", status=1)
    assert "overlayfs rmi x" in line
    assert kept.run("rmi", "x")[0] == "Removed: x:latest"
    kept.run("prune")
    assert os.listdir(kept.path / "blobs" / "sha256") == []


# names and removal


def test_tag_and_rmi(kept: Kept) -> None:
    kept.put("x:1", A)
    kept.run("tag", "x:1", "y")
    assert kept.names() == ["x:1", "y:latest"]
    assert kept.run("rmi", "x:1") == ["Removed: x:1"]
    gone, freed = kept.run("rmi", "y")
    assert (gone, freed.split()[0]) == ("Removed: y:latest", "Freed:")
    assert os.listdir(kept.path / "blobs" / "sha256") == []


@pytest.mark.parametrize(
    "data", [b"root:x:0:0", b"x" * 5000, gzip.compress(b"x" * 5000, mtime=0)], ids=["line", "bytes", "gzip"]
)
def test_what_is_no_tar_is_called_so(kept: Kept, data: bytes) -> None:
    (kept.top / "odd").write_bytes(data)
    for words in (("load", "-i"), ("import",)):
        (line,) = kept.run(*words, kept.top / "odd", status=1)
        assert line.startswith(f"overlayfs: {kept.top / 'odd'} is no tar archive"), line


def test_rmi_of_several_removes_those_that_can_be(kept: Kept) -> None:
    kept.put("x:1", A)
    kept.put("y:1", B)
    (line,) = kept.run("rmi", "x:1", "nosuch", "y:1", status=1)
    assert "no image 'nosuch'" in line
    assert kept.names() == []


def test_rmi_says_what_it_removed_and_why_nothing_was_freed(kept: Kept) -> None:
    kept.put("x:1", A)
    broken = kept.put("y:1", B)
    (kept.path / "blobs" / "sha256" / hex_of(broken.descriptor.digest)).write_bytes(b"")
    (line,) = kept.run("rmi", "x:1", status=1)
    assert line.startswith("overlayfs: no space was freed: y:1 is damaged") and "overlayfs rmi y:1" in line
    assert kept.names() == ["y:1"]


def test_rmi_does_not_wait_for_others(kept: Kept) -> None:
    kept.put("x:1", A)
    with Store.open(kept.path):
        assert kept.run("rmi", "x:1") == ["Removed: x:1"]
        assert len(os.listdir(kept.path / "blobs" / "sha256")) == 3


def test_prune_says_what_it_does(kept: Kept) -> None:
    kept.put("x:1", A)
    old = kept.put("y:1", A, author="another")
    kept.put("y:1", B)
    assert kept.run("prune", "--dry-run")[0] == f"Would remove: {old.digest}"
    report = kept.answer("prune")
    assert report["ImagesDeleted"] == [old.digest]
    assert report["SpaceReclaimed"] > 0
    (line,) = kept.run("prune", "--all", status=1)
    assert "--force" in line
    assert kept.answer("prune", "--all", "--force")["ImagesDeleted"] == ["x:1", "y:1"]
    assert kept.names() == []


def test_equal_files_of_layers_share_their_bytes_when_asked(kept: Kept) -> None:
    for number in (1, 2):
        tree = kept.top / f"tree{number}"
        tree.mkdir()
        (tree / "large").write_bytes(b"same" * 5000)
        (tree / "own").write_bytes(b"%d" % number * 5000)
        os.utime(tree / "large", (1, 1))
        kept.run("import", tree, f"x:{number}")
        kept.run("layers", f"x:{number}")  # unpacks it
    assert "exclude" in kept.run("prune", "--share", "hardlink", "--dry-run", status=2)[0]
    report = kept.answer("prune", "--share", "hardlink")
    assert (report["FilesShared"], report["BytesShared"]) == (1, 20_000)
    first, second = (kept.path / "layers").glob("*/diff/large")
    assert os.path.samefile(first, second)
    kept.run("verify")


def test_what_is_mounted_is_not_pruned(kept: Kept) -> None:
    kept.run("load", "-i", archive(kept.top / "x.tar", docker_files(["x:1"], A, B)))
    (kept.top / "mnt").mkdir()
    kept.pipe("mount", "x:1", kept.top / "mnt")
    try:
        (line,) = kept.run("rmi", "x:1", status=1)
        assert "a container or mount uses x:1" in line
        kept.run("rmi", "-f", "x:1")
        assert kept.answer("prune", "--all", "--force")["Layers"] == 0
        assert (kept.top / "mnt" / "etc" / "a").read_bytes() == b"a" * 5000
    finally:
        kept.pipe("umount", kept.top / "mnt")
    assert kept.answer("prune", "--all", "--force")["Layers"] == 2


def test_verify_finds_and_removes_damage(kept: Kept) -> None:
    file = archive(kept.top / "x.tar", docker_files(["x:1"], A, B))
    kept.run("load", "-i", file)
    assert kept.run("verify") == []
    blob = kept.path / "blobs" / "sha256" / hashlib.sha256(A).hexdigest()
    blob.write_bytes(bytes(len(A)))
    (line,) = kept.run("verify", status=3)
    assert blob.name in line
    assert [found["mended"] for found in kept.answer("verify", "--repair")] == [True]
    (line,) = kept.run("verify", "x:1", status=3)
    assert "missing" in line
    kept.run("load", "-i", file)
    assert kept.run("verify") == []


# the other tools of the field


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage of podman's own; tools.md has why it needs all this."""
    (tmp_path / "storage.conf").write_text(
        f'[storage]\ndriver="vfs"\nrunroot="{tmp_path}/run"\ngraphroot="{tmp_path}/root"\n'
    )
    (tmp_path / "containers.conf").write_text(
        '[containers]\nnetns="none"\n[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'
    )
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    monkeypatch.setenv("CONTAINERS_CONF", str(tmp_path / "containers.conf"))
    return tmp_path


def tool(*arguments: str | Path) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def manifest_digest(source: str) -> str:
    return f"sha256:{hashlib.sha256(tool('skopeo', 'inspect', '--raw', source).encode()).hexdigest()}"


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_podman_loads_what_is_saved_and_we_what_it_saves(kept: Kept, site: Path, kind: str) -> None:
    images = [kept.put("x:1", A, B), kept.put("reg.example/y:2", B)]
    kept.run("save", "x:1", "reg.example/y:2", "--format", kind, "-o", site / "ours.tar")
    tool("podman", "load", "-q", "-i", site / "ours.tar")
    listed = tool("podman", "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").split("\n")
    assert {f"docker.io/library/x:1 {images[0].id}", f"reg.example/y:2 {images[1].id}"} <= set(listed)
    tool("podman", "save", "-q", "--format", kind, "-o", site / "theirs.tar", "docker.io/library/x:1")
    kept.run("prune", "--all", "--force")
    (again,) = kept.answer("load", "-i", site / "theirs.tar")
    assert again["Name"] == "docker.io/library/x:1"
    (document,) = kept.answer("inspect", "x:1")
    assert document["RootFS"]["Layers"] == list(images[0].config.rootfs.diff_ids)
    if kind == "docker-archive":  # into the other podman writes a configuration of its own
        assert again["Id"] == images[0].id


def test_skopeo_and_umoci_read_the_store_in_place(kept: Kept, site: Path) -> None:
    image = kept.put("x:1", A, B)
    name = "docker.io/library/x:1"
    assert manifest_digest(f"oci:{kept.path}:{name}") == image.digest
    tool("skopeo", "copy", "-q", f"oci:{kept.path}:{name}", f"oci:{site}/copy:x")
    assert tool("umoci", "list", "--layout", kept.path).split() == [name]
    tool("umoci", "unpack", "--image", f"{kept.path}:{name}", site / "bundle")
    assert (site / "bundle" / "rootfs" / "etc" / "a").read_bytes() == b"a" * 5000
    assert kept.run("verify") == []
    assert kept.answer("load", "-i", site / "copy") == [{"Id": image.id, "Name": "docker.io/library/copy:x"}]


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_image_keeps_its_digests_from_skopeo_through_the_store_to_skopeo(
    kept: Kept, site: Path, transport: str
) -> None:
    image = kept.put("x:1", A, B)
    kept.run("save", "x:1", "-o", site / "first.tar")
    tool("skopeo", "copy", "-q", f"oci-archive:{site}/first.tar", f"{transport}:{site}/x.img:docker.io/library/x:1")
    assert kept.answer("load", "-i", site / "x.img")[0]["Id"] == image.id
    kept.run("save", "x:1", "-o", site / "last.tar")
    if transport != "docker-archive":  # which has no manifest
        assert manifest_digest(f"oci-archive:{site}/last.tar") == image.digest
        assert (site / "last.tar").read_bytes() == (site / "first.tar").read_bytes()


def test_skopeo_may_write_into_the_store(kept: Kept, site: Path) -> None:
    kept.put("x:1", A)
    tool("skopeo", "copy", "-q", f"oci:{kept.path}:docker.io/library/x:1", f"oci:{kept.path}:docker.io/library/y:2")
    assert kept.names() == ["x:1", "y:2"]
    assert kept.run("rmi", "x:1") == ["Removed: x:1"]


def test_layout_of_umoci_is_loaded(kept: Kept, site: Path) -> None:
    tool("umoci", "init", "--layout", site / "made")
    tool("umoci", "new", "--image", f"{site}/made:v1")
    archive(site / "layer.tar", {"a": b"a"})
    tool("umoci", "raw", "add-layer", "--image", f"{site}/made:v1", site / "layer.tar")
    kept.run("load", "-i", site / "made")
    assert kept.names() == ["made:v1"]
    assert kept.answer("images")[0]["IsUnpacked"] is True


def test_archive_is_a_plain_tar(kept: Kept, site: Path) -> None:
    kept.put("x:1", A, B)
    kept.run("save", "x:1", "-o", site / "x.tar")
    assert "index.json" in tool("tar", "-tvf", site / "x.tar")
    with tarfile.open(site / "x.tar") as opened:
        assert {(member.mtime, member.uid, member.mode) for member in opened} == {(0, 0, 0o644)}
    assert json.loads(tool("tar", "-xOf", site / "x.tar", "oci-layout")) == {"imageLayoutVersion": "1.0.0"}
