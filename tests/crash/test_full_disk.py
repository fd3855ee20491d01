"""No space, no inodes, no quota: old content stays, nothing is half made, deleting works or says why not."""

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import WhiteoutFormat

from .mounting import loop_device, mounted, run
from .operations import Step, at, chmod, create, make_symlink, mkdir, rename, rmdir, unlink, write
from .sweep import names_below, opened, options_for
from .trees import Layers, Tree, build, differences, directory, file, seen_through, without_times

BIG = os.urandom(1 << 21)
FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT}
LOWER = {
    "big": file(BIG, 0o640, 3, 4, tag=b"big"),
    "small": file(b"small", tag=b"small"),
    "dir": directory(),
    "dir/file": file(b"in a directory"),
    "dir/sub": directory(),
    "dir/sub/deep": file(b"deep"),
    "tree": directory(),
    "tree/leaf": file(b"leaf"),
    "merged": directory(),
    "merged/low": file(b"low"),
    "empty": directory(),
}
UPPER = {"merged": directory(), "merged/up": file(b"up"), "mine": file(b"m" * 8192)}
PARENTS = frozenset({b".", b"./dir", b"./dir/sub", b"./merged", b"./tree"})

# Each may fail for want of space, and then has done nothing.
ATTEMPTS: dict[str, Step] = {
    "append to big lower file": write("big", b"x", len(BIG)),
    "write to small lower file": write("dir/file", b"y"),
    "chmod big lower file": chmod("big", 0o600),
    "chmod lower directory": chmod("dir", 0o700),
    "rename lower file": rename("small", "dir/small"),
    "rename lower directory": rename("tree", "dir/tree"),
    "rename merged directory": rename("merged", "moved"),
    "unlink lower file": unlink("small"),
    "unlink file in lower directory": unlink("dir/sub/deep"),
    "rmdir lower directory": rmdir("empty"),
    "mkdir": mkdir("new"),
    "create": create("new"),
    "symlink": make_symlink("new", b"x" * 3000),
}


@contextmanager
def _small_disk(base: Path, options: str) -> Iterator[Layers]:
    """Lower on the host's disk; upper and workdir on a tmpfs made with `options`."""
    build(base / "lower", LOWER)
    with mounted("tmpfs", base / "small", "tmpfs", options) as place:
        build(place / "upper", UPPER)
        (place / "work").mkdir()
        yield Layers((base / "lower",), place / "upper", place / "work")


def _fill_space(place: Path) -> None:
    """Leave not one block."""
    with (place / "filler").open("wb", buffering=0) as stream:
        _until_refused(errno.ENOSPC, lambda: stream.write(bytes(4096)))


def _fill_inodes(place: Path) -> None:
    numbers = itertools.count()

    def touch_another() -> None:
        (place / f"filler{next(numbers)}").touch()

    _until_refused(errno.ENOSPC, touch_another)


def _until_refused(refusal: int, action: Callable[[], object]) -> None:
    try:
        while True:
            action()
    except OSError as error:
        assert error.errno == refusal  # noqa: PT017  the loop has no other end


def _attempt(overlay: Overlay, step: Step) -> int | None:
    try:
        step(overlay)
    except OSError as error:
        return error.errno
    return None


def _look(layers: Layers) -> Tree:
    with opened(options_for(layers)) as overlay:
        return without_times(seen_through(overlay), PARENTS)


def _assert_all_or_nothing(overlay: Overlay, layers: Layers, name: str) -> int | None:
    """Do one of `ATTEMPTS`; on a failure tree and workdir are those of before."""
    before = without_times(seen_through(overlay), PARENTS)
    work = names_below(layers.work)
    failed = _attempt(overlay, ATTEMPTS[name])
    if failed is not None:
        assert failed in FULL_ERRORS
        assert not differences(before, without_times(seen_through(overlay), PARENTS))
        assert names_below(layers.work) <= work
    return failed


@pytest.mark.parametrize("fill", [_fill_space, _fill_inodes])
@pytest.mark.parametrize("name", ATTEMPTS)
def test_change_on_full_disk_is_all_or_nothing(name: str, fill: Callable[[Path], None], scratch: Path) -> None:
    with _small_disk(scratch, "size=1M,nr_inodes=200") as layers:
        with opened(options_for(layers)) as overlay:
            fill(layers.upper.parent)
            failed = _assert_all_or_nothing(overlay, layers, name)
            for filler in layers.upper.parent.glob("filler*"):
                filler.unlink()
            if failed is not None and "big" not in name:  # that one never fits
                ATTEMPTS[name](overlay)
            after = without_times(seen_through(overlay), PARENTS)
        assert not differences(after, _look(layers))


def test_copy_up_of_file_that_does_not_fit_keeps_it_whole(scratch: Path) -> None:
    with _small_disk(scratch, "size=1M") as layers, opened(options_for(layers)) as overlay:
        free = os.statvfs(layers.upper).f_bfree
        for _ in range(3):
            assert _attempt(overlay, write("big", b"x", 0)) == errno.ENOSPC
            assert os.statvfs(layers.upper).f_bfree >= free - 1
        with at(overlay, "big") as ino:
            assert overlay.read(ino, 0, len(BIG) + 1) == BIG


def test_writing_until_the_disk_is_full_keeps_what_was_written(scratch: Path) -> None:
    with _small_disk(scratch, "size=1M") as layers:
        with opened(options_for(layers)) as overlay:
            create("log")(overlay)
            written = 0
            while (failed := _attempt(overlay, write("log", bytes([written % 251]) * 1000, written))) is None:
                written += 1000
            assert failed == errno.ENOSPC
        assert written > 500_000
        with opened(options_for(layers)) as overlay, at(overlay, "log") as ino:
            content = overlay.read(ino, 0, written)
        assert content == b"".join(bytes([place % 251]) * 1000 for place in range(0, written, 1000))


@pytest.mark.parametrize("fill", [_fill_space, _fill_inodes])
def test_deleting_upper_files_frees_a_full_disk(fill: Callable[[Path], None], scratch: Path) -> None:
    """What a user does on a full disk: delete something of his, and go on."""
    with _small_disk(scratch, "size=1M,nr_inodes=200") as layers, opened(options_for(layers)) as overlay:
        fill(layers.upper.parent)
        unlink("mine")(overlay)
        mkdir("new")(overlay)
        assert overlay.lookup(1, b"new").ino


@pytest.mark.parametrize("fill", [_fill_space, _fill_inodes])
def test_full_disk_can_be_mounted_and_made_free(fill: Callable[[Path], None], scratch: Path) -> None:
    """Who finds his disk full after a crash must be able to mount it and to delete what is his."""
    with _small_disk(scratch, "size=1M,nr_inodes=200") as layers:
        with opened(options_for(layers)) as overlay:
            before = without_times(seen_through(overlay), PARENTS)
        fill(layers.upper.parent)
        with opened(options_for(layers)) as overlay:
            assert not differences(before, without_times(seen_through(overlay), PARENTS))
            unlink("mine")(overlay)
            mkdir("new")(overlay)


@pytest.mark.long
@pytest.mark.parametrize("name", ATTEMPTS)
def test_change_over_quota_is_all_or_nothing(name: str, scratch: Path) -> None:
    """A btrfs subvolume at its limit answers EDQUOT where another is merely full."""
    build(scratch / "lower", LOWER)
    image = scratch / "image"
    with image.open("wb") as stream:
        stream.truncate(150 << 20)
    run("mkfs.btrfs", "-q", "--mixed", image)
    with loop_device(image) as device, mounted(str(device), scratch / "mount", "btrfs") as place:
        run("btrfs", "subvolume", "create", place / "limited")
        run("btrfs", "quota", "enable", place)
        run("btrfs", "qgroup", "limit", "16M", place / "limited")
        layers = Layers((scratch / "lower",), place / "limited" / "upper", place / "limited" / "work")
        build(layers.upper, UPPER)
        layers.work.mkdir()
        with opened(options_for(layers)) as overlay:
            _fill_quota(place / "limited")
            _assert_all_or_nothing(overlay, layers, name)
            (place / "limited" / "filler").unlink()
            after = without_times(seen_through(overlay), PARENTS)
        assert not differences(after, _look(layers))


def _fill_quota(place: Path) -> None:
    """btrfs counts what is written out: so each piece is synced."""
    with (place / "filler").open("wb", buffering=0) as stream:

        def write_synced() -> None:
            stream.write(bytes(1 << 18))
            os.fsync(stream.fileno())

        _until_refused(errno.EDQUOT, write_synced)


@pytest.mark.parametrize("whiteout", WhiteoutFormat)
def test_whiteout_on_disk_without_inodes_is_clear(whiteout: WhiteoutFormat, scratch: Path) -> None:
    """In every format a deletion that cannot be recorded is refused, and the file is still there."""
    with (
        _small_disk(scratch, "size=1M,nr_inodes=200") as layers,
        opened(options_for(layers, whiteout)) as overlay,
    ):
        _fill_inodes(layers.upper.parent)
        failed = _attempt(overlay, unlink("dir/file"))
        assert failed in (errno.ENOSPC, None)
        listed = _attempt(overlay, lambda one: one.lookup(one.lookup(1, b"dir").ino, b"file"))
        assert listed == (None if failed else errno.ENOENT)
