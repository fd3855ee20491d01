"""How long does the `overlayfs` command take to do what is nearly nothing: mount, umount, reset, images?

Neighbours: rows.py puts these runs into the table; the other peers have no such command. Each works on a store of its
own with one small image.
"""

from collections.abc import Callable
from pathlib import Path

from .commands import TrialFailed
from .peers import OURS
from .trial import Trial

IMAGE = "small:latest"
CONTAINER = "box"
FILES = ("one", "two")


def command(trial: Trial, *arguments: str) -> list[str]:
    """The command line of `overlayfs`, which stands beside the mount program."""
    if trial.peer.base != OURS:
        raise TrialFailed("has no such command")
    program = Path(trial.peer.program).with_name("overlayfs")
    return [str(program), "--store", str(trial.directory / "store"), *arguments]


def make_image(trial: Trial) -> None:
    files = trial.directory / "files"
    files.mkdir()
    for name in FILES:
        (files / name).write_text(name)
    trial.start(*command(trial, "import", str(files), IMAGE))


def run_mount(trial: Trial) -> float:
    return trial.mount_by(*command(trial, "mount", "--rw", "--name", CONTAINER, IMAGE, str(trial.root)))


def check_mounted(trial: Trial) -> None:
    trial.expect("names", sorted(path.name for path in trial.root.iterdir()), sorted(FILES))


def make_mount(trial: Trial) -> None:
    make_image(trial)
    run_mount(trial)
    check_mounted(trial)
    (trial.root / "change").touch()


def run_umount(trial: Trial) -> float:
    return trial.start(*command(trial, "umount", str(trial.root)))


def check_unmounted(trial: Trial) -> None:
    trial.expect("mounted", trial.is_mounted(), False)


def make_changed(trial: Trial) -> None:
    make_mount(trial)
    run_umount(trial)
    check_unmounted(trial)


def run_reset(trial: Trial) -> float:
    return trial.start(*command(trial, "reset", CONTAINER))


def check_reset(trial: Trial) -> None:
    """The change is gone from the container."""
    run_mount(trial)
    check_mounted(trial)


def run_images(trial: Trial) -> float:
    return trial.start(*command(trial, "images"))


def check_images(trial: Trial) -> None:
    name = IMAGE.partition(":")[0]
    listed = [line.split()[0] for line in trial.output_text().splitlines() if name in line]
    trial.expect("images", listed, [name])


COMMANDS: tuple[tuple[str, Callable[[Trial], None], Callable[[Trial], float], Callable[[Trial], None]], ...] = (
    ("mount", make_image, run_mount, check_mounted),
    ("umount", make_mount, run_umount, check_unmounted),
    ("reset", make_changed, run_reset, check_reset),
    ("images", make_image, run_images, check_images),
)
"""(name, what is prepared, what is timed, what is checked)."""
