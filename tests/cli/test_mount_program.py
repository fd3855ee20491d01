"""`overlayfs-mount` up to the moment it mounts: both command lines, what it asks of FUSE, what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from overlayfs._version import __version__
from overlayfs.cli import mount_program
from overlayfs.cli.mounts import mount as mounting
from overlayfs.fuse import session
from overlayfs.overlay.mount_flags import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY
from overlayfs.overlay.options import FsyncPolicy, MountError, OverlayOptions

UNPRIVILEGED = MS_NOSUID | MS_NODEV


@dataclass
class Served:
    """What the program handed to the session, in place of a mount."""

    overlay: list[OverlayOptions] = field(default_factory=list)
    mount: list[session.MountOptions] = field(default_factory=list)
    foreground: list[bool] = field(default_factory=list)
    failure: Exception | None = None

    def background(self, overlay: OverlayOptions, mount: session.MountOptions) -> None:
        self._serve(overlay, mount, foreground=False)

    def in_foreground(self, overlay: OverlayOptions, mount: session.MountOptions) -> None:
        self._serve(overlay, mount, foreground=True)

    def _serve(self, overlay: OverlayOptions, mount: session.MountOptions, *, foreground: bool) -> None:
        if self.failure:
            raise self.failure
        self.overlay.append(overlay)
        self.mount.append(mount)
        self.foreground.append(foreground)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    record = Served()
    monkeypatch.setattr(session, "serve_in_background", record.background)
    monkeypatch.setattr(session, "serve_in_foreground", record.in_foreground)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return record


@pytest.fixture
def ordinary_user(monkeypatch: pytest.MonkeyPatch, served: Served) -> Served:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return served


LAYERS = "lowerdir=/a:/b,upperdir=/u,workdir=/w"

COMMAND_LINES = {
    "engine": ["-o", LAYERS, "/mnt"],
    "options glued on": [f"-o{LAYERS}", "/mnt"],
    "several -o": ["-o", "lowerdir=/a:/b", "-o", ",,", "-o", "upperdir=/u,workdir=/w", "/mnt"],
    "target first": ["/mnt", "-o", LAYERS],
    "after dashes": ["-o", LAYERS, "--", "/mnt"],
}
SOURCED = {
    "mount(8)": ["images", "/mnt", "-o", f"{LAYERS},dev,suid"],
    "options first": ["-o", LAYERS, "images", "/mnt"],
    "options between": ["images", "-o", LAYERS, "/mnt"],
    "after dashes": ["-o", LAYERS, "--", "images", "/mnt"],
}


@pytest.mark.parametrize("name", COMMAND_LINES)
@pytest.mark.parametrize("posixly_correct", [False, True])
def test_command_line_of_engines(
    name: str,
    posixly_correct: bool,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if posixly_correct:
        monkeypatch.setenv("POSIXLY_CORRECT", "1")
    assert mount_program.main(COMMAND_LINES[name]) == 0
    assert served.overlay == [OverlayOptions((b"/a", b"/b"), upper=b"/u", work=b"/w")]
    assert served.mount == [session.MountOptions(mountpoint=b"/mnt", fuse_options=("allow_other",))]
    assert served.foreground == [False]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", SOURCED)
def test_command_line_of_mount(name: str, served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    assert mount_program.main(SOURCED[name]) == 0
    assert served.mount == [session.MountOptions(mountpoint=b"/mnt", source="images", fuse_options=("allow_other",))]
    assert capfd.readouterr() == ("", "")


def test_names_given_as_options_win(served: Served) -> None:
    assert mount_program.main(["src", "/mnt", "-o", f"{LAYERS},fsname=shown,subtype=image"]) == 0
    assert (served.mount[0].source, served.mount[0].subtype) == ("shown", "image")


@pytest.mark.parametrize(
    ("flags", "foreground", "debug"),
    [([], False, False), (["-f"], True, False), (["-d"], True, True), (["--debug"], True, True)],
)
def test_foreground_and_debug(flags: list[str], foreground: bool, debug: bool, served: Served) -> None:
    assert mount_program.main([*flags, "-o", LAYERS, "/mnt"]) == 0
    assert (served.foreground, served.mount[0].debug) == ([foreground], debug)


ROOTS = [
    ("", 0, ("allow_other",)),
    ("dev,suid", 0, ("allow_other",)),
    ("nosuid", MS_NOSUID, ("allow_other",)),
    ("nodev,noexec", MS_NODEV | MS_NOEXEC, ("allow_other",)),
    ("allow_other", 0, ("allow_other",)),
    ("allow_root", 0, ("allow_root",)),
    ("ro,max_read=4096", MS_RDONLY, ("max_read=4096", "allow_other")),
]
USERS = [
    ("", UNPRIVILEGED, ()),
    ("dev,suid", UNPRIVILEGED, ()),
    ("noexec", UNPRIVILEGED | MS_NOEXEC, ()),
    ("allow_other", UNPRIVILEGED, ("allow_other",)),
    ("auto_unmount", UNPRIVILEGED, ("auto_unmount",)),
]


@pytest.mark.parametrize(("text", "flags", "fuse"), ROOTS)
def test_root_s_mount_serves_everyone(text: str, flags: int, fuse: tuple[str, ...], served: Served) -> None:
    assert mount_program.main(["-o", f"{LAYERS},{text}", "/mnt"]) == 0
    assert (served.mount[0].flags, served.mount[0].fuse_options) == (flags, fuse)


@pytest.mark.parametrize(("text", "flags", "fuse"), USERS)
def test_user_s_mount_honours_no_setuid_file_and_no_device(
    text: str, flags: int, fuse: tuple[str, ...], ordinary_user: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    assert mount_program.main(["-o", f"{LAYERS},{text}", "/mnt"]) == 0
    assert (ordinary_user.mount[0].flags, ordinary_user.mount[0].fuse_options) == (flags, fuse)
    assert capfd.readouterr() == ("", "")


def test_mount_without_upper_is_read_only(served: Served) -> None:
    assert mount_program.main(["-o", "lowerdir=/a", "/mnt"]) == 0
    assert (served.overlay[0].read_only, served.mount[0].flags) == (True, MS_RDONLY)


def test_relative_paths_are_of_the_current_directory(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "l").symlink_to("layer")
    (tmp_path / "target").mkdir()
    (tmp_path / "m").symlink_to("target")
    monkeypatch.chdir(tmp_path)
    assert mount_program.main(["-o", "lowerdir=l", "m"]) == 0
    base = os.fsencode(tmp_path.resolve())
    assert (served.overlay[0].lowers, served.mount[0].mountpoint) == ((base + b"/layer",), base + b"/target")


def test_a_current_directory_that_is_gone_is_no_obstacle_to_absolute_paths(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert mount_program.main(["-o", "lowerdir=/a", "/mnt"]) == 0
    assert mount_program.main(["-o", "lowerdir=a", "/mnt"]) == 1
    assert capfd.readouterr().err == "overlayfs-mount: the current directory is gone\n"


def test_names_that_are_not_text_reach_the_session(served: Served) -> None:
    assert mount_program.main(["-o", "lowerdir=/\udcff", "/m\udcfe"]) == 0
    assert (served.overlay[0].lowers, served.mount[0].mountpoint) == ((b"/\xff",), b"/m\xfe")


def test_options_of_podman_s_new_container_say_nothing(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    text = "lowerdir=/l/A:/l/B,upperdir=/ID/diff,workdir=/ID/w,,volatile,private"
    assert mount_program.main(["-o", text, "/ID/merged"]) == 0
    assert served.overlay[0].fsync is FsyncPolicy.VOLATILE
    assert capfd.readouterr() == ("", "")


def test_each_unknown_option_is_one_line_of_warning(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    assert mount_program.main(["-o", f"{LAYERS},foo=1,private", "-o", "bar", "/mnt"]) == 0
    assert len(served.overlay) == 1
    assert capfd.readouterr() == (
        "",
        "overlayfs-mount: unknown option ignored: foo=1\noverlayfs-mount: unknown option ignored: bar\n",
    )


FAILURES: list[tuple[Exception, str]] = [
    (MountError("/w: not a directory"), "/w: not a directory"),
    (FileNotFoundError(2, "No such file or directory", b"/mnt"), "/mnt: No such file or directory"),
    (OSError("odd"), "odd"),
    (
        ModuleNotFoundError("No module named 'pyfuse3'"),
        "a part of the program is missing: No module named 'pyfuse3'",
    ),
]


@pytest.mark.parametrize(("failure", "line"), FAILURES)
def test_failure_is_one_line_and_status_1(
    failure: Exception, line: str, served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    served.failure = failure
    assert mount_program.main(["-o", LAYERS, "/mnt"]) == 1
    assert capfd.readouterr() == ("", f"overlayfs-mount: {line}\n")


USAGE_ERRORS: list[tuple[list[str], str]] = [
    ([], "one mountpoint is needed"),
    (["-o", LAYERS], "one mountpoint is needed"),
    (["-o", LAYERS, "a", "b", "c"], "one mountpoint is needed"),
    (["/mnt", "-o"], "option -o requires argument"),
    (["-q", "/mnt"], "option -q not recognized"),
    (["--nosuch", "/mnt"], "option --nosuch not recognized"),
    (["--=", "/mnt"], "option -- not a unique prefix"),
    (["-fdq", "/mnt"], "option -q not recognized"),
    (["--debug=1", "/mnt"], "option --debug must not have an argument"),
]


@pytest.mark.parametrize(("arguments", "reason"), USAGE_ERRORS)
def test_usage_error_is_one_line_and_status_1(
    arguments: list[str], reason: str, served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    assert mount_program.main(arguments) == 1
    output = capfd.readouterr()
    assert output.err.startswith(f"overlayfs-mount: {reason}")
    assert output.err.endswith("(see overlayfs-mount --help)\n")
    assert (output.err.count("\n"), output.out, served.overlay) == (1, "", [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["-fo", "lowerdir=/a", "/mnt"],
        ["-folowerdir=/a", "--", "/mnt"],
        ["/mnt", "-f", "-olowerdir=/a"],
    ],
)
def test_options_of_one_letter_may_stand_together(arguments: list[str]) -> None:
    line = mount_program.read_command_line(arguments)
    assert (line.option_texts, line.positionals, line.foreground) == (["lowerdir=/a"], ["/mnt"], True)


def test_long_option_may_be_shortened_and_dashes_end_them() -> None:
    line = mount_program.read_command_line(["--deb", "-", "-o", "--", "--", "-f"])
    assert (line.debug, line.foreground) == (True, False)
    assert (line.option_texts, line.positionals) == (["--"], ["-", "-f"])


BAD_OPTIONS = [
    "",
    "lowerdir=",
    "upperdir=/u",
    "lowerdir=/a,upperdir=/u",
    f"{LAYERS},index=maybe",
    f'{LAYERS},x,timeout="1',
]


@pytest.mark.parametrize("text", BAD_OPTIONS)
def test_bad_option_is_one_line_and_status_1(text: str, served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    assert mount_program.main(["-o", text, "/mnt"]) == 1
    output = capfd.readouterr()
    assert re.fullmatch(r"overlayfs-mount: [^\n]+\n", output.err)
    assert (output.out, served.overlay) == ("", [])


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The program in its own process; mount(8) leaves it no PATH."""
    command = [sys.executable, "-m", "overlayfs.cli.mount_program", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version_comes_first_then_those_of_libfuse_and_its_protocol(flag: str) -> None:
    done = run(flag)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"overlayfs-mount: version {__version__}"
    assert re.fullmatch(r"FUSE library version 3\.\d+\.\d+", lines[1])
    assert re.fullmatch(r"using FUSE kernel interface version 7\.\d+", lines[2])


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_shows_both_command_lines(flag: str) -> None:
    done = run(flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert "overlayfs-mount [-f] [-d] -o OPTIONS TARGET\n" in done.stdout
    assert "overlayfs-mount SOURCE TARGET -o OPTIONS\n" in done.stdout


def test_what_needs_no_mount_loads_no_fuse() -> None:
    script = (
        "import sys; from overlayfs.cli.mount_program import main;"
        "main(['-h']); main(['-V']); main([]); main(['-o', 'index=x', '/mnt']);"
        "print({'pyfuse3', 'trio', 'rich', 'typer', 'xxhash'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


# The same options by their names for people.


@pytest.mark.parametrize(
    ("arguments", "lane", "poll_us"),
    [
        ({}, True, session.MountOptions(b"").poll_us),
        ({"lane": False}, False, session.MountOptions(b"").poll_us),
        ({"poll_us": 0}, True, 0),
        ({"options": ("lane=on,poll=5",), "lane": False, "poll_us": 250}, False, 250),
    ],
)
def test_lane_and_poll_of_the_command_reach_the_session(
    served: Served, arguments: dict[str, Any], lane: bool, poll_us: int
) -> None:
    mounting.mount(mounting.Request(words=("/mnt",), lowers=("/a",), **arguments))
    assert [(mount.lane, mount.poll_us) for mount in served.mount] == [(lane, poll_us)]
