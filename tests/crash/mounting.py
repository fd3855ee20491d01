"""How do these tests mount something for a moment?  mount(2) directly: a program each is too slow."""

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
MNT_DETACH = 2


@contextmanager
def mounted(source: str, target: Path, kind: str, data: str = "", flags: int = 0) -> Iterator[Path]:
    """`source` mounted on `target` for the block; gone afterwards even if something still uses it."""
    target.mkdir(parents=True, exist_ok=True)
    arguments = [os.fsencode(text) for text in (source, str(target), kind)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(data)):
        raise OSError(ctypes.get_errno(), f"mount {kind} {source} ({data}): {os.strerror(ctypes.get_errno())}")
    try:
        yield target
    finally:
        unmount(target)


def unmount(target: Path, flags: int = MNT_DETACH) -> None:
    if _libc.umount2(os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), f"umount {target}")


@contextmanager
def kernel_overlay(lowers: Sequence[Path], upper: Path, work: Path, base: Path) -> Iterator[Path]:
    """The kernel's reading of our upper and workdir."""
    layers = ":".join(map(str, lowers))
    data = f"lowerdir={layers},upperdir={upper},workdir={work},redirect_dir=on,metacopy=on,index=on,xino=off"
    with mounted("overlay", base / "kernel", "overlay", data) as target:
        yield target


def run(*command: str | Path) -> str:
    """Run a program to its end; what it printed, or an error with what it complained of."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{command[0]} failed: {done.stderr or done.stdout}")
    return done.stdout


@contextmanager
def loop_device(backing: Path) -> Iterator[Path]:
    """A block device over the file `backing`, detached at the end."""
    device = Path(run("losetup", "--find", "--show", backing).strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def sync_file_system(place: Path) -> None:
    """Have everything of the file system that holds `place` on its disk."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), f"syncfs {place}")
    finally:
        os.close(descriptor)
