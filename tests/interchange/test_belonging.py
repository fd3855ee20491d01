"""With index=on an upper that was used on one lower layer is refused on another one, as by the kernel."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.option_parser import parse_options
from overlayfs.overlay.options import MountError
from overlayfs.tree.syscalls import mount, unmount


@dataclass(frozen=True)
class Uppers:
    """Lower layers `a` and `b`, an upper, and what a filesystem says of a mount: None, or why not."""

    base: Path

    def options(self, lowers: str, *more: str) -> str:
        layers = ":".join(str(self.base / name) for name in lowers)
        return ",".join([f"lowerdir={layers},upperdir={self.base}/upper,workdir={self.base}/work", *more])

    def ours(self, lowers: str, *more: str) -> str | None:
        try:
            Overlay.open(parse_options([self.options(lowers, *more)], os.curdir).overlay).close()
        except MountError as error:
            return str(error)
        return None

    def kernel(self, lowers: str, *more: str) -> str | None:
        target = os.fsencode(self.base / "target")
        try:
            mount(b"overlay", target, b"overlay", 0, os.fsencode(self.options(lowers, *more)))
        except OSError as error:
            if error.errno == errno.ESTALE:
                return error.strerror
            raise
        unmount(target)
        return None


@pytest.fixture
def uppers(tmp_path: Path) -> Iterator[Uppers]:
    """On an ext4 of their own, whose directories have file handles."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with (tmp_path / "image").open("wb") as image:
        image.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", tmp_path / "image"], check=True)
    subprocess.run(["mount", "-o", "loop", tmp_path / "image", disk], check=True)
    for name in ("a", "b", "upper", "work", "target"):
        (disk / name).mkdir()
    yield Uppers(disk)
    subprocess.run(["umount", "-l", disk], check=True)


Filesystem = Callable[..., str | None]


@pytest.fixture(params=["ours-ours", "ours-kernel", "kernel-ours", "kernel-kernel"])
def both(request: pytest.FixtureRequest, uppers: Uppers) -> tuple[Filesystem, Filesystem]:
    """Who mounts the upper first, and who then."""
    first, then = request.param.split("-")
    return getattr(uppers, first), getattr(uppers, then)


def test_upper_goes_with_the_lower_it_was_first_mounted_on(both: tuple[Filesystem, Filesystem]) -> None:
    first, then = both
    assert first("ab", "index=on") is None
    assert then("b", "index=on") is not None
    assert then("ba", "index=on") is not None
    assert then("ab", "index=on") is None
    assert then("a", "index=on") is None


def test_upper_of_a_mount_without_an_index_goes_with_any(both: tuple[Filesystem, Filesystem]) -> None:
    first, then = both
    assert first("a", "index=off") is None
    assert then("b", "index=on") is None


def test_nobody_is_refused_who_asks_for_no_index(both: tuple[Filesystem, Filesystem]) -> None:
    first, then = both
    assert first("a", "index=on") is None
    assert then("b") is None
    assert then("b", "index=off") is None


def test_refusal_is_one_line_that_says_what_to_do(uppers: Uppers) -> None:
    uppers.ours("a", "index=on")
    assert uppers.ours("b", "index=on") == (
        f"upperdir: {uppers.base}/upper was first mounted on another lower layer than {uppers.base}/b"
        " (leave index=on out to mount it all the same)"
    )
