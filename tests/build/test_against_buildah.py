"""The same Dockerfiles built by `buildah bud` and by us give the same configuration and the same tree.

What is different on purpose stands in `DIFFERENCES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from overlayfs.image.archive.save import save
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Store
from tests.build.building import Facts, base_image, buildah, by_buildah, described, fill, taken_over
from tests.build.dockerfiles import CASES, Case
from tests.prepared import Prepared

ALWAYS: Final = frozenset({"from-stage", "run-owner", "copy-all", "add-tar", "env", "onbuild-runs"})
_NO_DIRECTORY: Final = "docker makes no directory for a VOLUME, the run does; buildah makes it in the image"
DIFFERENCES: Final[Mapping[str, Mapping[str, str]]] = {
    "copy-into-dot": dict.fromkeys(
        ("/v", "/v/a"), "a destination with /. at its end is a directory; buildah copies to /v"
    ),
    "escape": {"config Env": "buildah takes \\ for the escape character within words, whatever the directive says"},
    "expose-protocol": {"config ExposedPorts": "docker takes a range apart and TCP for tcp; buildah keeps the text"},
    "run-in-volume": {"/v/x": "BuildKit keeps what a RUN writes into a VOLUME; buildah drops it"},
    "shell": {"config Cmd": "docker runs CMD by the SHELL of the image; buildah always by /bin/sh -c"},
    "volume": {"/v": _NO_DIRECTORY, "/w": _NO_DIRECTORY},
    "volume-json": {"/v": _NO_DIRECTORY},
}
"""By case, the facts that differ, each with the reason."""
REFUSED: Final[Mapping[str, str]] = {
    "from-stage-case": "names of stages have no case in docker; buildah takes the name for an image's",
    "run-network": "buildah 1.28 knows RUN --mount alone",
}
"""What buildah refuses, with the reason."""


class Workshop:
    """A store and buildah's storage, which have the same base image."""

    def __init__(self, top: Path, prepared: Prepared) -> None:
        self.top, self.prepared = top, prepared
        self.store = top / "store"
        with Store.open(self.store) as store:
            base_image(store, top, Reference.parse("localhost/small"))
            with open(top / "small.tar", "wb") as out:
                save(store, [store.find("localhost/small")], out, "docker-archive")
        pulled = buildah(top, "pull", f"docker-archive:{top}/small.tar")
        assert pulled.returncode == 0, pulled.stderr

    def ours(self, case: Case, context: Path) -> Facts:
        done = self.prepared.call("--store", self.store, "build", "-t", "localhost/ours", *case.words, context)
        assert done.status == 0, done.err
        with Store.open(self.store) as store:
            return described(store, store.find("localhost/ours"))

    def refused(self, case: Case, context: Path) -> bool:
        return by_buildah(self.top, context, case.words).returncode != 0

    def theirs(self, case: Case, context: Path) -> Facts:
        done = by_buildah(self.top, context, case.words)
        assert done.returncode == 0, done.stderr
        with Store.open(self.store) as store:
            return described(store, taken_over(self.top, store))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with Prepared() as prepared:
        yield Workshop(tmp_path_factory.mktemp("workshop"), prepared)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.long) for name in sorted(CASES)]
)
def test_same_image_as_buildah(name: str, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    fill(tmp_path)
    for file, text in {"Dockerfile": case.text, **case.files}.items():
        (tmp_path / file).write_text(text, newline="")
    monkeypatch.chdir(tmp_path)
    ours = workshop.ours(case, tmp_path)
    if name in REFUSED:
        assert workshop.refused(case, tmp_path)
        return
    theirs = workshop.theirs(case, tmp_path)
    different = {fact for fact in ours.keys() | theirs.keys() if ours.get(fact) != theirs.get(fact)}
    expected = DIFFERENCES.get(name, {}).keys()
    assert different == set(expected), {fact: (ours.get(fact), theirs.get(fact)) for fact in different ^ set(expected)}
