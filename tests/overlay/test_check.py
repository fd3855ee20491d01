"""What a crash or tampering left is found, mended without loss, and not found again."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from overlayfs.overlay.changes import Comparison
from overlayfs.overlay.check import check
from overlayfs.overlay.findings import Finding, Problem, Severity
from overlayfs.overlay.options import MountError
from tests.contract.tree import (
    TRUSTED,
    Format,
    Tree,
    block,
    build,
    char,
    directory,
    file,
    hardlink,
    opaque_dir,
    symlink,
    whiteout,
    x_dir,
    xattr_whiteout,
)

OPAQUE = TRUSTED + "opaque"
REDIRECT = TRUSTED + "redirect"
METACOPY = TRUSTED + "metacopy"
ORIGIN = TRUSTED + "origin"
HANDLE = struct.pack("BBBBB16s8s", 0, 0xFB, 29, 0, 1, bytes(16), bytes(range(8)))


class Place:
    """An upper and a workdir to check."""

    def __init__(self, top: Path, upper: Tree, work: Tree | None = None) -> None:
        self.upper, self.work = os.fsencode(top / "upper"), os.fsencode(top / "work")
        build(self.upper, upper)
        build(self.work, work or {})

    def check(self, *, repair: bool = False, prefix: bytes | None = None) -> list[Finding]:
        return check(self.upper, self.work, repair, prefix)

    def xattr(self, path: str, name: str) -> bytes | None:
        full = self.upper + b"/" + os.fsencode(path)
        present = os.listxattr(full, follow_symlinks=False)
        return os.getxattr(full, name, follow_symlinks=False) if name in present else None


def found(findings: list[Finding]) -> list[tuple[Problem, str]]:
    return [(finding.problem, os.fsdecode(finding.path)) for finding in findings]


def test_nothing_is_wrong_with_what_a_mount_leaves(tmp_path: Path) -> None:
    upper: Tree = {
        "f": file(b"x", xattrs={ORIGIN: HANDLE, TRUSTED + "nlink": b"U-1"}),
        "gone": char(0, 0, 0),
        "d": opaque_dir(),
        "e": directory(xattrs={REDIRECT: b"/old/name", ORIGIN: b""}),
        "m": file(size=9, xattrs={METACOPY: b"", REDIRECT: b"other"}),
        "v": file(size=9, xattrs={METACOPY: bytes([0, 36, 0, 1]) + bytes(32)}),
        "x": x_dir(),
        "x/y": xattr_whiteout(),
        "o/.wh.z": file(),
        "p/.wh..wh..opq": file(),
        "q/.wh.r": file(),
        "q/r": file(b"replaced"),
        "s": symlink("/nowhere"),
        "b": block(0, 0),
        "n": file(xattrs={TRUSTED + "overlayfs.number": bytes(8)}),
    }
    work: Tree = {"work": directory(), "index": directory(), "overlayfs-links/" + "0" * 16: symlink("2")}
    assert Place(tmp_path, upper, work).check() == []


# Problem, the tree that has it, where; what there is after the repair is told apart below.
MARKS: list[tuple[Problem, Tree, str]] = [
    (Problem.BAD_OPAQUE, {"d": directory(xattrs={OPAQUE: b"n"})}, "d"),
    (Problem.BAD_OPAQUE, {"d": directory(xattrs={OPAQUE: b"yy"})}, "d"),
    (Problem.BAD_OPAQUE, {"f": file(xattrs={OPAQUE: b"y"})}, "f"),
    (Problem.BAD_REDIRECT, {"d/e": directory(xattrs={REDIRECT: b"/a/../../etc"})}, "d/e"),
    (Problem.BAD_REDIRECT, {"d": directory(xattrs={REDIRECT: b".."})}, "d"),
    (Problem.BAD_REDIRECT, {"d": directory(xattrs={REDIRECT: b"a\0b"})}, "d"),
    (Problem.BAD_REDIRECT, {"d": directory(xattrs={REDIRECT: b"a/b"})}, "d"),
    (Problem.BAD_REDIRECT, {"d": directory(xattrs={REDIRECT: b"/" + b"x" * 256})}, "d"),
    (Problem.STRAY_REDIRECT, {"f": file(xattrs={REDIRECT: b"/x"})}, "f"),
    (Problem.BAD_METACOPY, {"f": file(xattrs={METACOPY: b"\1\4\0\0"})}, "f"),
    (Problem.BAD_METACOPY, {"f": file(xattrs={METACOPY: b"\0\5\0\0"})}, "f"),
    (Problem.BAD_METACOPY, {"f": file(xattrs={METACOPY: b"\0"})}, "f"),
    (Problem.STRAY_METACOPY, {"d": directory(xattrs={METACOPY: b""})}, "d"),
    (Problem.BAD_ORIGIN, {"f": file(xattrs={ORIGIN: HANDLE[:-1]})}, "f"),
    (Problem.BAD_ORIGIN, {"f": symlink("x", xattrs={ORIGIN: b"rubbish"})}, "f"),
    (Problem.BAD_NUMBER, {"f": file(xattrs={TRUSTED + "overlayfs.number": b"1"})}, "f"),
    (Problem.BAD_NLINK, {"f": file(xattrs={TRUSTED + "nlink": b"many"})}, "f"),
    (Problem.WHITEOUT_IN_OPAQUE, {"d": opaque_dir(), "d/w": char(0, 0, 0)}, "d/w"),
    (Problem.WHITEOUT_IN_OPAQUE, {"d": opaque_dir(), "d/.wh.w": file()}, "d/.wh.w"),
    (Problem.WHITEOUT_IN_OPAQUE, {"d/.wh..wh..opq": file(), "d/w": char(0, 0, 0)}, "d/w"),
    (Problem.WHITEOUT_IN_OPAQUE, {"d": opaque_dir(), "d/w": xattr_whiteout()}, "d/w"),
    (Problem.DOUBLE_WHITEOUT, {"w": char(0, 0, 0), ".wh.w": file()}, ".wh.w"),
    (Problem.UNMARKED_WHITEOUT, {"d": directory(), "d/w": xattr_whiteout()}, "d/w"),
    (Problem.WHITEOUT_MODE, {"w": char(0, 0, 0o666)}, "w"),
]


@pytest.mark.parametrize(("problem", "tree", "path"), MARKS)
def test_bad_mark_is_found_mended_and_gone(tmp_path: Path, problem: Problem, tree: Tree, path: str) -> None:
    place = Place(tmp_path, tree)
    assert found(place.check()) == [(problem, path)]
    assert found(place.check()) == [(problem, path)], "looking must change nothing"
    (mended,) = place.check(repair=True)
    assert mended.repaired
    assert place.check() == []


def test_xattrs_of_the_other_prefix_are_data_of_users(tmp_path: Path) -> None:
    user = {"user.overlay.opaque": b"x", "user.overlay.redirect": b"..", "user.overlay.nlink": b"?"}
    place = Place(tmp_path, {"d": directory(xattrs=user), "d/f": file(xattrs={"user.overlay.whiteout": b""})})
    assert place.check() == []
    assert found(place.check(prefix=b"user.overlay.")) == [(Problem.BAD_NLINK, "d"), (Problem.BAD_REDIRECT, "d")]


@pytest.mark.parametrize(
    ("problem", "tree", "path"),
    [
        (
            Problem.BAD_DATA_REDIRECT,
            {"f": file(size=3, xattrs={METACOPY: b"", REDIRECT: b"../f"})},
            "f",
        ),
        (Problem.BAD_OVERRIDE, {"f": file(xattrs={"user.containers.override_stat": b"root"})}, "f"),
        (Problem.FULL_WHITEOUT, {".wh.f": file(b"precious")}, ".wh.f"),
        (Problem.FULL_WHITEOUT, {".wh.d/f": file(b"precious")}, ".wh.d"),
        (Problem.FULL_WHITEOUT, {"d": opaque_dir(), "d/.wh.f": file(b"precious")}, "d/.wh.f"),
        (Problem.NAMELESS_WHITEOUT, {".wh.": file()}, ".wh."),
    ],
)
def test_what_only_a_person_can_decide_is_left_alone(tmp_path: Path, problem: Problem, tree: Tree, path: str) -> None:
    place = Place(tmp_path, tree)
    (finding,) = place.check(repair=True)
    assert (finding.problem, os.fsdecode(finding.path), finding.repaired) == (problem, path, False)
    assert problem.remedy == ""
    assert found(place.check()) == [(problem, path)]


def test_every_problem_says_what_it_means() -> None:
    assert all(problem.meaning and isinstance(problem.severity, Severity) for problem in Problem)


def test_unreadable_redirect_becomes_opaque_so_that_nothing_else_shows(tmp_path: Path) -> None:
    place = Place(tmp_path, {"d": directory(xattrs={REDIRECT: b"../x"}), "d/mine": file(b"kept")})
    place.check(repair=True)
    assert place.xattr("d", REDIRECT) is None
    assert place.xattr("d", OPAQUE) == b"y"
    build(os.fsencode(tmp_path / "lower"), {"d/other": file()})
    with Comparison.open(place.upper, [os.fsencode(tmp_path / "lower")]) as comparison:
        assert {change.path for change in comparison} >= {b"d/mine", b"d/other"}


def test_removing_a_whiteout_leaves_the_directory_as_it_looks(tmp_path: Path) -> None:
    place = Place(tmp_path, {"d": opaque_dir(), "d/w": char(0, 0, 0), "d/f": file(b"kept")})
    before = os.stat(place.upper + b"/d")
    place.check(repair=True)
    assert os.listdir(place.upper + b"/d") == [b"f"]
    assert os.stat(place.upper + b"/d").st_mtime_ns == before.st_mtime_ns


def test_count_of_deleted_names_may_be_negative(tmp_path: Path) -> None:
    """As that of a copy in an index, which has more names than links, and lost one."""
    place = Place(tmp_path, {}, {"overlayfs-links/00000000000000aa": symlink("-2")})
    assert place.check(repair=True) == []


def test_leftovers_in_the_workdir_go(tmp_path: Path) -> None:
    work: Tree = {
        "work/#1": file(b"draft"),
        "work/#2/deep/er": file(),
        "work/#3": symlink("/etc"),
        "work/#4": whiteout(),
        "index/#5": file(),
        "overlayfs-links/x": file(),
    }
    place = Place(tmp_path, {"f": file(b"kept")}, work)
    findings = place.check(repair=True)
    leftovers = ["index/#5", *(f"work/#{n}" for n in (1, 2, 3, 4))]
    assert found(findings) == [
        (Problem.LEFTOVER, leftovers[0]),
        (Problem.BAD_LINK_COUNT, "overlayfs-links/x"),
        *((Problem.LEFTOVER, path) for path in leftovers[1:]),
    ]
    assert all(finding.repaired and finding.in_workdir for finding in findings)
    assert place.check() == []
    assert os.listdir(place.work + b"/work") == []


def test_volatile_mark_is_removed_and_nothing_beside_it(tmp_path: Path) -> None:
    place = Place(tmp_path, {}, {"work/incompat/volatile": directory()})
    assert found(place.check()) == [(Problem.VOLATILE, "work/incompat/volatile")]
    assert place.check(repair=True)[0].repaired
    assert place.check() == []


def test_what_is_not_ours_in_the_workdir_is_kept(tmp_path: Path) -> None:
    place = Place(tmp_path, {}, {"letters/mother": file(b"precious"), "index": symlink("/etc")})
    findings = place.check(repair=True)
    assert found(findings) == [(Problem.FOREIGN_WORK, "index"), (Problem.FOREIGN_WORK, "letters")]
    assert not any(finding.repaired for finding in findings)
    assert (tmp_path / "work/letters/mother").read_bytes() == b"precious"


def test_directories_named_the_wrong_way_round_lose_nothing(tmp_path: Path) -> None:
    kept: Tree = {"work/src/main.c": file(b"x"), "work/#5 notes": file(), "work/17": file(), "index/#todo": file()}
    place = Place(tmp_path, {}, kept)
    findings = place.check(repair=True)
    assert found(findings) == [
        (Problem.BAD_INDEX, "index/#todo"),
        *((Problem.FOREIGN_WORK, path) for path in ("work/#5 notes", "work/17", "work/src")),
    ]
    assert not any(finding.repaired for finding in findings)
    assert (tmp_path / "work/work/src/main.c").read_bytes() == b"x"


def index_entry(links: bytes | None, *, origin: bytes = HANDLE) -> Tree:
    xattrs = {ORIGIN: origin} | ({} if links is None else {TRUSTED + "nlink": links})
    return {"index/" + HANDLE.hex(): file(b"linked", xattrs=xattrs)}


def test_index_entry_without_a_name_in_the_merged_tree_goes(tmp_path: Path) -> None:
    place = Place(tmp_path, {}, index_entry(b"U-1"))
    assert found(place.check(repair=True)) == [(Problem.ORPHAN_INDEX, "index/" + HANDLE.hex())]
    assert os.listdir(place.work + b"/index") == []


@pytest.mark.parametrize("links", [b"U+0", b"U+1", b"L+0", b"rubbish", None])
def test_index_entry_that_may_have_a_name_stays(tmp_path: Path, links: bytes | None) -> None:
    place = Place(tmp_path, {}, index_entry(links))
    assert place.check(repair=True) == []
    assert os.listdir(place.work + b"/index") == [HANDLE.hex().encode()]


def test_index_entry_linked_from_the_upper_stays(tmp_path: Path) -> None:
    place = Place(tmp_path, {}, index_entry(b"U-1"))
    os.link(place.work + b"/index/" + HANDLE.hex().encode(), place.upper + b"/name")
    assert place.check(repair=True) == []


def test_index_entry_under_a_wrong_name_is_reported_and_kept(tmp_path: Path) -> None:
    place = Place(tmp_path, {}, index_entry(b"U-1", origin=b""))
    (finding,) = place.check(repair=True)
    assert (finding.problem, finding.repaired) == (Problem.BAD_INDEX, False)


def test_symlinks_in_the_upper_are_not_followed(tmp_path: Path) -> None:
    build(os.fsencode(tmp_path / "outside"), {"d": opaque_dir(), "d/w": char(0, 0, 0)})
    place = Place(tmp_path, {"link": symlink(str(tmp_path / "outside"))})
    assert place.check(repair=True) == []
    assert (tmp_path / "outside/d/w").is_char_device()


def test_many_whiteouts_of_one_inode_are_all_mended(tmp_path: Path) -> None:
    place = Place(tmp_path, {"d/a": char(0, 0, 0o600), "d/b": hardlink("d/a"), "e": hardlink("d/a")})
    findings = place.check(repair=True)
    assert {finding.problem for finding in findings} == {Problem.WHITEOUT_MODE}
    assert place.check() == []


@pytest.mark.parametrize("which", ["upper", "work"])
def test_directories_of_a_live_mount_are_refused(tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlayfs.overlay.claim._PATIENCE_S", 0)
    place = Place(tmp_path, {"d": opaque_dir(), "d/w": char(0, 0, 0)})
    fd = os.open(tmp_path / which, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(MountError, match="in use"):
            place.check(repair=True)
    finally:
        os.close(fd)
    assert (tmp_path / "upper/d/w").is_char_device()


def test_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check(os.fsencode(tmp_path / "no"), os.fsencode(tmp_path), False)


@pytest.mark.parametrize("form", list(Format))
def test_uppers_of_every_format_are_in_order(tmp_path: Path, form: Format) -> None:
    upper: Tree = {"d": directory(), "d/gone": whiteout(), "o": opaque_dir(), "o/f": file()}
    build(os.fsencode(tmp_path / "upper"), upper, form)
    build(os.fsencode(tmp_path / "work"), {})
    assert check(os.fsencode(tmp_path / "upper"), os.fsencode(tmp_path / "work"), False) == []


STACK = (
    b'{"version": 1, "layers": [{"directory": "", "snapshot": "a", "taken_at": 1}, {"directory": "2", "snapshot": null,'
    + (b' "taken_at": 0}]}')
)


@pytest.mark.parametrize("version", [3, 4])
def test_upperdir_counts_no_more_where_a_reset_dropped_it(tmp_path: Path, version: int) -> None:
    """By its version alone: what is in the upperdir would be removed."""
    stack = b'{"version": %d, "layers": [{"directory": "2", "snapshot": null, "taken_at": 0}]}' % version
    below = "overlayfs-snapshots/"
    work: Tree = {below + "stack": file(stack), below + "2/upper/f": file(b"kept")}
    place = Place(tmp_path, {"d": opaque_dir(), "d/w": char(0, 0, 0)}, work)
    problems = [problem for problem, _ in found(place.check())]
    assert (Problem.FOREIGN_WORK in problems) == (version == 3)
    assert len(problems) == (2 if version == 3 else 0)


def test_layers_of_snapshots_are_known_and_what_no_stack_names_is_left_over(tmp_path: Path) -> None:
    below = "overlayfs-snapshots/"
    work: Tree = {
        "work/incompat/overlayfs-snapshots": directory(),
        below + "stack": file(STACK),
        below + "stack.new": file(b"{"),
        below + "1/upper/f": file(b"of a rollback"),
        below + "2/upper/f": file(b"kept"),
    }
    place = Place(tmp_path, {}, work)
    assert found(place.check(repair=True)) == [(Problem.LEFTOVER, below + name) for name in ("1", "stack.new")]
    assert place.check() == []
    assert (tmp_path / "work" / below / "2/upper/f").read_bytes() == b"kept"


def test_hard_links_of_each_layer_of_snapshots_are_looked_at(tmp_path: Path) -> None:
    below = "overlayfs-snapshots/"
    work: Tree = {
        below + "stack": file(STACK),
        below + "2/upper": directory(),
        below + "2/index/foreign": file(),
        below + "2/overlayfs-links/0000000000000001": symlink("many"),
    }
    place = Place(tmp_path, {}, work)
    bad_link = (Problem.BAD_LINK_COUNT, below + "2/overlayfs-links/0000000000000001")
    assert found(place.check(repair=True)) == [(Problem.BAD_INDEX, below + "2/index/foreign"), bad_link]
    assert found(place.check()) == [(Problem.BAD_INDEX, below + "2/index/foreign")]


def test_damaged_stack_of_snapshots_is_told_and_left(tmp_path: Path) -> None:
    work: Tree = {"overlayfs-snapshots/stack": file(b"{}"), "overlayfs-snapshots/1/upper/f": file(b"kept")}
    place = Place(tmp_path, {}, work)
    assert found(place.check(repair=True)) == [(Problem.FOREIGN_WORK, "overlayfs-snapshots")]
    assert (tmp_path / "work/overlayfs-snapshots/1/upper/f").read_bytes() == b"kept"
