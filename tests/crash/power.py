"""What may be on the disk after the power went: the file systems, their loss, and the judgement.

Two ways to lose power.  `shut_down` makes ext4 or XFS forget what it has not written yet: cheap, one moment.
A recorded disk can be cut at each of its writes, with any selection of those since its last flush.
"""

import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import FsyncPolicy, WhiteoutFormat

from .mounting import loop_device, mounted, run, sync_file_system, unmount
from .operations import Step
from .recording_disk import Record, read_log
from .sweep import opened, options_for
from .trees import Layers, Tree, differences, make_upper, seen_through

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): linux/ext4.h and xfs_fs.h
NO_LOG_FLUSH = 2


class FileSystem(NamedTuple):
    """How to make one small enough to be copied for every point; no commit happens unasked.

    `dioread_lock`: else ext4 may show zeros where data that nobody synced was going to be.  `nouuid`: a copy of
    the image may still be mounted in the namespace of some other process.
    """

    name: str
    size: int
    make: tuple[str, ...]
    options: str


EXT4 = FileSystem("ext4", 48 << 20, ("mkfs.ext4", "-q", "-b", "1024", "-J", "size=1"), "commit=300,dioread_lock")
XFS = FileSystem("xfs", 300 << 20, ("mkfs.xfs", "-q"), "nouuid")


def make_image(image: Path, system: FileSystem) -> None:
    with image.open("wb") as stream:
        stream.truncate(system.size)
    run(*system.make, image)


@contextmanager
def mounted_image(image: Path, system: FileSystem, target: Path) -> Iterator[Path]:
    with loop_device(image) as device, mounted(str(device), target, system.name, system.options) as place:
        yield place


def shut_down(place: Path) -> None:
    """The file system of `place` forgets all that is not on its disk, and answers EIO from now on."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("=I", NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


def commit_something_else(place: Path) -> None:
    """Have the journal written, and with it every name changed so far, but no other file's data."""
    descriptor = os.open(place / "unrelated", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, b"x")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def layers_on(place: Path, lowers: tuple[Path, ...], name: str = "only") -> Layers:
    return Layers(lowers, place / name / "upper", place / name / "work")


def tree_of(layers: Layers) -> Tree:
    """The tree at a new mount, times left out: a journal orders names and data, not times.

    A volatile upper is used all the same: what it has lost is what the negative controls look for.
    """
    shutil.rmtree(layers.work / "work" / "incompat", ignore_errors=True)
    with opened(options_for(layers, WhiteoutFormat.OVERLAY)) as overlay:
        return timeless(seen_through(overlay))


def timeless(tree: Tree) -> Tree:
    return {path: node._replace(mtime="") for path, node in tree.items()}


@dataclass(frozen=True, slots=True)
class Moment:
    """A step between two sizes of the log; `syncs` means that on its return all before it is durable."""

    begins: int
    ends: int
    syncs: bool


@dataclass(slots=True)
class Recording:
    """A disk's start, all that was written to it, and the trees that the steps pass through."""

    start: Path
    records: list[Record]
    moments: list[Moment]
    states: list[Tree]

    def allowed(self, position: int) -> list[Tree]:
        """The trees that a loss of power at `position` in the log may leave."""
        last = sum(moment.begins < position for moment in self.moments)
        first = max(
            (n + 1 for n, moment in enumerate(self.moments) if moment.syncs and moment.ends <= position),
            default=0,
        )
        return self.states[first : max(first, last) + 1]  # a sync that had nothing to write begins where it ends


@dataclass(slots=True)
class Rig:
    """Records sequences on a fresh file system over a recording disk, and replays them."""

    base: Path
    system: FileSystem
    lowers: tuple[Path, ...]
    fsync: FsyncPolicy = FsyncPolicy.AUTO
    _prepared: Path | None = field(default=None)

    def prepared(self) -> Path:
        """An image with one upper and workdir in it, unmounted cleanly."""
        if self._prepared is None:
            image = self.base / "prepared"
            make_image(image, self.system)
            with mounted_image(image, self.system, self.base / "preparing") as place:
                (place / "only").mkdir()
                make_upper(layers_on(place, self.lowers), WhiteoutFormat.OVERLAY)
                (place / "unrelated").touch()
            self._prepared = image
        return self._prepared

    def record(self, steps: Sequence[tuple[Step, bool]]) -> Recording:
        """Take the steps, each (step, whether it syncs), and then let the disk see everything."""
        start, image, log = self.base / "start", self.base / "image", self.base / "log"
        for file in (image, log):
            file.unlink(missing_ok=True)
        copy_sparse(self.prepared(), image)
        log.touch()
        moments, states = [], []
        with self._disk_mounted(image, log) as place:
            layers = layers_on(place, self.lowers)
            with opened(options_for(layers, WhiteoutFormat.OVERLAY, fsync=self.fsync)) as overlay:
                sync_file_system(place)
                copy_sparse(image, start)
                begin = log.stat().st_size
                states.append(timeless(seen_through(overlay)))
                for step, syncs in steps:
                    before = log.stat().st_size
                    step(overlay)
                    moments.append(Moment(before, log.stat().st_size, syncs))
                    states.append(timeless(seen_through(overlay)))
                commit_something_else(place)
                sync_file_system(place)
                end = log.stat().st_size
        records = [record for record in read_log(log) if begin < record.end <= end]
        return Recording(start, records, moments, states)

    @contextmanager
    def _disk_mounted(self, image: Path, log: Path) -> Iterator[Path]:
        with ExitStack() as undo:
            disk = undo.enter_context(recording_disk(image, log, self.base / "fuse"))
            device = undo.enter_context(loop_device(disk))
            yield undo.enter_context(mounted(str(device), self.base / "mount", self.system.name, self.system.options))

    def replay(self, recording: Recording, cut: "Cut") -> Tree:
        """The tree after the power went at `cut`."""
        image = self.base / "replayed"
        image.unlink(missing_ok=True)
        copy_sparse(recording.start, image)
        with image.open("r+b") as stream:
            for number in cut.kept:
                record = recording.records[number]
                if record.data is not None:
                    stream.seek(record.offset)
                    stream.write(record.data)
        with mounted_image(image, self.system, self.base / "mount") as place:
            return tree_of(layers_on(place, self.lowers))


class Cut(NamedTuple):
    """The power goes when the log has this size; `kept` records, by number, had reached the disk."""

    position: int
    kept: tuple[int, ...]


def cuts(records: Sequence[Record], start: int, chance: random.Random) -> Iterator[Cut]:
    """Every prefix, and each with a random selection of the writes since its last flush."""
    flushed = 0
    yield Cut(start, ())
    for number, record in enumerate(records):
        if record.data is None:
            flushed = number + 1
        prefix = tuple(range(number + 1))
        yield Cut(record.end, prefix)
        if len(cached := prefix[flushed:]) > 1:
            yield Cut(record.end, (*prefix[:flushed], *(one for one in cached if chance.random() < 0.5)))


def judge(recording: Recording, cut: Cut, found: Tree) -> list[str]:
    """Nothing if the steps passed through such a tree at that time; else what differs from the nearest."""
    lines = [differences(state, found) for state in recording.allowed(cut.position)]
    return min(lines, key=len)


@contextmanager
def recording_disk(image: Path, log: Path, mountpoint: Path) -> Iterator[Path]:
    """Serve `image` through a recording disk; yields the file to put a loop device on."""
    mountpoint.mkdir(exist_ok=True)
    program = Path(__file__).with_name("recording_disk.py")
    command = [sys.executable, *map(str, (program, image, log, mountpoint))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        if not server.stdout.readline():
            raise AssertionError("the recording disk did not start")
        try:
            yield mountpoint / "disk"
        finally:
            unmount(mountpoint)
            server.wait()


def copy_sparse(source: Path, target: Path) -> None:
    """Copy the parts that hold data; what stays a hole costs nothing."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        position = 0
        while position < size:
            try:
                position = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(reader.fileno(), position, os.SEEK_HOLE)
            while position < end:
                position += os.copy_file_range(reader.fileno(), writer.fileno(), end - position, position, position)


def close_quietly(overlay: Overlay) -> None:
    """Close over a dead file system, which may well complain."""
    try:
        overlay.close()
    except OSError:
        return
