"""The power goes: the tree is one that the operations passed through, and what was synced is there."""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import FsyncPolicy, WhiteoutFormat
from overlayfs.tree import syscalls

from .forgetful import ForgetfulDisk
from .mounting import sync_file_system
from .operations import (
    Step,
    chmod,
    create,
    fork,
    mkdir,
    rename,
    reset,
    reset_around,
    rmdir,
    roll_back,
    set_xattr,
    snapshot,
    sync,
    sync_data,
    sync_directory,
    truncate,
    unlink,
    write,
)
from .power import (
    EXT4,
    XFS,
    Cut,
    FileSystem,
    Rig,
    close_quietly,
    commit_something_else,
    cuts,
    judge,
    layers_on,
    make_image,
    mounted_image,
    shut_down,
    timeless,
    tree_of,
)
from .supervisor import supervise
from .sweep import Figures, options_for, sampled
from .trees import PAGES, Layers, Tree, differences, make_upper, seen_through

SEED = 20240601


class Act(NamedTuple):
    """A change and the calls that make it durable, by name."""

    steps: tuple[Step, ...]
    syncs: dict[str, Step]


def _file(path: str, *steps: Step, data: bool = True) -> Act:
    syncs = {"fsync": sync(path)}
    return Act(steps, syncs | {"fdatasync": sync_data(path)} if data else syncs)


def _names(directory: str, *steps: Step) -> Act:
    return Act(steps, {"fsyncdir": sync_directory(directory)})


ACTS: dict[str, Act] = {
    "append to lower file": _file("big", write("big", b"appended", len(PAGES))),
    "overwrite lower file": _file("dir/file", write("dir/file", b"new")),
    "truncate lower file": _file("dir/file", truncate("dir/file", 5)),
    "truncate to nothing": _file("big", truncate("big", 0)),
    "chmod lower file": _file("big", chmod("big", 0o600), data=False),
    "setxattr lower file": _file("big", set_xattr("big", b"user.new", b"value"), data=False),
    "write upper file": _file("mine", write("mine", b"changed")),
    "rename lower file": _names("", rename("big", "renamed")),
    "rename lower file over lower": _names("dir", rename("dir/other", "dir/file")),
    "rename lower directory": _names("", rename("lowtree", "moved")),
    "rename merged directory": _names("", rename("merged", "combined")),
    "unlink lower file": _names("dir", unlink("dir/file")),
    "rmdir lower directory": _names("", rmdir("empty")),
    "mkdir over whiteout": _names("", mkdir("gone")),
    "write hard-linked lower file": _file("one", write("one", b"LINKED")),
    "create and write": _file("dir/new", create("dir/new"), write("dir/new", b"content" * 100)),
    "replace by rename": Act(
        (
            create("dir/.tmp"),
            write("dir/.tmp", b"new version" * 50),
            sync("dir/.tmp"),
            rename("dir/.tmp", "dir/file"),
        ),
        {"fsyncdir": sync_directory("dir")},
    ),
    "snapshot": _file(
        "dir/file",
        write("dir/file", b"new"),
        sync("dir/file"),
        chmod("one", 0o600),
        snapshot("a"),
        write("dir/file", b"newer"),
    ),
    "rollback": _names(
        "",
        write("dir/file", b"kept"),
        sync("dir/file"),
        snapshot("a"),
        rename("lowtree", "moved"),
        unlink("dir/file"),
        roll_back("a"),
        mkdir("gone"),
    ),
    "rollback past a snapshot": _names(
        "", unlink("big"), snapshot("a"), chmod("one", 0o600), snapshot("b"), mkdir("gone"), roll_back("a")
    ),
    "reset": _names(
        "", write("dir/file", b"new"), sync("dir/file"), snapshot("a"), chmod("one", 0o600), reset, mkdir("fresh")
    ),
    "reset around a place": _names(
        "", mkdir("dir/made"), write("dir/file", b"new"), sync("dir/file"), reset_around("dir/made"), mkdir("fresh")
    ),
    "fork": _names("dir", unlink("dir/file"), snapshot("a"), fork("a")),
}
COPYING = ("append to lower file", "overwrite lower file", "chmod lower file", "rename lower file")


def _sequence(act: Act, kind: str | None) -> list[tuple[Step, bool]]:
    steps = [(step, False) for step in act.steps]
    return steps if kind is None else [*steps, (act.syncs[kind], True)]


def _variants() -> Iterator[tuple[str, str | None]]:
    for name, act in ACTS.items():
        yield from ((name, kind) for kind in (None, *act.syncs))


# --- a file system that forgets


class Loss(NamedTuple):
    name: str
    kind: str | None
    states: list[Tree]


def _act_on_all(
    place: Path, lowers: tuple[Path, ...], fsync: FsyncPolicy, system: FileSystem, committed: bool
) -> list[Loss]:
    """Each variant on an upper of its own in one file system, which then loses what it has not written."""
    losses = []
    with ExitStack() as undo:
        for number, (name, kind) in enumerate(_variants()):
            layers = layers_on(place, lowers, str(number))
            overlay = Overlay.open(options_for(layers, WhiteoutFormat.OVERLAY, fsync=fsync))
            undo.callback(close_quietly, overlay)
            states = [timeless(seen_through(overlay))]
            for step, _ in _sequence(ACTS[name], kind):
                step(overlay)
                states.append(timeless(seen_through(overlay)))
            losses.append(Loss(name, kind, states))
        if committed:
            commit_something_else(place)
        shut_down(place)
    return losses


def _shutdown_figures(
    base: Path, lowers: tuple[Path, ...], fsync: FsyncPolicy, system: FileSystem, committed: bool
) -> Figures:
    image = base / "image"
    make_image(image, system)
    with mounted_image(image, system, base / "mount") as place:
        for number, _ in enumerate(_variants()):
            (place / str(number)).mkdir()
            make_upper(layers_on(place, lowers, str(number)), WhiteoutFormat.OVERLAY)
        sync_file_system(place)
        losses = _act_on_all(place, lowers, fsync, system, committed)
    found = Figures()
    with mounted_image(image, system, base / "mount") as place:
        for number, loss in enumerate(losses):
            _judge_loss(found, loss, tree_of(layers_on(place, lowers, str(number))))
    return found


def _judge_loss(found: Figures, loss: Loss, tree: Tree) -> None:
    allowed = loss.states[-1:] if loss.kind else loss.states
    found.add("lost power")
    lines = min((differences(state, tree) for state in allowed), key=len)
    if lines:
        found.accuse(
            "neither old nor new" if not loss.kind else "synced and lost",
            f"{loss.name}, {loss.kind}: {lines}",
        )


@pytest.mark.parametrize("committed", [False, True], ids=["nothing-committed", "journal-committed"])
@pytest.mark.parametrize("system", [EXT4, pytest.param(XFS, marks=pytest.mark.long)], ids=lambda one: one.name)
@pytest.mark.parametrize("fsync", [FsyncPolicy.AUTO, FsyncPolicy.STRICT])
def test_forgetful_file_system_holds_old_or_new(
    fsync: FsyncPolicy,
    system: FileSystem,
    committed: bool,
    scratch: Path,
    lowers: tuple[Path, ...],
    figures: dict[str, Figures],
) -> None:
    found = _shutdown_figures(scratch, lowers, fsync, system, committed)
    figures.setdefault(f"power loss, {system.name} shut down, fsync={fsync.value}", Figures()).__iadd__(found)
    assert not found.bad, "\n".join(found.bad)


def _forgetful_figures(
    place: Path, lowers: tuple[Path, ...], fsync: FsyncPolicy, variants: Iterable[tuple[str, str | None]]
) -> Figures:
    """The same on the model of a disk, which forgets whatever was not synced on any machine and at any time."""
    every = {variant: layers_on(place, lowers, str(number)) for number, variant in enumerate(variants)}
    for layers in every.values():
        make_upper(layers, WhiteoutFormat.OVERLAY)
    disk = ForgetfulDisk(place)
    run = supervise(lambda gate: [_loss(*variant, every[variant], fsync) for variant in every], on_sync=disk.keep)
    assert isinstance(run.sent, list)
    disk.lose_power()
    found = Figures()
    for loss in run.sent:
        _judge_loss(found, loss, tree_of(every[loss.name, loss.kind]))
    return found


def _loss(name: str, kind: str | None, layers: Layers, fsync: FsyncPolicy) -> Loss:
    """A variant's steps; the overlay is left open, as where the power goes."""
    overlay = Overlay.open(options_for(layers, WhiteoutFormat.OVERLAY, fsync=fsync))
    states = [timeless(seen_through(overlay))]
    for step, _ in _sequence(ACTS[name], kind):
        step(overlay)
        states.append(timeless(seen_through(overlay)))
    return Loss(name, kind, states)


@pytest.mark.parametrize("fsync", [FsyncPolicy.AUTO, FsyncPolicy.STRICT])
def test_disk_that_keeps_only_what_was_synced_holds_old_or_new(
    fsync: FsyncPolicy,
    scratch: Path,
    lowers: tuple[Path, ...],
    figures: dict[str, Figures],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        syscalls, "is_in_memory", lambda _fd: False
    )  # where the model is: snapshots save an fsync there
    found = _forgetful_figures(scratch, lowers, fsync, _variants())
    figures[f"power loss, forgetful disk, fsync={fsync.value}"] = found
    assert not found.bad, "\n".join(found.bad)


def test_without_our_fsync_a_forgetful_disk_loses_lower_content(scratch: Path, lowers: tuple[Path, ...]) -> None:
    """Negative control: `volatile` publishes what is not on the disk yet, and the same judgement finds it."""
    found = _forgetful_figures(scratch, lowers, FsyncPolicy.VOLATILE, [(name, None) for name in COPYING])
    assert found.outcomes["neither old nor new"] == len(COPYING), found.bad


# --- a disk cut at each of its writes


def _replay_figures(rig: Rig, sequence: Sequence[tuple[Step, bool]], limit: int | None, name: str) -> Figures:
    recording = rig.record(sequence)
    start = recording.moments[0].begins
    found = Figures()
    for cut in sampled(list(cuts(recording.records, start, random.Random(SEED))), limit):
        found.add("cut")
        try:
            lines = judge(recording, cut, rig.replay(recording, cut))
        except OSError as error:
            lines = [f"unreadable: {error}"]
        if lines:
            found.accuse("neither old nor new", f"{name} at {cut.position}, {len(cut.kept)} writes: {lines}")
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("append to lower file", "fsync"),
        ("overwrite lower file", "fdatasync"),
        ("rename lower directory", None),
        ("replace by rename", "fsyncdir"),
        ("snapshot", "fsync"),
        ("rollback", "fsyncdir"),
    ],
)
def test_cut_disk_holds_old_or_new(
    name: str, kind: str | None, scratch: Path, lowers: tuple[Path, ...], figures: dict[str, Figures]
) -> None:
    found = _replay_figures(Rig(scratch, EXT4, lowers), _sequence(ACTS[name], kind), 12, name)
    figures.setdefault("power loss, cut disk, sample", Figures()).__iadd__(found)
    assert not found.bad, "\n".join(found.bad)


def test_cut_disk_that_did_not_write_the_copied_data_is_noticed(scratch: Path, lowers: tuple[Path, ...]) -> None:
    """Negative control for the recording disk: everything is on it but the blocks of the lower file's content."""
    rig = Rig(scratch, EXT4, lowers)
    recording = rig.record(_sequence(ACTS["append to lower file"], None))
    block = PAGES[:1024]
    kept = tuple(n for n, record in enumerate(recording.records) if record.data is None or block not in record.data)
    assert len(kept) < len(recording.records)
    cut = Cut(recording.records[-1].end, kept)
    assert judge(recording, cut, rig.replay(recording, cut))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("system", [EXT4, XFS], ids=lambda one: one.name)
def test_disk_cut_at_every_write_holds_old_or_new(
    system: FileSystem, scratch: Path, lowers: tuple[Path, ...], figures: dict[str, Figures]
) -> None:
    rig = Rig(scratch, system, lowers)
    found = Figures()
    for name, kind in _variants():
        found += _replay_figures(rig, _sequence(ACTS[name], kind), None, f"{name}, {kind}")
    figures[f"power loss, cut disk, {system.name}, single"] = found
    assert not found.bad, "\n".join(found.bad)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_disk_cut_during_two_operations_holds_old_or_new(
    scratch: Path, lowers: tuple[Path, ...], figures: dict[str, Figures]
) -> None:
    """The first is made durable before the second begins: so it is there, whatever becomes of the second."""
    rig = Rig(scratch, EXT4, lowers)
    found = Figures()
    for first, second in itertools.permutations(PAIRED, 2):
        sequence = _sequence(ACTS[first], next(iter(ACTS[first].syncs))) + _sequence(ACTS[second], None)
        found += _replay_figures(rig, sequence, 24, f"{first}, then {second}")
    figures["power loss, cut disk, ext4, pairs"] = found
    assert not found.bad, "\n".join(found.bad)


PAIRED = (
    "append to lower file",
    "write hard-linked lower file",
    "rename lower directory",
    "rename merged directory",
    "unlink lower file",
    "mkdir over whiteout",
    "create and write",
)
