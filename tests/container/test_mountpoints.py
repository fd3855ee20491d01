"""Places for the host's things in a hostile tree: never outside of it, and gone afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.container.mountpoints import Mountpoints, Volume, check_distinct
from overlayfs.container.root_paths import Inside
from overlayfs.image.oci.errors import InvalidError, NotFoundError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "canary").mkdir()
    return root


@pytest.fixture
def places(root: Path) -> Iterator[Mountpoints]:
    with Inside(os.fsencode(root)) as inside:
        yield Mountpoints(inside)


def listed(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_missing_places_are_made_and_removed(root: Path, places: Mountpoints) -> None:
    (root / "etc").mkdir()
    assert places.directory("/a/b/c") == "/a/b/c"
    assert places.file("/etc/hosts") == "/etc/hosts"
    assert listed(root) == ["a", "a/b", "a/b/c", "etc", "etc/hosts"]
    places.remove()
    assert listed(root) == ["etc"]


def test_what_was_there_or_is_used_stays(root: Path, places: Mountpoints) -> None:
    (root / "there").mkdir()
    places.directory("/there")
    places.directory("/made/inner")
    places.file("/file")
    (root / "made/inner/x").touch()
    (root / "file").write_text("x")
    places.remove()
    assert listed(root) == ["file", "made", "made/inner", "made/inner/x", "there"]


def test_links_are_resolved_in_the_image(root: Path, places: Mountpoints, tmp_path: Path) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to("/real")
    (root / "up").symlink_to("../../../real")
    (root / "canary").symlink_to(str(tmp_path / "canary"))
    assert places.directory("/link/x") == "/real/x"
    assert places.directory("/up/y") == "/real/y"
    with pytest.raises(InvalidError, match="a symlink that leads nowhere"):
        places.directory("/canary/x")
    with pytest.raises(InvalidError, match="a symlink that leads nowhere"):
        places.file("/canary")
    assert os.listdir(tmp_path / "canary") == []


def test_what_every_container_has_may_be_no_link(root: Path, places: Mountpoints) -> None:
    (root / "elsewhere").mkdir()
    (root / "proc").symlink_to("/elsewhere")
    with pytest.raises(InvalidError, match="/proc in the image is a symlink"):
        places.own("/proc")
    places.own("/dev")
    assert (root / "dev").is_dir()


def test_kinds_must_agree(root: Path, places: Mountpoints) -> None:
    (root / "file").touch()
    (root / "directory").mkdir()
    with pytest.raises(InvalidError, match="/file in the image is no directory"):
        places.directory("/file")
    with pytest.raises(InvalidError, match="/directory in the image is no file"):
        places.file("/directory")
    with pytest.raises(InvalidError, match="is no place"):
        places.directory("/file/x")


def test_volume_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    assert Volume.parse(f"{tmp_path}:/x") == Volume(tmp_path, "/x", False)
    assert Volume.parse("./d:/x//y/../z:ro") == Volume(tmp_path / "d", "/x/z", True)
    assert Volume.parse(".:/x:rw,z") == Volume(tmp_path, "/x", False)
    assert Volume.parse("name:/x:ro", data=tmp_path / "a:b") == Volume(tmp_path / "a:b", "/x", True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("d:/x", "named volumes are not there"),
        ("/", "is no volume"),
        ("/:x", "is no volume"),
        (":/x", "is no volume"),
        ("/:/", "not over /"),
        ("/:/dev/../proc", "not over /"),
        ("/://proc", "not over /"),
        ("/:/proc/x", "not over /"),
        ("/:/x:rw,what", "unknown volume option 'what'"),
    ],
)
def test_bad_volume_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidError, match=why):
        Volume.parse(text)


def test_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        Volume.parse(f"{tmp_path}/absent:/x")


def test_one_place_for_two_volumes_is_refused() -> None:
    check_distinct(["/a", "/b"])
    with pytest.raises(InvalidError, match="both be at /a"):
        check_distinct(["/a", "/b", "/a"])
