"""Forks that are made just while the other mount drops layers: they have all of them, or are refused."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from overlayfs.overlay import forking
from overlayfs.overlay.history import History
from overlayfs.overlay.options import MountError, OverlayOptions
from tests.property.bare import EngineTarget


@pytest.fixture
def options(tmp_path: Path) -> OverlayOptions:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    return OverlayOptions(
        lowers=(bytes(tmp_path / "lower"),), upper=bytes(tmp_path / "upper"), work=bytes(tmp_path / "work")
    )


@pytest.fixture
def tree(options: OverlayOptions) -> Iterator[EngineTarget]:
    tree = EngineTarget(options)
    tree.create(b"file", 0, 0o644, b"content")
    yield tree
    tree.close()


def made(tree: EngineTarget, snapshot: str) -> OverlayOptions:
    """What a fork is to be mounted with."""
    options = tree.overlay.options
    assert options.upper is not None and options.work is not None
    place = forking.make(options.upper, options.work, snapshot, tree.overlay.state.prefix)
    return options._replace(upper=os.path.join(place, forking.UPPER), work=os.path.join(place, forking.WORK))


def remove_waste(tree: EngineTarget) -> None:
    tree.listdir(b"")  # so that nobody knows what is gone
    history = tree.overlay.state.history
    assert isinstance(history, History)
    history.look_again()  # as each command does
    remove = tree.overlay.take_waste()
    assert remove is not None
    remove()


def test_fork_since_a_reset_does_without_what_the_upperdir_held(tree: EngineTarget) -> None:
    tree.overlay.reset()
    tree.overlay.snapshot("a")
    fork = made(tree, "a")
    remove_waste(tree)
    with closing(EngineTarget(fork)) as forked:
        assert forked.listdir(b"") == []


def test_fork_of_before_a_reset_is_refused_once_it_cannot_have_its_layers(tree: EngineTarget) -> None:
    tree.overlay.snapshot("a")
    with closing(EngineTarget(made(tree, "a"))) as forked:
        late = made(tree, "a")
        tree.overlay.reset()
        remove_waste(tree)
        assert forked.read(b"file") == b"content"
        with pytest.raises(MountError, match="a reset of the other mount has just dropped the layers of this fork"):
            EngineTarget(late)
    remove_waste(tree)
    assert os.listdir(tree.overlay.options.upper or b"") == []
