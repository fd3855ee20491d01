"""podman, buildah and docker build the same trees and layers on our mounts as on the kernel's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines.changes import BASE, CHANGES, DOCKERFILE, PROGRAMS, Member, View, expect_same, exported, layers_of
from tests.engines.docker import Docker
from tests.engines.leftovers import expect_nothing_left
from tests.engines.podman import Podman, archive_of

pytestmark = pytest.mark.long  # commits, as of test_containers, are in the way of each build

CHROOT, OCI = ("--isolation=chroot", "--network=host"), ("--isolation=oci", "--network=none")


@pytest.fixture(scope="module")
def base(top: Path) -> Path:
    (top / "built").mkdir()
    return archive_of(BASE, top / "built", *PROGRAMS)


@pytest.fixture(scope="module")
def podmans(new_podman: Callable[..., Podman], base: Path) -> list[Podman]:
    """With our mount program, and with the kernel's overlayfs."""
    podmans = [new_podman("build-ours"), new_podman("build-kernel", ours=False)]
    for podman in podmans:
        podman("import", "-q", base, "base")
    return podmans


@pytest.fixture(scope="module")
def dockers(new_docker: Callable[..., Docker], base: Path) -> list[Docker]:
    dockers = [new_docker("docker-ours"), new_docker("docker-kernel", ours=False)]
    for docker in dockers:
        docker("import", base, "base")
    return dockers


@pytest.fixture(autouse=True)
def _nothing_is_left(top: Path) -> Iterator[None]:
    yield
    expect_nothing_left(top)


def tree_of(engine: Podman | Docker, image: str, directory: Path) -> dict[str, Member]:
    """The image as a container would have it."""
    engine("create", "--name=looked-at", image, "true")
    engine("export", "-o", directory / "tree.tar", "looked-at")
    engine("rm", "looked-at")
    return exported(directory / "tree.tar")


def saved(engine: Podman | Docker, image: str, directory: Path) -> list[dict[str, Member]]:
    path = directory / "saved.tar"
    path.unlink(missing_ok=True)
    engine("save", "-o", path, image)
    return layers_of(path)


def expect_same_image(engines: list[Podman] | list[Docker], name: str, directory: Path) -> None:
    ours, kernel_s = (tree_of(engine, name, directory) for engine in engines)
    expect_same(View.EXPORT, ours, kernel_s)
    assert "etc/gone" not in ours
    assert "renamed/deep/file" in ours
    for layer, theirs in zip(*(saved(engine, name, directory) for engine in engines), strict=True):
        expect_same(View.LAYER, layer, theirs)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        pytest.param("podman", CHROOT, id="podman-chroot"),
        pytest.param("podman", OCI, id="podman-oci"),
        pytest.param("buildah", CHROOT, id="buildah-chroot"),
        pytest.param("buildah", OCI, id="buildah-oci"),
    ],
)
def test_image_of_a_dockerfile(podmans: list[Podman], tmp_path: Path, program: str, words: tuple[str, ...]) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    name = f"{program}-{words[0].partition('=')[2]}"
    for podman in podmans:
        call = podman if program == "podman" else podman.buildah
        call("build", "-q", "--layers", "--no-cache", *words, "-t", name, tmp_path)
    expect_same_image(podmans, name, tmp_path)


@pytest.mark.parametrize("words", [CHROOT, OCI], ids=["chroot", "oci"])
def test_image_of_buildahs_commands(podmans: list[Podman], tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "given").write_text("given")
    for podman in podmans:
        buildah = podman.buildah
        container = buildah("from", "base")
        for change in CHANGES:
            buildah("run", *words, container, "--", "sh", "-ec", change)
        buildah("copy", "--chown=7:8", container, tmp_path / "given", "/etc/given")
        buildah("run", *words, container, "--", "sh", "-ec", "touch -d @1000000000 /etc/given /etc")
        buildah("commit", "-q", container, "by-commands")
        buildah("rm", container)
    expect_same_image(podmans, "by-commands", tmp_path)


def test_image_of_a_dockerfile_that_docker_builds(dockers: list[Docker], tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    for docker in dockers:
        docker("build", "-q", "--network=none", "-t", "built", tmp_path)
    expect_same_image(dockers, "built", tmp_path)
