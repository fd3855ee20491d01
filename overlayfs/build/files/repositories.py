"""How does a git repository become files? By git(1), with its submodules, of one commit.

The repository may be anybody's: its submodules are never files of the host (git-config(1), protocol.file.allow),
whatever git is told elsewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from ...image.oci.errors import ImageError, InvalidError
from ...image.store.staging import remove_tree

_GIT: Final = re.compile(r"git@|git://|ssh://|https?://[^#]*\.git(?:#|$)")
_GITHUB: Final = "github.com/"
_COMMIT: Final = re.compile(r"[0-9a-f]{7,64}")
_BRANCHES: Final = "+refs/heads/*:refs/remotes/origin/*"
_QUIET_GIT: Final = {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1"}
_OF_ANOTHER: Final = frozenset(
    {
        *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE"),
        *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH", "GIT_SHALLOW_FILE", "GIT_ALLOW_PROTOCOL"),
    }
)
"""Variables that git sets for hooks, and that mean a repository of the caller; and what allows more protocols."""
_NO_FILES: Final = ("-c", "protocol.file.allow=user")


def is_git(text: str) -> bool:
    """Whether the text names a git repository elsewhere, as docker tells."""
    return _GIT.match(text) is not None


def repository_of(context: str) -> str | None:
    """The repository that a context on the command line names, None if it names none. Besides what `is_git` tells it is
    `github.com/…`, `file://…` or `DIRECTORY#REF`, which no Dockerfile may name."""
    if Path(context).exists():
        return None
    if context.startswith(_GITHUB):
        return f"https://{context}"
    url, mark, rest = context.partition("#")
    if mark and Path(url).is_dir():
        return f"{Path(url).absolute()}#{rest}"
    return context if is_git(context) or context.startswith("file://") else None


def clone(source: str, directory: Path, *, keeps_git: bool = False, commit: str = "") -> Path:
    """Clone `URL[#REF[:SUBDIRECTORY]]` into an empty directory; where the subdirectory is. It must be the commit whose
    ID begins like this. Raises ImageError."""
    url, _, rest = source.partition("#")
    reference, _, inner = rest.partition(":")
    if url.startswith("-") or reference.startswith("-"):
        raise InvalidError(f"{source!r} is no repository")
    _git("init", "--quiet", directory)
    _git("-C", directory, "remote", "add", "origin", url)  # submodules may be relative to it
    found = _fetched(directory, reference or "HEAD")
    if not found.startswith(commit.lower()):
        raise ImageError(f"{source} is another commit: {found} instead of {commit}")
    _git("-C", directory, "checkout", "--quiet", found)
    if (directory / ".gitmodules").exists():
        _shallow(directory, *_NO_FILES, "submodule", "--quiet", "update", "--init", "--recursive")
    if not keeps_git:
        _forget(directory)
    place = (directory / inner.lstrip("/")).resolve()
    if not place.is_relative_to(directory.resolve()) or not place.is_dir():
        raise InvalidError(f"{inner!r} is no directory of the repository")
    return place


def _fetched(directory: Path, reference: str) -> str:
    """Fetch a branch, a tag or a commit; the ID of the commit."""
    try:
        _shallow(directory, "fetch", "--quiet", "origin", reference)
    except ImageError:
        if not _COMMIT.fullmatch(reference):
            raise
        _git("-C", directory, "fetch", "--quiet", "--tags", "origin", _BRANCHES)  # servers give out no other commits
        return _git("-C", directory, "rev-parse", "--verify", f"{reference}^{{commit}}")
    return _git("-C", directory, "rev-parse", "--verify", "FETCH_HEAD^{commit}")


def _shallow(directory: Path, *words: str) -> None:
    try:
        _git("-C", directory, *words, "--depth=1")
    except ImageError:  # a server of plain files has whole histories only
        _git("-C", directory, *words)


def _forget(directory: Path) -> None:
    """Remove what git keeps; the `.git` of a submodule is a file."""
    remove_tree(directory / ".git")
    for above, _, names in os.walk(directory):
        if ".git" in names:
            os.unlink(os.path.join(above, ".git"))


def _git(*words: str | Path) -> str:
    """What git says. New files have the modes that docker gives them."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER}
    try:
        done = subprocess.run(
            ["git", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**kept, **_QUIET_GIT},
            umask=0o022,
            check=False,
        )
    except FileNotFoundError:
        raise ImageError("git is not installed") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        reasons = [line for line in lines if line.startswith(("fatal: ", "error: "))]
        raise ImageError(f"git: {(reasons or lines[-1:])[0]}")
    return done.stdout.strip()
