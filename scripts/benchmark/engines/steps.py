"""What is an engine asked, and is its answer right? The rows of `--engines`.

Neighbours: material.py has the tree and the right answers, turns.py says when each step is run. A step returns seconds;
its check is outside them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..figures import Figure, Start, of_fuse_overlayfs
from ..peers import FUSE_OVERLAYFS, KERNEL
from .dockerd import Docker
from .engine import Engine
from .material import BUILT, DIGEST, IMAGE, LONG_RECIPE, RECIPE, UNPACKED, Material
from .own import Own
from .podman import Podman

CONTAINER = "bench"
COMMITTED = "localhost/bench:committed"
RESULT = "localhost/bench:built"
ALONE = "--network=none"
UNTAR = 'mkdir "$1" && tar -xf /archive -C "$1"'
ROOT_TYPES = {KERNEL: "overlay", FUSE_OVERLAYFS: "fuse.fuse-overlayfs"}
"""Types of a container's root, as /proc/mounts has them; ours is another that begins with `fuse`."""


def inside(engine: Engine, image: str, *command: str) -> str:
    """What a command in a new container printed."""
    engine.call("run", "--rm", ALONE, image, *command)
    return engine.output_text()


def load(engine: Engine, material: Material) -> None:
    """Bring the image in, and see that containers have the peer's filesystem as their root."""
    engine.call("import", str(material.archive), IMAGE)
    mounts = [line.split() for line in inside(engine, IMAGE, "cat", "/proc/self/mounts").splitlines()]
    found = next(fields[2] for fields in mounts if fields[1] == "/")
    if found in ROOT_TYPES.values() or not found.startswith("fuse"):
        engine.expect("type of the root", found, ROOT_TYPES.get(engine.peer.base))


def run_nothing(engine: Engine, _material: Material) -> float:
    return engine.call("run", "--rm", ALONE, IMAGE, "true")


def run_untar(engine: Engine, material: Material) -> float:
    volume = f"--volume={material.archive}:/archive:ro"
    command = ("sh", "-ec", UNTAR, "sh", UNPACKED)
    return engine.call("run", "--name", CONTAINER, ALONE, volume, IMAGE, *command)


def run_diff(engine: Engine, material: Material) -> float:
    seconds = engine.call("diff", CONTAINER)
    changes = [line.partition(" ")[::2] for line in engine.output_text().splitlines()]
    added = {path for kind, path in changes if kind == "A"}
    wanted = {UNPACKED, *(f"{UNPACKED}/{name}" for name in material.names)}
    engine.expect("what is missing", sorted(wanted - added), [])
    engine.expect("deletions", [path for kind, path in changes if kind == "D"], [])
    return seconds


def run_commit(engine: Engine, material: Material) -> float:
    seconds = engine.call("commit", CONTAINER, COMMITTED)
    found = inside(engine, COMMITTED, "sh", "-ec", DIGEST, "sh", UNPACKED)
    engine.expect("contents", found, material.unpacked_digest)
    return seconds


def run_build(engine: Engine, material: Material, recipe: str = RECIPE) -> float:
    context = material.context
    seconds = engine.call("build", ALONE, "--tag", RESULT, "--file", str(context / recipe), str(context))
    engine.expect("contents", inside(engine, RESULT, "sh", "-ec", DIGEST, "sh", *BUILT), material.built_digest)
    return seconds


def run_long_build(engine: Engine, material: Material) -> float:
    """Cold, as storage is empty at first; a second time all steps are cached."""
    return run_build(engine, material, LONG_RECIPE)


@dataclass(frozen=True, slots=True)
class Step:
    """One row; `after` is the row whose work it goes on with."""

    engine: type[Engine]
    figure: Figure
    run: Callable[[Engine, Material], float]
    after: str | None = None


def step(
    engine: type[Engine],
    name: str,
    title: str,
    target: float,
    run: Callable[[Engine, Material], float],
    after: str | None = None,
) -> Step:
    figure = Figure(f"{engine.name}-{name}", f"{engine.name} {title}", Start.ENGINE, of_fuse_overlayfs(target))
    return Step(engine, figure, run, None if after is None else f"{engine.name}-{after}")


ENGINE_STEPS = (
    step(Podman, "run", "run --rm IMAGE true", 1.1, run_nothing),
    step(Podman, "untar", "run, untar in it", 0.9, run_untar),
    step(Podman, "diff", "diff after it", 0.9, run_diff, "untar"),
    step(Podman, "commit", "commit of it", 0.9, run_commit, "untar"),
    step(Podman, "build", "build, eight steps", 0.9, run_build),
    step(Docker, "run", "run --rm IMAGE true", 1.1, run_nothing),
    step(Docker, "build", "build, eight steps", 0.9, run_build),
    step(Own, "run", "run --rm IMAGE true, by overlayfs or podman", 0.5, run_nothing),
    step(Own, "build", "build, twelve steps, by overlayfs or podman", 1.0, run_long_build),
    step(Own, "cached", "the same build, all cached", 0.5, run_long_build, "build"),
)


def with_needed(wanted: list[str]) -> list[Step]:
    """The steps of these names and those that they go on with, in the order of the table. KeyError: no such step."""
    known = {each.figure.name: each for each in ENGINE_STEPS}
    needed = {known[name].after for name in wanted} | set(wanted)
    return [each for each in ENGINE_STEPS if each.figure.name in needed]
