"""The freezer of a container's cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlayfs.container.live import freezer
from overlayfs.container.spec.fields import CGROUPS

_PATHS = (b"/a\x1cb", b"/\xff", "/\u2028".encode(), b"/a:b\r")


@pytest.mark.parametrize("path", _PATHS)
def test_switch_is_found_whatever_the_name_of_the_cgroup(path: bytes) -> None:
    inner = os.fsdecode(path[1:])
    assert freezer._switch_in(b"0::" + path + b"\n") == CGROUPS / inner / "cgroup.freeze"
    lines = b"9:freezer,cpu:" + path + b"\n1:name=systemd:/\n0::/\n"
    assert freezer._switch_in(lines) == CGROUPS / "freezer" / inner / "freezer.state"


def test_program_whose_cgroup_goes_need_not_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "cgroup.freeze"
    monkeypatch.setattr(freezer, "_switch_of", lambda _: switch)
    freezer.resume(1)
    switch.symlink_to("/proc/version")  # it can be read, but not written
    freezer.resume(1)
