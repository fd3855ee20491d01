"""Which module may import which: the rooms of the package and their order, read from the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "overlayfs"

# What the modules of each room may import besides those of their own, as prefixes of module names. The rooms stand
# from the bottom up: each names only rooms before it, so no two rooms import each other. The package itself ("") stands
# above fuse and the store: its __init__ offers mount() and mount_image() to programs.
EVERYWHERE = ("overlayfs._log", "overlayfs._typing", "overlayfs._version")
OF_OVERLAY = tuple(f"overlayfs.overlay.{module}" for module in ("changes", "layer", "ownership", "view"))
TO_STORE = tuple(f"overlayfs.image.{room}" for room in ("oci", "tar", "layer", "store"))
TO_CONTAINER = tuple(f"overlayfs.{room}" for room in ("tree", "overlay", "fuse", "image", "container"))
OF_CLI = tuple(
    f"overlayfs.cli.{module}"
    for module in ("app", "asking", "background", "mount_program", "output", "progress", "template")
)
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "tree": EVERYWHERE,
    "overlay": (*EVERYWHERE, "overlayfs.tree"),
    "fuse": (*EVERYWHERE, "overlayfs.tree", "overlayfs.overlay"),
    "image": (),
    "image.oci": EVERYWHERE,
    "image.tar": (*EVERYWHERE, "overlayfs.tree", *OF_OVERLAY, *TO_STORE[:1]),
    "image.layer": (*EVERYWHERE, "overlayfs.tree", *OF_OVERLAY, *TO_STORE[:2]),
    "image.store": (*EVERYWHERE, "overlayfs.tree", *OF_OVERLAY, *TO_STORE[:3]),
    "": (*EVERYWHERE, "overlayfs.tree", "overlayfs.overlay", "overlayfs.fuse", *TO_STORE),
    "image.foreign": (*EVERYWHERE, *TO_STORE[:1]),
    "image.make": (*EVERYWHERE, "overlayfs.tree", *OF_OVERLAY, *TO_STORE),
    "image.registry": (*EVERYWHERE, "overlayfs.tree", *TO_STORE),
    "image.archive": (*EVERYWHERE, "overlayfs.tree", *OF_OVERLAY, *TO_STORE, "overlayfs.image.make"),
    "image.inspect": (*EVERYWHERE, "overlayfs.tree", *OF_OVERLAY, *TO_STORE),
    "testing": (*EVERYWHERE, "overlayfs.api", "overlayfs.fuse.status", "overlayfs.fuse.throwaway", "overlayfs.overlay"),
    "container.spec": (*EVERYWHERE, *TO_STORE[:1]),
    "container": (*EVERYWHERE, *TO_CONTAINER[:3], *TO_STORE, "overlayfs.container.spec"),
    "container.live": (*EVERYWHERE, "overlayfs.tree", *TO_STORE, "overlayfs.container"),
    "snapshotter": (*EVERYWHERE, "overlayfs.tree", *TO_STORE),
    "build.dockerfile": (*EVERYWHERE, *TO_STORE[:1]),
    "build.files": (*EVERYWHERE, "overlayfs.tree", *TO_STORE, "overlayfs.container"),
    "build": (*EVERYWHERE, *TO_CONTAINER, "overlayfs.build.dockerfile", "overlayfs.build.files"),
    "cli.mounts": (*EVERYWHERE, *TO_CONTAINER, *OF_CLI),
    "cli.host": (*EVERYWHERE, *TO_CONTAINER, *OF_CLI, "overlayfs.cli.mounts"),
    "cli.store": (*EVERYWHERE, *TO_CONTAINER, *OF_CLI, "overlayfs.cli.mounts"),
    "cli.container": (
        *EVERYWHERE,
        *TO_CONTAINER,
        *OF_CLI,
        "overlayfs.build",
        "overlayfs.build.files",
        "overlayfs.cli.mounts",
        "overlayfs.cli.store",
    ),
    "cli.inspect": (*EVERYWHERE, *TO_CONTAINER, *OF_CLI, "overlayfs.cli.mounts", "overlayfs.cli.container"),
    "cli.commands": ("overlayfs",),
    "cli": ("overlayfs",),  # `main` and `mount_program` wire everything; no cycle of modules all the same
}
# Only for people: slow to import, so the mount program must start without them.
FOR_PEOPLE = ("pygments", "rich", "tomlkit", "typer")


def _sources() -> list[Path]:
    """Python, Cython, and the declarations that other Cython modules share (`.pxd`); not stubs, which nothing runs."""
    return sorted(path for kind in ("py", "pyx", "pxd") for path in PACKAGE.rglob(f"*.{kind}"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    """The innermost subpackage a module is in; empty for the modules of the package itself, but its program is the
    cli's."""
    parts = module.split(".")
    if parts[-1] == "__main__":
        return "cli"
    while len(parts) > 1 and not PACKAGE.parent.joinpath(*parts).is_dir():
        parts.pop()
    return ".".join(parts[1:])


def _absolute(name: str, module: str, *, is_package: bool) -> str:
    """The module named by a `from` import, relative ones (with leading dots) resolved as Python does."""
    bare = name.lstrip(".")
    level = len(name) - len(bare)
    if not level:
        return name
    parts = module.split(".")
    base = parts[: len(parts) - level + is_package]
    return ".".join([*base, *([bare] if bare else [])])


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or any(path.with_suffix(f".{kind}").exists() for kind in ("py", "pyx", "pxd"))


def _python_imports(source: str) -> Iterator[tuple[str, list[str]]]:
    """Each import as the module and what is taken from it, wherever it stands: late and typing ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]


def _cython_imports(source: str) -> Iterator[tuple[str, list[str]]]:
    """As `_python_imports`, of `import` and `cimport`, which ast does not know."""
    source = re.sub(r"#.*", "", source)
    for found in re.finditer(r"^[ \t]*from\s+([\w.]+)\s+c?import\s+(\([^)]*\)|[^\n;]*)", source, re.MULTILINE):
        names = found[2].strip("() \t").replace("\n", " ").split(",")
        yield found[1], [words[0] for name in names if (words := name.split())]
    for found in re.finditer(r"^[ \t]*c?import\s+([\w., \t]+)", source, re.MULTILINE):
        yield from ((words[0], []) for name in found[1].split(",") if (words := name.split()))


def _imported(source: str, module: str, *, is_package: bool = False, is_cython: bool = False) -> Iterator[str]:
    """Every module of ours that the source imports."""
    for name, taken in (_cython_imports if is_cython else _python_imports)(source):
        base = _absolute(name, module, is_package=is_package)
        # `from package import name`: a submodule, or something the package defines
        names = [whole if _is_module(whole := f"{base}.{each}") else base for each in taken] or [base]
        yield from (name for name in names if name.split(".")[0] == "overlayfs")


def _imported_by(path: Path) -> set[str]:
    source, is_package = path.read_text(), path.name == "__init__.py"
    is_cython = path.suffix != ".py"
    return set(_imported(source, _module_name(path), is_package=is_package, is_cython=is_cython))


def _is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def _is_allowed(importer: str, imported: str) -> bool:
    room = _room(importer)
    if _room(imported) == room:
        return True
    return any(_is_within(imported, prefix) for prefix in MAY_IMPORT[room])


def _graph() -> dict[str, set[str]]:
    """What each module imports; a `.pxd` is a part of its module."""
    graph: dict[str, set[str]] = {}
    for path in _sources():
        graph.setdefault(_module_name(path), set()).update(_imported_by(path))
    return {module: imported - {module} for module, imported in graph.items()}


def _cycles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The groups of modules that reach one another, found one cycle at a time: each is joined into one node."""
    groups = {module: {module} for module in graph}
    joined = {module: set(imported) & graph.keys() for module, imported in graph.items()}
    while True:
        try:
            TopologicalSorter(joined).prepare()
        except CycleError as error:
            first, *others = dict.fromkeys(error.args[1])
        else:
            return [group for node, group in groups.items() if len(group) > 1 and node in joined]
        for other in others:
            groups[first] |= groups.pop(other)
            joined[first] |= joined.pop(other)
        gone = set(others)
        joined = {
            node: {first if name in gone else name for name in imported} - {node} for node, imported in joined.items()
        }


@pytest.mark.parametrize("path", _sources(), ids=lambda path: f"{_module_name(path)}{path.suffix}")
def test_module_imports_only_rooms_below(path: Path) -> None:
    module = _module_name(path)
    assert [name for name in sorted(_imported_by(path)) if not _is_allowed(module, name)] == []


def test_each_room_names_only_rooms_before_it() -> None:
    before: set[str] = set()
    for room, prefixes in MAY_IMPORT.items():
        named = {_room(prefix) for prefix in prefixes if prefix not in EVERYWHERE}
        if room not in ("cli", "cli.commands"):
            shared = {"cli"} if room.startswith("cli.") else set()  # the modules of OF_CLI
            assert named <= before | shared, room
        before.add(room)


def test_no_modules_import_one_another() -> None:
    assert _cycles(_graph()) == []


def test_every_room_has_a_rule() -> None:
    assert {_room(_module_name(path)) for path in _sources()} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("overlayfs.tree.marks", "from overlayfs.overlay import merge"),
        ("overlayfs.tree.marks", "from ..overlay.merge import visible"),
        ("overlayfs.overlay.engine", "import overlayfs.fuse.session"),
        ("overlayfs.overlay.engine", "from overlayfs import mount"),
        ("overlayfs.fuse.session", "def late():\n    from overlayfs.cli import main"),
        ("overlayfs.image.layer.pack", "from overlayfs.overlay.engine import Overlay"),
        ("overlayfs.image.layer.pack", "from overlayfs.fuse import session"),
        ("overlayfs.image.layer.unpack", "from ..store.store import Store"),
        ("overlayfs.image.oci.documents", "from ..tar import reader"),
        ("overlayfs.image.registry.transfer", "from ..archive.load import load"),
        ("overlayfs.image.inspect.report", "from ..registry.transfer import pull"),
        ("overlayfs.image.store.store", "from ...container.containers import Containers"),
        ("overlayfs.fuse.handlers", "from overlayfs.image import store"),
        ("overlayfs.container.runtime", "from overlayfs.snapshotter.snapshots import Snapshots"),
        ("overlayfs.snapshotter.snapshots", "from ..overlay.engine import Overlay"),
        ("overlayfs.cli.mounts.mount", "from overlayfs.cli.container.run import run"),
        ("overlayfs", "import overlayfs.cli"),
        ("overlayfs", "from overlayfs.cli.main import main"),
    ],
)
def test_import_of_a_room_above_is_noticed(importer: str, source: str) -> None:
    assert not all(_is_allowed(importer, name) for name in _imported(source, importer))


CYTHON = """
cimport overlayfs.fuse.messages, cython
from cpython.bytes cimport PyBytes_AsString
from overlayfs.fuse.messages cimport *  # from overlayfs.cli import main
from overlayfs.fuse cimport messages
from . import abi
from ..overlay.inodes cimport (
    Handle,
    Inode as Node,
)
cdef extern from "linux/fuse.h":
    int FUSE_ROOT_ID

def late():
    import overlayfs.overlay.copyup as copyup
"""


def test_imports_of_cython_are_read() -> None:
    assert set(_imported(CYTHON, "overlayfs.fuse.lane", is_cython=True)) == {
        "overlayfs.fuse.messages",
        "overlayfs.fuse.abi",
        "overlayfs.overlay.inodes",
        "overlayfs.overlay.copyup",
    }


@pytest.mark.parametrize(
    ("sources", "cycles"),
    [
        ({"a.py": "from .b import x", "b.py": "def late():\n    from . import a"}, [{"a", "b"}]),
        (
            {
                "a.py": "from . import b",
                "b.py": "if CHECKING:\n    from . import c",
                "c.py": "from .a import x",
            },
            [{"a", "b", "c"}],
        ),
        ({"a.pyx": "from overlayfs.b cimport x", "b.pxd": "", "b.pyx": "from overlayfs.a import y"}, [{"a", "b"}]),
        ({"a.pyx": "", "a.pxd": "from overlayfs.b cimport x", "b.py": "import overlayfs.a"}, [{"a", "b"}]),
        ({"a.py": "from . import b, c", "b.py": "from . import d", "c.py": "from . import d", "d.py": ""}, []),
        (
            {
                "a.py": "from . import b",
                "b.py": "from . import a, c",
                "c.py": "from . import d",
                "d.py": "from . import c",
            },
            [{"a", "b"}, {"c", "d"}],
        ),
    ],
)
def test_modules_that_import_one_another_are_noticed(
    sources: dict[str, str], cycles: list[set[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "overlayfs").mkdir()
    for name, source in sources.items():
        (tmp_path / "overlayfs" / name).write_text(source)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "overlayfs")
    found = [{module.removeprefix("overlayfs.") for module in group} for group in _cycles(_graph())]
    assert sorted(found, key=sorted) == cycles


def test_mount_program_starts_without_what_is_only_for_people() -> None:
    code = "import sys, overlayfs.cli.mount_program; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    roots = {name.split(".")[0] for name in loaded.split()}
    assert roots.isdisjoint(FOR_PEOPLE)
