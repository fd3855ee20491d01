"""What a workdir says of its layers is believed only where it makes sense, and nothing is removed before."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs.overlay.check import check
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.findings import Problem
from overlayfs.overlay.options import MountError, OverlayOptions
from tests.property.bare import EngineTarget

Tamper = Callable[[Path], object]


def _options(base: Path) -> OverlayOptions:
    return OverlayOptions(lowers=(bytes(base / "lower"),), upper=bytes(base / "upper"), work=bytes(base / "work"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tree with `first` in the upperdir and `second` in the layer that takes changes."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    tree = EngineTarget(_options(tmp_path))
    tree.create(b"first", 0, 0o644, b"first")
    tree.overlay.snapshot("a")
    tree.create(b"second", 0, 0o644, b"second")
    tree.close()
    return tmp_path


def _content(base: Path) -> dict[str, bytes]:
    places = (base / "upper", base / "work/overlayfs-snapshots")
    return {path.name: path.read_bytes() for place in places for path in place.rglob("*") if path.name in NAMES}


NAMES = {"first", "second"}
KEPT = {name: name.encode() for name in NAMES}


def _layers(*layers: dict[str, object], version: int = 1) -> Tamper:
    entries = [{"snapshot": None, "taken_at": 0, **layer} for layer in layers]
    return _text(json.dumps({"version": version, "layers": entries}).encode())


def _text(text: bytes) -> Tamper:
    return lambda stack: stack.write_bytes(text)


def _instead(make: Tamper) -> Tamper:
    def tamper(stack: Path) -> None:
        stack.rename(stack.with_name("elsewhere"))
        make(stack)

    return tamper


def _taken_at(text: str) -> Tamper:
    named = '{"directory": "", "snapshot": "a", "taken_at": %s}, {"directory": "1", "snapshot": null, "taken_at": 0}'
    return _text(b'{"version": 1, "layers": [' + (named % text).encode() + b"]}")


TAMPERS: dict[str, Tamper] = {
    "empty": _text(b""),
    "cut off": _text(b'{"version": 1, "lay'),
    "no time": _taken_at("NaN"),
    "an infinite time": _taken_at("1e999"),
    "a time that no float holds": _taken_at("1" + "0" * 400),
    "a time that no calendar has": _taken_at("1e30"),
    "a number that no integer holds": _layers({"directory": "", "snapshot": "a"}, {"directory": "9" * 5000}),
    "a path with a zero": _layers({"directory": "/a\0b", "snapshot": "a", "upper": "/a"}, {"directory": ""}, version=2),
    "a path that is none": _layers({"directory": "/a", "snapshot": "a", "upper": "/\ud800"}, {"directory": ""}),
    "a layer outside": _layers({"directory": "../../lower"}, version=4),
    "a directory": _instead(Path.mkdir),
    "a pipe": _instead(os.mkfifo),
    "a symlink": _instead(lambda stack: stack.symlink_to("elsewhere")),
    "none": _instead(lambda _stack: None),
}


@pytest.mark.parametrize("tamper", TAMPERS.values(), ids=TAMPERS)
def test_damaged_stack_is_refused_in_one_line_and_nothing_is_removed(base: Path, tamper: Tamper) -> None:
    tamper(base / "work/overlayfs-snapshots/stack")
    with pytest.raises(MountError, match=r"^workdir: overlayfs-snapshots/stack is damaged[^\n]*$"):
        Overlay.open(_options(base))
    problems = [one.problem for one in check(bytes(base / "upper"), bytes(base / "work"), repair=True)]
    assert Problem.FOREIGN_WORK in problems
    assert _content(base) == KEPT


def test_nothing_is_removed_where_a_layer_is_missing(base: Path) -> None:
    """As after a reset, so that what the upperdir holds is left over."""
    _layers({"directory": "7"}, version=4)(base / "work/overlayfs-snapshots/stack")
    with pytest.raises(MountError, match="layer 7 of a snapshot"):
        Overlay.open(_options(base))
    assert _content(base) == KEPT


@pytest.mark.timeout(60)
def test_pipe_in_place_of_the_new_stack_holds_no_snapshot_up(base: Path) -> None:
    tree = EngineTarget(_options(base))
    os.mkfifo(base / "work/overlayfs-snapshots/stack.new")
    tree.overlay.snapshot("b")
    assert tree.read(b"second") == b"second"
    tree.close()


def test_count_of_deleted_names_that_no_file_has_counts_for_nothing(base: Path) -> None:
    (base / "lower/one").write_bytes(b"linked")
    os.link(base / "lower/one", base / "lower/two")
    for place in ("work", "work/overlayfs-snapshots/1"):
        (base / place / "overlayfs-links").mkdir()
    tree = EngineTarget(_options(base))
    number = tree.overlay.lookup(1, b"one").ino
    tree.close()
    for place in ("work", "work/overlayfs-snapshots/1"):
        (base / place / "overlayfs-links" / f"{number:016x}").symlink_to("9" * 30)
    tree = EngineTarget(_options(base))
    assert tree.overlay.lookup(1, b"one").nlink == 2
    tree.overlay.roll_back("a")
    assert tree.overlay.lookup(1, b"two").nlink == 2
    tree.close()


def test_layers_below_an_opaque_root_are_shown_once_that_is_dropped(base: Path) -> None:
    (base / "lower/low").touch()
    (base / "work/overlayfs-snapshots/1/upper/.wh..wh..opq").touch()
    tree = EngineTarget(_options(base))
    assert tree.listdir(b"") == [b"second"]
    tree.overlay.roll_back("a")
    assert sorted(tree.listdir(b"")) == [b"first", b"low"]
    tree.close()
    (base / "upper/.wh..wh..opq").touch()
    tree = EngineTarget(_options(base))
    assert tree.listdir(b"") == [b"first"]
    tree.overlay.reset()
    assert tree.listdir(b"") == [b"low"]
    tree.close()
