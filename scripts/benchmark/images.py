"""How fast is an image unpacked, beside umoci and podman? `python -m scripts.benchmark.images [--on DIR] [--runs N]`.

One image of about 300 MB, uncompressed, in one gzip layer, of this machine's own files. The tools take turns, on the
same disk, each from the archive to a tree that can be used. Needs root, umoci, podman and GNU tar.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from overlayfs.tree.syscalls import unmount

SOURCES = (
    "usr/lib/gcc",
    "usr/lib/python3",
    "usr/lib/git-core",
    "usr/share/doc",
    "usr/share/zoneinfo",
    "usr/share/perl",
)
_STORAGE = '[storage]\ndriver="overlay"\nrunroot="{top}/run"\ngraphroot="{top}/root"\n'
_ENGINE = '[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'


class Figures(NamedTuple):
    """Of one run of a program: seconds on the clock and of its processors, and its largest resident size in MB."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def timed(command: Sequence[str | Path], environ: dict[str, str]) -> Figures:
    start = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    return Figures(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def make_image(top: Path) -> tuple[Path, Path]:
    """An OCI layout, and the archive of it."""
    tar, layout, archive = top / "layer.tar", top / "layout", top / "image.tar"
    sources = [source for source in SOURCES if Path("/", source).exists()]
    subprocess.run(["tar", "-cf", tar, "--numeric-owner", "-C", "/", *sources], check=True, stderr=subprocess.DEVNULL)
    for command in (
        ["init", "--layout", layout],
        ["new", "--image", f"{layout}:x"],
        ["raw", "add-layer", "--image", f"{layout}:x", tar],
    ):
        subprocess.run(["umoci", *command], check=True, stdout=subprocess.DEVNULL)
    print(f"{tar.stat().st_size / 1e6:.0f} MB of files in one gzip layer")
    tar.unlink()
    subprocess.run(["tar", "-cf", archive, "-C", layout, "."], check=True)
    return layout, archive


def contestants(top: Path) -> dict[str, Callable[[Path], Figures]]:
    """By name, what each does with a directory of its own."""
    layout, archive = make_image(top)

    def ours(place: Path) -> Figures:
        return timed([sys.executable, "-m", "overlayfs.cli.main", "--store", place, "load", "-q", "-i", archive], {})

    def umoci(place: Path) -> Figures:
        return timed(["umoci", "unpack", "--image", f"{layout}:x", place], {})

    def podman(place: Path) -> Figures:
        place.mkdir()
        (place / "storage.conf").write_text(_STORAGE.format(top=place))
        (place / "containers.conf").write_text(_ENGINE)
        environ = {f"CONTAINERS_{name}": str(place / file) for name, file in _CONFIGURATION.items()}
        try:
            return timed(["podman", "load", "-q", "-i", archive], environ)
        finally:
            if os.path.ismount(place / "root/overlay"):
                unmount(os.fsencode(place / "root/overlay"), lazy=True)

    return {"overlayfs load": ours, "umoci unpack": umoci, "podman load": podman}


_CONFIGURATION = {"STORAGE_CONF": "storage.conf", "CONF": "containers.conf"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", type=Path, default=Path("/var/tmp"), help="a directory on the disk to measure")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.on, prefix="overlayfs-images-") as directory:
        top = Path(directory)
        results: dict[str, list[Figures]] = {}
        programs = contestants(top)
        for number in range(options.runs):
            for name, program in programs.items():
                place = top / f"{name.replace(' ', '-')}-{number}"
                os.sync()  # what one left to be written is not the next one's to wait for
                results.setdefault(name, []).append(program(place))
                shutil.rmtree(place)
    for name, figures in results.items():
        wall_s, cpu_s, peak_mb = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:16} {wall_s:6.2f} s   {cpu_s:6.2f} s of processors   {peak_mb:6.0f} MB")


if __name__ == "__main__":
    main()
