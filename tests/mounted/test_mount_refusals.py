"""Mounts that cannot be made: one line saying why, status 1, nothing mounted, the layers as they were."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounted.program import Place, has_ended, make_place, mounts_beneath
from tests.mounted.stack import tree_of
from tests.prepared import Done


@pytest.fixture
def place() -> Iterator[Place]:
    base = Path(tempfile.mkdtemp(prefix="overlayfs-refused-"))
    made = make_place(base)
    yield made
    made.clear()


def mount_filesystem(kind: str, directory: Path, options: str = "rw") -> Path:
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, "none", directory], check=True)
    return directory


def make_disk(kind: str, directory: Path) -> None:
    mount_filesystem(kind, directory)
    (directory / "u").mkdir()
    (directory / "w").mkdir()


def make_read_only_disk(directory: Path) -> None:
    make_disk("tmpfs", directory)
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)


def mount_kernel_s(base: Path) -> None:
    for name in ("upper2", "work2", "theirs"):
        (base / name).mkdir()
    # The index makes the kernel hold its upper and workdir for itself.
    options = f"lowerdir={base}/bottom,upperdir={base}/upper,workdir={base}/work,index=on"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, base / "theirs"], check=True)


def bind(source: Path, place: Path) -> None:
    place.mkdir()
    subprocess.run(["mount", "--bind", source, place], check=True)


def make(directory: Path) -> None:
    directory.mkdir(parents=True)


def make_link(path: Path, target: str) -> None:
    path.symlink_to(target)


@dataclass(frozen=True)
class Refusal:
    """A mount of `options` (with {base} filled in) after `prepare`; the reason must match `reason`."""

    options: str
    reason: str
    prepare: Callable[[Path], object] = lambda base: None


LOWER = "lowerdir={base}/top:{base}/bottom"
UPPER = "upperdir={base}/upper"
WORK = "workdir={base}/work"
ALL = f"{LOWER},{UPPER},{WORK}"

REFUSALS = {
    "missing lower": Refusal(f"{LOWER}:{{base}}/absent,{UPPER},{WORK}", "{base}/absent.*does not exist"),
    "missing data-only lower": Refusal(f"{LOWER}::{{base}}/absent", "{base}/absent.*does not exist"),
    "lower is a file": Refusal("lowerdir={base}/top/shared", "{base}/top/shared.*[Nn]ot a directory"),
    "lower is a symlink to itself": Refusal(
        "lowerdir={base}/loop", "{base}/loop", lambda base: make_link(base / "loop", "loop")
    ),
    "missing upper": Refusal(f"{LOWER},upperdir={{base}}/absent,{WORK}", "{base}/absent.*does not exist"),
    "upper is a file": Refusal(f"{LOWER},upperdir={{base}}/top/shared,{WORK}", "{base}/top/shared"),
    "missing workdir": Refusal(f"{LOWER},{UPPER},workdir={{base}}/absent", "{base}/absent.*does not exist"),
    "workdir is a file": Refusal(f"{LOWER},{UPPER},workdir={{base}}/top/shared", "{base}/top/shared"),
    "workdir on another filesystem": Refusal(
        f"{LOWER},{UPPER},workdir={{base}}/other",
        "{base}/(other|upper).*filesystem",
        lambda base: mount_filesystem("tmpfs", base / "other"),
    ),
    "workdir behind another mount of the same filesystem": Refusal(
        f"{LOWER},{UPPER},{WORK}",
        "{base}/(work|upper).*(mount|filesystem)",
        lambda base: subprocess.run(["mount", "--bind", base / "work", base / "work"], check=True),
    ),
    "workdir is the upper": Refusal(f"{LOWER},{UPPER},workdir={{base}}/upper", "{base}/upper"),
    "workdir inside the upper": Refusal(
        f"{LOWER},{UPPER},workdir={{base}}/upper/w", "{base}/upper", lambda base: (base / "upper/w").mkdir()
    ),
    "upper inside the workdir": Refusal(
        f"{LOWER},upperdir={{base}}/work/u,{WORK}", "{base}/work", lambda base: (base / "work/u").mkdir()
    ),
    "upper is a lower": Refusal(f"{LOWER},upperdir={{base}}/bottom,{WORK}", "{base}/bottom"),
    "upper inside a lower": Refusal(
        f"{LOWER},upperdir={{base}}/top/u,{WORK}", "{base}/top", lambda base: (base / "top/u").mkdir()
    ),
    "lower inside the upper": Refusal(
        f"lowerdir={{base}}/upper/l,{UPPER},{WORK}", "{base}/upper", lambda base: (base / "upper/l").mkdir()
    ),
    "workdir inside a lower": Refusal(
        f"{LOWER},{UPPER},workdir={{base}}/top/w", "{base}/top", lambda base: (base / "top/w").mkdir()
    ),
    "lower inside the workdir": Refusal(
        f"lowerdir={{base}}/work/l,{UPPER},{WORK}", "{base}/work", lambda base: (base / "work/l").mkdir()
    ),
    "read-only upper": Refusal(
        f"{LOWER},upperdir={{base}}/disk/u,workdir={{base}}/disk/w",
        "{base}/disk/[uw].*[Rr]ead-only",
        lambda base: make_read_only_disk(base / "disk"),
    ),
    "kernel's format without xattrs": Refusal(
        f"{LOWER},upperdir={{base}}/disk/u,workdir={{base}}/disk/w,whiteout=overlay",
        "whiteout=overlay: .*filesystem of upperdir",
        lambda base: make_disk("ramfs", base / "disk"),
    ),
    "xattr format without xattrs": Refusal(
        f"{LOWER},upperdir={{base}}/disk/u,workdir={{base}}/disk/w,whiteout=overlay-xattr",
        "whiteout=overlay-xattr: .*filesystem of upperdir",
        lambda base: make_disk("ramfs", base / "disk"),
    ),
    "upper in use by the kernel's overlayfs": Refusal(
        f"{LOWER},{UPPER},workdir={{base}}/work2", "{base}/upper.*in use", mount_kernel_s
    ),
    "workdir in use by the kernel's overlayfs": Refusal(
        f"{LOWER},upperdir={{base}}/upper2,{WORK}", "{base}/work.*in use", mount_kernel_s
    ),
    "lower twice": Refusal("lowerdir={base}/top:{base}/bottom:{base}/top", "{base}/top and {base}/top are the same"),
    "lower twice by a bind mount": Refusal(
        "lowerdir={base}/top:{base}/again",
        "{base}/top and {base}/again are the same",
        lambda base: bind(base / "top", base / "again"),
    ),
    "lower inside a lower": Refusal(
        "lowerdir={base}/top/l:{base}/bottom:{base}/top",
        "{base}/top/l lies in {base}/top",
        lambda base: make(base / "top/l"),
    ),
    "lower around a lower": Refusal(
        "lowerdir={base}/top:{base}/top/l/m", "{base}/top/l/m lies in {base}/top", lambda base: make(base / "top/l/m")
    ),
    "data-only layer that is a lower": Refusal(f"{LOWER}::{{base}}/top", "{base}/top and {base}/top are the same"),
    "data-only layer inside another": Refusal(
        f"{LOWER}::{{base}}/data::{{base}}/data/l",
        "{base}/data/l lies in {base}/data",
        lambda base: make(base / "data/l"),
    ),
    "lowers given in both ways": Refusal(f"{LOWER},lowerdir+={{base}}/work", "lowerdir[+]=.*cannot be mixed"),
    "malformed value": Refusal(f"{ALL},index=maybe", "index=maybe"),
    "malformed mapping": Refusal(f"{ALL},uidmapping=1:2", "uidmapping=1:2"),
    "no lower": Refusal(f"{UPPER},{WORK}", "lowerdir="),
    "no workdir": Refusal(f"{LOWER},{UPPER}", "workdir="),
    "no upper": Refusal(f"{LOWER},{WORK}", "upperdir="),
}


def assert_refused(done: Done, reason: str) -> None:
    assert re.fullmatch(r"overlayfs-mount: [^\n]+\n", done.err), done
    assert re.search(reason, done.err), done
    assert (done.status, done.out) == (1, "")


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name: str, place: Place) -> None:
    refusal = REFUSALS[name]
    refusal.prepare(place.base)
    mounts, tree = mounts_beneath(place.base), tree_of(place.base)
    done = place.call("-o", refusal.options.format(base=place.base), place.target)
    assert_refused(done, refusal.reason.format(base=place.base))
    assert mounts_beneath(place.base) == mounts
    changed = {path for path, facts in tree_of(place.base).items() if tree.get(path) != facts}
    assert {path for path in changed if not path.startswith(("work", "disk/w"))} == set()


@pytest.mark.parametrize("other", ["upperdir={base}/upper2", "workdir={base}/work2"])
def test_upper_and_workdir_of_a_live_mount_are_refused(other: str, place: Place) -> None:
    for name in ("upper2", "work2", "target2"):
        (place.base / name).mkdir()
    daemon = place.mount()
    options = f"{place.options},{other.format(base=place.base)}"
    done = place.call("-o", options, place.base / "target2")
    assert_refused(done, f"{place.base}/(upper|work).*in use")
    assert [mount.place for mount in mounts_beneath(place.base)] == [str(place.target)]
    assert (place.target / "shared").read_text() == "of the top\n"
    subprocess.run(["umount", place.target], check=True)
    assert has_ended(daemon)
    assert place.call("-o", options, place.target) == Done(0, "", "")
    place.daemon()


def test_missing_mountpoint(place: Place) -> None:
    done = place.call("-o", place.options, place.base / "absent")
    assert_refused(done, f"{place.base}/absent.*does not exist")


def test_mountpoint_that_is_no_directory(place: Place) -> None:
    done = place.call("-o", place.options, place.base / "top/shared")
    assert_refused(done, f"{place.base}/top/shared.*[Nn]ot a directory")
    assert mounts_beneath(place.base) == []


def test_stale_mountpoint_is_refused_and_usable_once_unmounted(place: Place) -> None:
    daemon = place.mount()
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    assert has_ended(daemon)
    done = place.call("-o", place.options, place.target)
    assert_refused(done, f"{place.target}.*(unmount|umount)")
    assert len(mounts_beneath(place.base)) == 1
    subprocess.run(["umount", place.target], check=True)
    place.mount()
    assert (place.target / "shared").read_text() == "of the top\n"


@pytest.mark.parametrize("name", ["src", "17", "#5 notes", "incompat/unknown"])
def test_workdir_that_holds_what_is_not_an_overlay_s_is_refused(name: str, place: Place) -> None:
    (place.base / "work/work" / name).mkdir(parents=True)
    done = place.call("-o", place.options, place.target)
    assert f"{place.base}/work/work holds {name}, which is not ours to remove" in done.err
    assert done.status == 1
    assert (place.base / "work/work" / name).is_dir()


def test_leftover_drafts_are_cleaned_away(place: Place) -> None:
    (place.base / "work/work/#1f/deep").mkdir(parents=True)
    place.mount()
    assert list((place.base / "work/work").iterdir()) == []


def test_leftover_mark_of_a_volatile_mount_is_refused(place: Place) -> None:
    daemon = place.mount("volatile")
    (place.target / "new").write_text("not on the disk yet")
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    assert has_ended(daemon)
    subprocess.run(["umount", place.target], check=True)
    assert_refused(place.call("-o", place.options, place.target), f"{place.base}/work/.*volatile")
    assert mounts_beneath(place.base) == []
    # Who asks for it again accepts the risk again.
    place.mount("volatile")


def test_leftover_volatile_mark_of_the_kernel_s_overlayfs_is_refused(place: Place) -> None:
    mark = place.base / "work/work/incompat/volatile"
    mark.mkdir(parents=True)
    assert_refused(place.call("-o", place.options, place.target), "volatile")


def test_refused_mount_leaves_no_process(place: Place) -> None:
    def processes() -> set[str]:
        return {name for name in os.listdir("/proc") if name.isdigit() and _names(name, str(place.base))}

    assert place.run("-o", f"lowerdir={place.base}/absent", place.target).status == 1
    assert place.run("-o", place.options, place.base / "top/shared").status == 1
    assert processes() == set()


def _names(pid: str, text: str) -> bool:
    try:
        return text in os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:  # gone meanwhile
        return False
