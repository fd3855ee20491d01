"""What does pytest get from overlayfs? Fixtures, a marker and an option.

    @pytest.mark.overlay(lowers=["layers/app", "layers/base"])      # or image="app:1"
    def test_install(overlay):
        subprocess.run(["chroot", overlay.path, "make", "install"], check=True)
        assert overlay.changed == {"usr/bin/app"}

The tree is mounted once for the session (of each worker of pytest-xdist), and rolled back after each test. The mount
ends with pytest, however that ends. pytest imports this module in every run, so it imports nothing but pytest; the rest
comes with the first test that uses a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .trees import Content, Tree, Trees

_TREE = pytest.StashKey["Tree"]()
_MARKER = "overlay(lowers=[...], image=NAME): the layers, top first, or the image of the tree that the test gets."


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("overlayfs").addoption(
        "--overlay-keep", action="store_true", help="Keep the tree of a failed test, and say how to mount it."
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture(scope="session")
def overlay_session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trees]:
    """The mounted trees of the session: `overlay_session.tree(lowers)` is one that nothing rolls back by itself."""
    from .trees import Trees, write_layer

    empty = write_layer(tmp_path_factory.mktemp("empty-layer"), {})
    with Trees(empty, keep=request.config.getoption("--overlay-keep")) as trees:
        yield trees


@pytest.fixture
def overlay(request: pytest.FixtureRequest, overlay_session: Trees) -> Iterator[Tree]:
    """A clean tree of the layers that the marker `overlay` names, where relative paths start at pytest's root
    directory; of an empty layer without one."""
    from .trees import source_of

    marker = request.node.get_closest_marker("overlay") or pytest.mark.overlay.mark
    tree = overlay_session.clean(source_of(*marker.args, **marker.kwargs, base=request.config.rootpath))
    request.node.stash[_TREE] = tree
    yield tree
    del request.node.stash[_TREE]
    overlay_session.give_back(tree)


@pytest.fixture(scope="session")
def overlay_layer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Content]], Path]:
    """Makes a layer of a dictionary: text or bytes is a file, None a directory, a Path the target of a symlink."""
    from .trees import write_layer

    def make(files: Mapping[str, Content]) -> Path:
        return write_layer(tmp_path_factory.mktemp("layer"), files)

    return make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what a failed test, or one of its fixtures, had changed."""
    report = yield
    tree = item.stash.get(_TREE, None)
    if tree is not None and report.failed:
        report.sections.append(("changes of the overlay", tree.describe_failure()))
    return report
