"""Commits that are killed, or out of space, at any step: no half image, and again it succeeds."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs.image.make.commit import Making, append, commit
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.pruning import prune
from overlayfs.image.store.store import Store
from overlayfs.overlay.changes import Comparison
from tests.contract.tree import build, directory, file, whiteout
from tests.image.store.test_store_faults import check_is_sound, stride_of, sweep

BASE, APP = "docker.io/library/base:1", "docker.io/library/app:1"
PLAIN = Making(compression=None, epoch=1_500_000_000)


class Site:
    """A lower that is the image base:1, and an upper, outside of the store."""

    def __init__(self, top: Path) -> None:
        self.lower, self.upper = top / "lower", top / "upper"
        build(os.fsencode(self.lower), {"": directory(), "a": file(b"1"), "gone": file()})
        build(os.fsencode(self.upper), {"": directory(), "b": file(os.urandom(200_000)), "gone": whiteout()})

    def prepare(self, path: Path) -> None:
        with Store.open(path) as store:
            append(store, None, self.lower, Reference.parse(BASE), PLAIN)

    def commit(self, path: Path) -> str:
        with (
            Store.open(path) as store,
            Comparison.open(os.fsencode(self.upper), [os.fsencode(self.lower)]) as comparison,
        ):
            return commit(store, store.find(BASE), comparison, Reference.parse(APP), PLAIN).image.id


def test_commit_killed_at_any_step(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    site, path = Site(tmp_path), tmp_path / "store"
    site.prepare(path)
    before = check_is_sound(path)

    def check(step: int) -> None:
        after = check_is_sound(path)
        assert set(after) - set(before) <= {APP}, step
        assert after[BASE] == before[BASE]
        with Store.open(path) as store:
            if APP in after:
                store.untag(Reference.parse(APP))
            prune(store)
            assert os.listdir(store.path / "tmp") == []

    assert sweep(lambda: site.commit(path), stride_of(request, 3), check) > 3
    assert check_is_sound(path)[APP] == site.commit(path)


def committed_if_it_fits(site: Site, path: Path) -> str | None:
    try:
        return site.commit(path)
    except OSError as error:
        if error.errno != errno.ENOSPC or os.listdir(path / "tmp"):
            raise
    return None


def test_commit_out_of_space_leaves_nothing(
    tmp_path: Path, small_disk: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    small = small_disk("size=4m,mode=0700")
    site, path = Site(tmp_path), small / "store"
    site.prepare(path)
    before, expected = check_is_sound(path), None
    for pages in range(1, 60, stride_of(request, 6)):
        used = sum(entry.stat().st_blocks for entry in small.rglob("*")) * 512 // 4096 + 1
        subprocess.run(["mount", "-o", f"remount,size={(used + pages) * 4}k", small], check=True)
        expected = committed_if_it_fits(site, path)
        subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
        if expected is not None:
            break
        assert check_is_sound(path) == before
        with Store.open(path) as store:
            prune(store)
    else:
        pytest.fail("it never had enough space")
    assert check_is_sound(path) == {**before, APP: expected}
    assert pages > 1
