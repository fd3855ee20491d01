"""--chmod by letters does what chmod(1) does."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from overlayfs.build.files.modes import parse_mode
from overlayfs.image.oci.errors import InvalidError

MODES = (0o000, 0o644, 0o750, 0o1777, 0o640, 0o711)


@pytest.mark.parametrize(
    "text",
    [
        "u=rwX,go=rX",
        "+x",
        "a-x",
        "go=",
        "u+s,g+s",
        "+t",
        "g=u",
        "o+g",
        "u=rw,g-w+x",
        "a+X",
        "ug+rw-x",
        "=r",
        "755",
        "u=g",
    ],
)
def test_letters(tmp_path: Path, text: str) -> None:
    paths = [(tmp_path / f"{kind}{mode:o}", mode, kind == "d") for mode in MODES for kind in "fd"]
    for path, mode, is_directory in paths:
        path.mkdir() if is_directory else path.touch()
        path.chmod(mode)
    subprocess.run(["chmod", "--", text, *(path for path, _, _ in paths)], check=True, umask=0)
    change = parse_mode(text)
    found = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path, _, _ in paths}
    assert {path.name: oct(change(mode, is_directory)) for path, mode, is_directory in paths} == found


@pytest.mark.parametrize("text", ["", "8", "77777", "u", "z+x", "u+x,", "+rwz", "u=rwx go=r"])
def test_what_is_no_mode(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_mode(text)
