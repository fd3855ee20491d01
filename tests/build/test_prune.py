"""What `rmi` and `prune` leave of the cache of builds."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import pytest

from overlayfs.build.cache import Cache
from overlayfs.image.store.pruning import Steps, prune, prune_held
from overlayfs.image.store.store import Store
from tests.build.test_build import ON, Site
from tests.image.making import put, tar

TWO_STAGES: Final = f"{ON[:-1]} AS one\nRUN echo 1 > /1\n{ON}COPY --from=one /1 /2\nRUN echo 3 > /3\n"


def keep(site: Site, *words: str) -> str:
    """Run a command that keeps the store; what it says."""
    done = site.prepared.call("--store", site.store, *words)
    assert done.status == 0, done.err
    return done.out


def test_rmi_leaves_all_steps_cached(site: Site) -> None:
    site.build(TWO_STAGES)
    keep(site, "tag", "small", "another")
    keep(site, "rmi", "another", "made")
    assert site.build(TWO_STAGES).count("(cached)") == 3


def test_prune_leaves_the_steps_whose_layers_an_image_has(site: Site) -> None:
    one, other = f"{ON}RUN echo 1 > /1\nRUN echo 2 > /2\n", f"{ON}RUN echo 3 > /3\n"
    site.build(other)
    site.build(one)  # which takes the name from the other
    keep(site, "prune")
    assert site.build(one).count("(cached)") == 2
    assert "(cached)" not in site.build(other)


def test_prune_build_removes_steps_and_caches(site: Site) -> None:
    text = f"{ON}RUN --mount=type=cache,target=/c echo 1 > /c/f && cat /c/f > /x\n"
    site.build(text)
    (cache,) = (site.store / "build/mounts").iterdir()
    assert "Would remove" in keep(site, "prune", "--build", "--dry-run")
    assert (cache / "f").read_text() == "1\n"
    keep(site, "prune", "--build")
    assert os.listdir(site.store / "build") == []
    assert "(cached)" not in site.build(text)
    assert site.text("/x") == "1\n"


def test_record_that_the_disk_cannot_read_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes = Path.read_bytes

    def refused(path: Path, *_: object) -> bytes:
        if path.name == "key":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read_bytes(path)

    with Store.open(tmp_path / "store") as store:
        image, cache = put(store, "x", tar({"a": b"a"})), Cache(store)
        for read, ask in (("read_text", lambda: cache.find("key")), ("read_bytes", lambda: prune(store))):
            cache.keep("key", image.descriptor.digest)
            with monkeypatch.context() as patch:
                patch.setattr(Path, read, refused)
                ask()
            assert os.listdir(store.path / "build") == []


def test_records_without_an_image_are_removed(site: Site) -> None:
    site.build(f"{ON}RUN echo 1 > /x\n")
    records = {path.name for path in (site.store / "build").iterdir()}
    (site.store / "build" / ("0" * 64)).write_text(f"sha256:{'1' * 64}")
    (site.store / "build" / ("1" * 64)).write_text("torn")
    with Store.open(site.store) as store, store.alone(0):
        report = prune_held(store, steps=Steps.ALL)
        assert report.steps == 2
    assert {path.name for path in (site.store / "build").iterdir()} == records
