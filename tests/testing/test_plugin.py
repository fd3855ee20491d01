"""The pytest plugin in suites of its own: clean trees, failures that tell, nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.program import ENVIRONMENT, PATIENCE_S, mounts_beneath, open_device
from tests.mounted.test_images import make_base, make_store

REPOSITORY = Path(__file__).parents[2]
USER = 1000


class Suite:
    """A test suite that uses the plugin."""

    def __init__(self, base: Path, user: int | None = None) -> None:
        self.user = user
        self.base = self.directory = base
        self.temporary = base / "tmp"
        self.temporary.mkdir()

    def write(self, text: str) -> None:
        (self.base / "test_it.py").write_text("import os\nimport pytest\n" + text)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "overlayfs.testing.plugin", "-p", "no:cacheprovider", *arguments],
            cwd=self.directory,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
            env={
                **ENVIRONMENT,
                "TMPDIR": str(self.temporary),
                "OVERLAYFS_STORE": str(self.base / "store"),
                "PYTHONPATH": str(REPOSITORY),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, patience_s: float = PATIENCE_S) -> str:
        with self.start(*arguments) as process:
            return process.communicate(timeout=patience_s)[0]

    def assert_nothing_is_left(self) -> None:
        assert mounts_beneath(self.base) == []
        assert self.left() == []

    def left(self) -> list[str]:
        """What is in the temporary directory but pytest's own."""
        return [path.name for path in self.temporary.iterdir() if not path.name.startswith("pytest-of")]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


@pytest.fixture
def users_suite() -> Iterator[Suite]:
    """One in a directory of an ordinary user's."""
    base = Path(tempfile.mkdtemp(prefix="overlayfs-suite-"))
    suite = Suite(base, USER)
    for path in (base, suite.temporary):
        os.chown(path, USER, USER)
    with open_device():
        yield suite
    shutil.rmtree(base)


CLEAN = """
@pytest.fixture(scope="session")
def layer(overlay_layer):
    return overlay_layer({"etc/motd": "hello", "empty": None, "link": __import__("pathlib").Path("etc/motd")})

@pytest.mark.parametrize("turn", range(20))
def test_tree_is_clean(overlay, turn):
    assert os.listdir(overlay) == []
    (overlay / "made").write_text("x")
    assert overlay.changed == {"made"}

def test_session_has_trees_of_its_own(overlay_session, layer):
    tree = overlay_session.tree([layer])
    assert (tree / "link").read_text() == "hello"
    (tree / "etc/motd").unlink()
    assert tree.changed == {"etc/motd"}
    with tree.transaction():
        (tree / "more").touch()
    assert not (tree / "more").exists()
"""


def test_each_test_gets_a_clean_tree(suite: Suite) -> None:
    suite.write(CLEAN)
    assert "21 passed" in suite.run()
    suite.assert_nothing_is_left()


def test_workers_have_a_mount_each(suite: Suite) -> None:
    suite.write(CLEAN)
    assert "21 passed" in suite.run("-p", "xdist", "-n", "2")
    suite.assert_nothing_is_left()


def test_marker_names_the_layers(suite: Suite) -> None:
    for name in ("top", "bottom"):
        (suite.base / name).mkdir()
        (suite.base / name / "file").write_text(name)
    suite.write("""
pytestmark = pytest.mark.overlay(lowers=["top", "bottom"])

def test_top(overlay):
    assert (overlay / "file").read_text() == "top"
    (overlay / "file").write_text("changed")

def test_top_again(overlay):
    assert (overlay / "file").read_text() == "top"
""")
    assert "2 passed" in suite.run("--strict-markers")
    suite.assert_nothing_is_left()


IMAGE = """
pytestmark = pytest.mark.overlay(image="app:1")
"""


@pytest.fixture
def image(suite: Suite) -> None:
    """The image app:1 with etc/motd in the store of the suite."""
    make_base(suite.base, 0)
    make_store(suite.base)


@pytest.mark.usefixtures("image")
def test_marker_names_an_image(suite: Suite) -> None:
    suite.write(
        IMAGE
        + """
@pytest.mark.parametrize("turn", range(2))
def test_image(overlay, turn):
    assert (overlay / "etc/motd").read_text() == "hello"
    (overlay / "etc/motd").write_text("changed")
    assert overlay.changed == {"etc/motd"}

def test_image_of_its_own(overlay_session):
    assert (overlay_session.tree(image="app:1") / "etc/motd").read_text() == "hello"

@pytest.mark.overlay(image="nothing:1")
def test_of_no_image(overlay): ...

@pytest.mark.overlay(image="app:1", lowers=["."])
def test_of_both(overlay): ...
"""
    )
    out = suite.run("--strict-markers", "--overlay-keep")
    assert "3 passed, 2 errors" in out
    assert re.search("MountError: .*nothing:1", out)
    assert "TypeError: overlay: name either an image or layers" in out
    suite.assert_nothing_is_left()


CLOSED = """
@pytest.mark.parametrize("turn", range(2))
def test_closed_directory(overlay, turn):
    (overlay / "closed/below").mkdir(parents=True)
    for name in ("closed/below", "closed"):
        (overlay / name).chmod(0)
    assert overlay.changed == {"closed", "closed/below"}
"""


def test_suite_of_an_ordinary_user_leaves_nothing(users_suite: Suite) -> None:
    users_suite.write(CLOSED)
    for options in ((), ("--overlay-keep",)):
        assert "2 passed in" in users_suite.run(*options)
        users_suite.assert_nothing_is_left()


MANY = """
from overlayfs.fuse.status import read_facts

FIRST = {}
AFTER = 20  # tests, so that everything has been used
SOME = {"descriptors of the daemon": 30, "descriptors of pytest": 0, "MiB of the daemon": 4, "inodes": 0, "layers": 30}

def use(overlay):
    facts = read_facts(bytes(overlay.path))
    return {
        "descriptors of the daemon": len(os.listdir(f"/proc/{overlay.mount.pid}/fd")),
        "descriptors of pytest": len(os.listdir("/proc/self/fd")),
        "MiB of the daemon": facts["rss_bytes"] >> 20,
        "inodes": facts["inodes"],
        "layers": len(os.listdir(overlay.mount.upper.parent / "work/overlayfs-snapshots")),
    }

@pytest.mark.parametrize("turn", range(int(os.environ["TURNS"])))
def test_one(overlay, turn):
    place = overlay / f"directory{turn}"
    place.mkdir()
    (place / f"file{turn}").write_text("x")
    if turn == AFTER:
        FIRST.update(use(overlay))
    elif turn > AFTER:
        grown = {name: number - FIRST[name] for name, number in use(overlay).items()}
        assert {name: number for name, number in grown.items() if number > SOME[name]} == {}
"""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("turns", [70, pytest.param(1000, marks=pytest.mark.long)])
def test_nothing_grows_with_the_number_of_tests(suite: Suite, turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TURNS", str(turns))
    suite.write(MANY)
    assert f"{turns} passed" in suite.run(patience_s=PATIENCE_S + turns)
    suite.assert_nothing_is_left()


FAILING = """
def test_that_fails(overlay):
    (overlay / "culprit").write_text("x")
    assert False

def test_afterwards(overlay):
    assert not (overlay / "culprit").exists()
"""


def test_failure_tells_what_was_changed(suite: Suite) -> None:
    suite.write(FAILING)
    out = suite.run()
    assert "1 failed, 1 passed" in out
    assert "A /culprit" in out
    suite.assert_nothing_is_left()
    assert "1 failed in" in suite.run("-x")
    suite.assert_nothing_is_left()


RUDE = """
@pytest.fixture
def prepared(overlay):
    (overlay / "half").touch()
    raise RuntimeError("no more")

def test_of_a_fixture_that_fails(prepared): ...

def test_that_makes_a_strange_name(overlay):
    open(os.fsencode(overlay) + b"/\\xff\\x1b[31m", "w").close()
    assert False

def test_that_unmounts(overlay):
    overlay.mount.unmount()
    assert False

def test_afterwards(overlay):
    assert os.listdir(overlay) == []
"""


def test_failure_is_told_whatever_the_test_did(suite: Suite) -> None:
    suite.write(RUDE)
    out = suite.run("-p", "xdist", "-n", "1")
    assert "2 failed, 1 passed, 2 errors" in out
    assert "A /half" in out and r"A /\xff\x1b[31m" in out and "not known: " in out
    suite.assert_nothing_is_left()


def test_marker_is_checked_and_means_the_same_in_every_directory(suite: Suite) -> None:
    (suite.base / "layer").mkdir()
    (suite.base / "layer/file").touch()
    (suite.base / "pytest.ini").touch()
    (suite.base / "below").mkdir()
    suite.write("""
@pytest.mark.overlay(["layer"])
def test_layer(overlay):
    assert os.listdir(overlay) == ["file"]

@pytest.mark.overlay(lowers="layer")
def test_text(overlay): ...

@pytest.mark.overlay(["layer"], "app:1")
def test_both(overlay): ...

@pytest.mark.overlay(layers=["layer"])
def test_misspelled(overlay): ...
""")
    (suite.base / "test_it.py").rename(suite.base / "below/test_it.py")
    suite.directory = suite.base / "below"
    out = suite.run()
    assert "1 passed, 3 errors" in out
    assert "TypeError: overlay: lowers is a list of directories" in out
    suite.assert_nothing_is_left()


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(("marker", "below"), [("", []), (IMAGE, ["etc"])])
def test_kept_tree_can_be_mounted_again(suite: Suite, marker: str, below: list[str]) -> None:
    suite.write(marker + FAILING)
    out = suite.run("--overlay-keep")
    assert "1 failed, 1 passed" in out
    found = re.search(r"Look at it: overlayfs (mount .*)", out)
    assert found is not None
    words = found.group(1).split()
    subprocess.run([sys.executable, "-m", "overlayfs", *words], check=True, cwd=REPOSITORY, env=ENVIRONMENT)
    place = words[words.index("--upper") - 1]
    try:
        assert sorted(os.listdir(place)) == ["culprit", *below]
    finally:
        subprocess.run([sys.executable, "-m", "overlayfs", "umount", place], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_mount_outlives_pytest(suite: Suite, end: signal.Signals) -> None:
    suite.write("""
def test_that_waits(overlay, capfd):
    (overlay / "made").touch()
    with capfd.disabled():
        print("READY", flush=True)
    __import__("signal").pause()
""")
    with suite.start("-x", "-s") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "READY" in line:
                break
        assert len(mounts_beneath(suite.base)) == 1
        process.send_signal(end)
        process.communicate(timeout=PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while (mounts_beneath(suite.base) or suite.left()) and time.monotonic() < deadline:
        time.sleep(0.02)  # the serving process sees the end of its parent a little later
    suite.assert_nothing_is_left()


def test_unused_plugin_imports_nothing_of_ours(suite: Suite) -> None:
    suite.write("""
def test_modules():
    import sys
    ours = {name for name in sys.modules if name.startswith("overlayfs")}
    assert ours <= {"overlayfs", "overlayfs._version", "overlayfs.testing", "overlayfs.testing.plugin"}
""")
    assert "1 passed" in suite.run()
