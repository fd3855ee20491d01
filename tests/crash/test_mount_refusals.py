"""What cannot be mounted rightly is refused, in one line that names the trouble, and nothing is touched."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import MountError, OverlayOptions, WhiteoutFormat

from .mounting import mounted, run
from .sweep import opened, options_for
from .trees import Layers, build, directory, file


class Place:
    """A lower, an upper and a workdir under one directory, and mounts to be undone."""

    def __init__(self, base: Path, undo: ExitStack) -> None:
        self.base = base
        self.undo = undo
        build(base / "lower", {"sub": directory(), "file": file(b"x")})
        build(base / "upper", {"sub": directory()})
        (base / "work").mkdir()

    def options(self, lower: str = "lower", upper: str = "upper", work: str = "work") -> OverlayOptions:
        return options_for(Layers((self.base / lower,), self.base / upper, self.base / work))

    def mount(self, source: str, name: str, kind: str, data: str = "", flags: int = 0) -> Path:
        return self.undo.enter_context(mounted(source, self.base / name, kind, data, flags))


@pytest.fixture
def place(scratch: Path) -> Iterator[Place]:
    with ExitStack() as undo:
        yield Place(scratch, undo)


def _foreign_work(place: Place) -> OverlayOptions:
    foreign = place.mount("tmpfs", "foreign", "tmpfs")
    (foreign / "work").mkdir()
    return place.options(work="foreign/work")


def _read_only_upper(place: Place) -> OverlayOptions:
    read_only = place.mount("tmpfs", "disk", "tmpfs")
    (read_only / "upper").mkdir()
    (read_only / "work").mkdir()
    run("mount", "-o", "remount,ro", read_only)
    return place.options(upper="disk/upper", work="disk/work")


def _no_xattrs(place: Place) -> OverlayOptions:
    bare = place.mount("ramfs", "bare", "ramfs")
    (bare / "upper").mkdir()
    (bare / "work").mkdir()
    return place.options(upper="bare/upper", work="bare/work")._replace(whiteout=WhiteoutFormat.OVERLAY)


def _in_use_by_us(place: Place) -> OverlayOptions:
    place.undo.enter_context(opened(place.options()))
    return place.options()


def _upper_in_use_with_other_work(place: Place) -> OverlayOptions:
    place.undo.enter_context(opened(place.options()))
    (place.base / "work2").mkdir()
    return place.options(work="work2")


def _work_in_use_with_other_upper(place: Place) -> OverlayOptions:
    place.undo.enter_context(opened(place.options()))
    (place.base / "upper2").mkdir()
    return place.options(upper="upper2")


HOLD = """
import sys
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import OverlayOptions
lower, upper, work = (word.encode() for word in sys.argv[1:])
held = Overlay.open(OverlayOptions(lowers=(lower,), upper=upper, work=work))
print("held", flush=True)
sys.stdin.read()
"""


def _in_use_by_another_process(place: Place) -> OverlayOptions:
    command = [sys.executable, "-c", HOLD, *(str(place.base / name) for name in ("lower", "upper", "work"))]
    holder = place.undo.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    return place.options()


def _in_use_by_kernel(place: Place) -> OverlayOptions:
    base = place.base
    place.mount("overlay", "kernel", "overlay", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work")
    return place.options()


def _volatile_mark(place: Place) -> OverlayOptions:
    code = HOLD.replace("work=work)", "work=work, fsync=FsyncPolicy.VOLATILE)").replace(
        "import OverlayOptions", "import FsyncPolicy, OverlayOptions"
    )
    command = [sys.executable, "-c", code, *(str(place.base / name) for name in ("lower", "upper", "work"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    return place.options()


def _work_below_upper(place: Place) -> OverlayOptions:
    (place.base / "upper" / "work").mkdir()
    return place.options(work="upper/work")


def _upper_below_work(place: Place) -> OverlayOptions:
    (place.base / "work" / "upper").mkdir()
    return place.options(upper="work/upper")


def _file_as(name: str) -> Callable[[Place], OverlayOptions]:
    def arrange(place: Place) -> OverlayOptions:
        shutil.rmtree(place.base / name)
        (place.base / name).touch()
        return place.options()

    return arrange


def _missing(name: str) -> Callable[[Place], OverlayOptions]:
    def arrange(place: Place) -> OverlayOptions:
        shutil.rmtree(place.base / name)
        return place.options()

    return arrange


# Each with a word that the one line must have, so that the user knows which of the directories is meant.
REFUSALS: dict[str, tuple[str, Callable[[Place], OverlayOptions]]] = {
    "missing lower": ("lower", _missing("lower")),
    "missing upper": ("upper", _missing("upper")),
    "missing workdir": ("work", _missing("work")),
    "lower is a file": ("lower", _file_as("lower")),
    "upper is a file": ("upper", _file_as("upper")),
    "workdir is a file": ("work", _file_as("work")),
    "no lower at all": ("lower", lambda place: place.options()._replace(lowers=())),
    "upper without workdir": ("work", lambda place: place.options()._replace(work=None)),
    "workdir without upper": ("upper", lambda place: place.options()._replace(upper=None)),
    "second lower missing": (
        "none",
        lambda place: place.options()._replace(lowers=(*place.options().lowers, b"/none")),
    ),
    "workdir on another file system": ("work", _foreign_work),
    "read-only upper": ("read-only", _read_only_upper),
    "no xattrs where the format needs them": ("format", _no_xattrs),
    "in use by ourselves": ("use", _in_use_by_us),
    "upper in use with another workdir": ("use", _upper_in_use_with_other_work),
    "workdir in use with another upper": ("use", _work_in_use_with_other_upper),
    "in use by another process": ("use", _in_use_by_another_process),
    "in use by the kernel's overlayfs": ("use", _in_use_by_kernel),
    "upper is the workdir": ("work", lambda place: place.options(work="upper")),
    "upper is the lower": ("upper", lambda place: place.options(upper="lower")),
    "workdir is the lower": ("work", lambda place: place.options(work="lower")),
    "workdir below upper": ("work", _work_below_upper),
    "upper below workdir": ("upper", _upper_below_work),
    "upper below lower": ("upper", lambda place: place.options(upper="lower/sub")),
    "lower below upper": ("lower", lambda place: place.options(lower="upper/sub")),
    "leftover volatile mark": ("volatile", _volatile_mark),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_mount_is_refused_in_one_line(case: str, place: Place) -> None:
    word, arrange = REFUSALS[case]
    options = arrange(place)
    descriptors = set(os.listdir("/proc/self/fd"))
    before = _names_and_times(place.base)
    with pytest.raises(MountError) as refusal:
        Overlay.open(options).close()
    line = str(refusal.value)
    assert line.strip()
    assert "\n" not in line
    assert word in line
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert _names_and_times(place.base) == before


def _names_and_times(base: Path) -> dict[str, int]:
    """All names with the change times of files: a probe may come and go, and only an empty `work/work` stay."""
    return {
        os.path.relpath(path, base): 0 if path.is_dir() else os.lstat(path).st_ctime_ns
        for path in base.rglob("*")
        if path.parts[-2:] != ("work", "work") or any(path.iterdir())
    }


def test_same_layers_can_be_mounted_twice_without_upper(place: Place) -> None:
    """Lowers are only read: any number of mounts may share them."""
    options = place.options()._replace(upper=None, work=None)
    with opened(options) as first, opened(options) as second:
        assert first.lookup(1, b"file").ino == second.lookup(1, b"file").ino


def test_lower_of_one_mount_may_lie_in_anothers(place: Place) -> None:
    with opened(place.options()), opened(place.options()._replace(upper=None, work=None)) as other:
        assert other.getattr(1).ino == 1


def test_mount_works_after_the_other_has_gone(place: Place) -> None:
    with opened(place.options()):
        pass
    with opened(place.options()) as again:
        assert again.lookup(1, b"file").size == 1
