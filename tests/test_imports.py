"""Which module may import which: the floors of the package, read from the sources with ast."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "overlayfs"

# For each floor what its modules may import, as prefixes of module names; its own modules always.
# The package itself stands above fuse: its __init__ offers mount() to programs.
MAY_IMPORT = {
    "tree": ("overlayfs._version",),
    "overlay": ("overlayfs._version", "overlayfs.tree"),
    "image": (
        "overlayfs._version",
        "overlayfs.tree",
        *(f"overlayfs.overlay.{module}" for module in ("changes", "layer", "ownership", "view")),
    ),
    "fuse": ("overlayfs._version", "overlayfs.tree", "overlayfs.overlay"),
    "": ("overlayfs._version", "overlayfs.tree", "overlayfs.overlay", "overlayfs.image", "overlayfs.fuse"),
    "cli": ("overlayfs",),
}
# Suffixes of Cython's sources, whose imports are read as Python's.
COMPILED = (".pyx", ".pxd")
_IMPORT_IN_CYTHON = re.compile(r"^[ ]*(?:from\s+\S+\s+)?c?import\s+(?:\([^)]*\)|.*)$", re.MULTILINE)
# Only for people: slow to import, so the mount program must start without them.
FOR_PEOPLE = ("pygments", "rich", "typer")


def _sources() -> list[Path]:
    return sorted(path for suffix in (".py", *COMPILED) for path in PACKAGE.rglob(f"*{suffix}"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _floor(module: str) -> str:
    """The subpackage a module is in; empty for the modules of the package itself, but its program is the cli's."""
    parts = module.split(".")
    if parts[-1] == "__main__":
        return "cli"
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The module named by a `from` import, relative ones resolved as Python does."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyx"))


def _imported(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Every module of ours that the source imports, wherever the import stands: late and typing ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package=is_package)
            names = [f"{base}.{alias.name}" for alias in node.names]
            # `from package import name`: a submodule, or something the package defines
            names = [name if _is_module(name) else base for name in names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "overlayfs")


def _cython_imports(source: str) -> str:
    """The imports of a compiled module as a program in Python."""
    found = (match.group().strip() for match in _IMPORT_IN_CYTHON.finditer(source))
    return "\n".join(re.sub(r"\bcimport\b", "import", line) for line in found)


def _is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def _is_allowed(importer: str, imported: str) -> bool:
    floor = _floor(importer)
    if _floor(imported) == floor:
        return True
    return any(_is_within(imported, prefix) for prefix in MAY_IMPORT[floor])


@pytest.mark.parametrize("path", _sources(), ids=_module_name)
def test_module_imports_only_floors_below(path: Path) -> None:
    module = _module_name(path)
    source = _cython_imports(path.read_text()) if path.suffix in COMPILED else path.read_text()
    imported = set(_imported(source, module, is_package=path.name == "__init__.py"))
    assert [name for name in sorted(imported) if not _is_allowed(module, name)] == []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("overlayfs.tree.marks", "from overlayfs.overlay import merge"),
        ("overlayfs.tree.marks", "from ..overlay.merge import visible"),
        ("overlayfs.overlay.engine", "import overlayfs.fuse.session"),
        ("overlayfs.overlay.engine", "from overlayfs import mount"),
        ("overlayfs.fuse.session", "def late():\n    from overlayfs.cli import main"),
        ("overlayfs.image.diff", "from overlayfs.overlay.engine import Overlay"),
        ("overlayfs.image.diff", "from overlayfs.fuse import session"),
        ("overlayfs.fuse.handlers", "from overlayfs.image import store"),
        ("overlayfs", "from overlayfs.cli.main import main"),
    ],
)
def test_import_of_a_floor_above_is_noticed(
    importer: str, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A package with every floor, for floors that are not built yet.
    for floor in filter(None, MAY_IMPORT):
        (tmp_path / "overlayfs" / floor).mkdir(parents=True)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "overlayfs")
    assert not all(_is_allowed(importer, name) for name in _imported(source, importer))


def test_imports_of_a_compiled_module_are_noticed() -> None:
    source = """cimport cython
from libc.errno cimport errno
from ..overlay.merge cimport (
    visible,
    merge as put_together,
)

def late(int fd):
    from overlayfs.fuse import session
"""
    found = set(_imported(_cython_imports(source), "overlayfs.tree.access"))
    assert found == {"overlayfs.overlay.merge", "overlayfs.fuse.session"}


def test_every_floor_has_a_rule() -> None:
    assert {_floor(_module_name(path)) for path in _sources()} <= set(MAY_IMPORT)


def test_mount_program_starts_without_what_is_only_for_people() -> None:
    code = "import sys, overlayfs.cli.mount_program; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    roots = {name.split(".")[0] for name in loaded.split()}
    assert roots.isdisjoint(FOR_PEOPLE)
