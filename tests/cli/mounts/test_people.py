"""`overlayfs` without a mount: help, usage, errors, `check`, `diff` of an upper that lies there."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from overlayfs._version import __version__
from overlayfs.cli.mounts.live import NotAnswering, in_time
from overlayfs.cli.output import format_duration, format_size, printable
from tests.cli.people import COMMAND, answer, run
from tests.contract.tree import (
    TRUSTED,
    Tree,
    build,
    char,
    directory,
    file,
    opaque_dir,
    symlink,
    whiteout,
)

SUBCOMMANDS = ("mount", "umount", "mounts", "layers", "stats", "which", "diff", "check")


def make(top: Path, **trees: Tree) -> dict[str, Path]:
    for name, tree in trees.items():
        build(os.fsencode(top / name), {"": directory(), **tree})
    return {name: top / name for name in trees}


def on_a_terminal(*arguments: str | os.PathLike[str]) -> str:
    """What a person sees who runs the command on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    environ.pop("NO_COLOR", None)
    process = subprocess.Popen([*COMMAND, *arguments], stdout=theirs, stderr=theirs, stdin=theirs, env=environ)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # EIO: the other end is closed
        pass
    finally:
        os.close(ours)
        process.wait()
    return shown.decode()


def test_help_fits_one_screen() -> None:
    shown = run("--help", environ={"COLUMNS": "80"}).stdout
    assert len(shown.splitlines()) <= 24
    assert max(map(len, shown.splitlines())) <= 80
    listed = shown.partition("Commands:")[2].replace(",", " ").split()
    assert set(SUBCOMMANDS) <= set(listed)


@pytest.mark.parametrize("group", [(), ("volume",)])
def test_no_arguments_show_the_help(group: tuple[str, ...]) -> None:
    assert run(*group).stdout == run(*group, "--help").stdout


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_help_of_every_command(command: str) -> None:
    assert f"overlayfs {command}" in run(command, "--help").stdout


@pytest.mark.parametrize("command", ["mount", "umount", "stats", "which", "diff", "check"])
def test_exit_statuses_are_documented(command: str) -> None:
    assert "Exit status: 0" in run(command, "--help").stdout


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option: str) -> None:
    assert run(option).stdout == f"overlayfs {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mounted",), "No such command 'mounted'. Did you mean"),
        (("mount",), "Missing argument"),
        (("mount", "--lower"), "--lower"),
        (("mount", "--no-such-option", "."), "--no-such-option"),
        (("mount", "/"), "at least one --lower is needed"),
        (("mount", "-o", "fsname=lowerdir", "/"), "at least one --lower is needed"),
        (("mount", "--lower", "/", "--upper", "/", "/"), "--upper and --work belong together"),
        (("mount", "--lower", "/", "--ephemeral", "--read-only", "/"), "--ephemeral excludes"),
        (("mount", "--lower", "/", "--poll", "10001", "/"), "--poll"),
        (("diff", "--stat", "--patch", "/"), "exclude each other"),
        (("stats", "--json", "--watch", "1", "/"), "exclude each other"),
        (("stats", "--watch", "0", "/"), "--watch"),
        (("which",), "Missing argument"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments, status=2)
    assert done.stdout == ""
    assert re.fullmatch(r"overlayfs: [^\n]*\n", done.stderr)
    assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("umount", "{top}"), "nothing is mounted here"),
        (("umount", "/proc"), "not an overlayfs mount but proc"),
        (("layers", "{top}"), "no overlayfs is mounted here"),
        (("stats", "{top}"), "no overlayfs is mounted here"),
        (("which", "{top}/x"), "not in an overlayfs mount"),
        (("diff", "{top}/absent"), "not a directory"),
        (("diff", "--lower", "{top}/absent", "{top}"), "absent: No such file or directory"),
        (("check", "{top}/absent", "{top}"), "absent: not a directory"),
        (("mount", "--lower", "{top}/absent", "{top}"), "absent does not exist"),
        (("mount", "--lower", "{top}/l", "-o", "redirect_dir=perhaps", "{top}/m"), "redirect_dir=perhaps"),
        (("mount", "--lower", "{top}/l", "{top}/absent"), "absent does not exist"),
    ],
)
def test_error_is_one_line_and_status_1(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    make(tmp_path, l={}, m={})
    done = run(*(argument.format(top=tmp_path) for argument in arguments), status=1)
    assert done.stdout == ""
    assert re.fullmatch(r"overlayfs: [^\n]*\n", done.stderr)
    assert said in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_offered(shell: str) -> None:
    environ = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = run("--show-completion", shell, environ=environ).stdout
    assert "_OVERLAYFS_COMPLETE" in script


def test_completion_knows_the_commands() -> None:
    environ = {"_OVERLAYFS_COMPLETE": "complete_bash", "COMP_WORDS": "overlayfs mou", "COMP_CWORD": "1"}
    assert run(environ=environ).stdout.split() == ["mount", "mounts"]


def test_reader_that_had_enough_is_no_error(tmp_path: Path) -> None:
    make(tmp_path, upper={f"file-{number:05}" * 10: file() for number in range(2000)})
    command = " ".join(COMMAND) + f" diff {tmp_path}/upper"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -n1"], capture_output=True, text=True, check=False
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.parametrize(
    "arguments", [("which", "x"), ("diff", "x"), ("umount", "x"), ("mount", "--lower", "/", "x"), ("layers", "x")]
)
def test_current_directory_that_is_gone_is_named(arguments: tuple[str, ...], tmp_path: Path) -> None:
    command = f"cd {tmp_path}; rmdir {tmp_path}; exec {' '.join([*COMMAND, *arguments])}"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stderr) == (1, "overlayfs: the current directory is gone\n")


@pytest.mark.parametrize("arguments", ["mounts", "mounts --json", "diff --patch /proc/self/ns", "--help"])
def test_closed_standard_output_is_no_bug(arguments: str) -> None:
    command = " ".join(COMMAND) + f" {arguments} >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# -- diff of an upper


LOWER: Tree = {"kept": file(b"1\n"), "text": file(b"a\nb\n"), "gone": file(b"x\n"), "d/f": file()}
UPPER: Tree = {"text": file(b"a\nc\n"), "gone": whiteout(), "new dir/f": file(b"no end"), "l": symlink("t")}


def test_diff_lists_what_changed(tmp_path: Path) -> None:
    made = make(tmp_path, lower=LOWER, upper=UPPER)
    shown = run("diff", made["upper"], "--lower", made["lower"]).stdout
    assert shown == "D /gone\nA /l\nA /new dir/\nA /new dir/f\nM /text\n"


def test_diff_without_lowers_tells_what_the_upper_knows(tmp_path: Path) -> None:
    made = make(tmp_path, upper=UPPER)
    shown = run("diff", made["upper"]).stdout
    assert shown == "D /gone\nA /l\nA /new dir/\nA /new dir/f\nA /text\n"


def test_diff_leaves_out_directories_with_new_times_only_unless_asked(tmp_path: Path) -> None:
    made = make(tmp_path, lower={"d": directory(mtime=1)}, upper={"d": directory(mtime=2), "d/x": file()})
    arguments = ("diff", made["upper"], "--lower", made["lower"])
    assert run(*arguments).stdout == "A /d/x\n"
    assert run(*arguments, "--all").stdout == "M /d/\nA /d/x\n"


def test_diff_stat_sums_up(tmp_path: Path) -> None:
    made = make(tmp_path, lower={"a": file(b"1" * 2048), "b": file(b"1")}, upper={"a": file(), "b": whiteout()})
    assert run("diff", "--stat", made["upper"], "--lower", made["lower"]).stdout.splitlines() == [
        "M /a  2.0 KiB → 0 B (content)",
        "D /b  1 B",
        "0 added, 1 modified, 1 deleted, -2.0 KiB in files",
    ]


def test_diff_json_has_both_versions(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff")
    made = make(tmp_path, lower={name: file(b"1", 0o644)}, upper={name: file(b"12", 0o600, uid=7)})
    (change,) = answer("diff", made["upper"], "--lower", made["lower"])
    assert (change["path"], change["kind"]) == ("/" + name, "modified")
    assert change["aspects"] == ["content", "mode", "owner"]
    assert (change["before"]["mode"], change["after"]["mode"]) == ("100644", "100600")
    assert (change["before"]["uid"], change["after"]["uid"]) == (0, 7)


def test_diff_reports_an_unreadable_redirect(tmp_path: Path) -> None:
    upper: Tree = {"d": directory(xattrs={TRUSTED + "redirect": b"../.."})}
    made = make(tmp_path, lower=LOWER, upper=upper)
    assert "malformed redirect" in run("diff", made["upper"], "--lower", made["lower"], status=1).stderr


PATCHED: Tree = {
    "kept": file(b"kept\n"),
    "changed": file(b"".join(b"%d\n" % n for n in range(100))),
    "gone": file(b"1\n2\n"),
    "no end": file(b"x"),
    "exec": file(b"#!/bin/sh\n"),
    "link": symlink("old"),
    "becomes a link": file(b"was a file\n"),
    'd/ä "quoted"\t': file(b"1\n"),
    "minus": file(b"-- x\n"),
}
PATCH: Tree = {
    "changed": file(b"".join(b"%d\n" % n for n in range(100) if n != 50) + b"more\n"),
    "gone": whiteout(),
    "no end": file(b"y"),
    "exec": file(b"#!/bin/sh\n", 0o755),
    "link": symlink("new"),
    "becomes a link": symlink("elsewhere"),
    'd/ä "quoted"\t': file(b"2\n"),
    "new/file": file(b"new\n"),
    "empty": file(),
    "latin": file(b"caf\xe9\r\n"),
    "minus": file(b"-- y\n++ z\n"),
}


def test_patch_makes_the_lower_into_the_merged_tree(tmp_path: Path) -> None:
    made = make(tmp_path, lower=PATCHED, upper=PATCH)
    patch = tmp_path / "patch"
    with patch.open("wb") as stream:
        arguments = ("diff", "--patch", made["upper"], "--lower", made["lower"])
        subprocess.run([*COMMAND, *arguments], stdout=stream, check=True)
    subprocess.run(
        ["git", "apply", "--whitespace=nowarn", patch],
        cwd=made["lower"],
        check=True,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)},
    )
    expected = {**PATCHED, **PATCH}
    del expected["gone"]
    for path, node in expected.items():
        real = made["lower"] / path
        content = os.fsencode(os.readlink(real)) if real.is_symlink() else real.read_bytes()
        assert (path, content) == (path, node.data)
        assert real.is_symlink() == (node.mode == 0o777)
    assert os.access(made["lower"] / "exec", os.X_OK)
    assert not (made["lower"] / "gone").exists()


def test_patch_deletes_the_files_of_directories_that_went(tmp_path: Path) -> None:
    lower: Tree = {"gone/a": file(b"1\n"), "gone/deep/b": file(b"2\n"), "r/x": symlink("t"), "kept/f": file(b"3\n")}
    made = make(tmp_path, lower=lower, upper={"gone": whiteout(), "r": file(b"a file now\n")})
    shown = run("diff", "--patch", made["upper"], "--lower", made["lower"]).stdout
    headers = [line for line in shown.splitlines() if line.startswith("diff ")]
    assert headers == [f"diff --git a/{path} b/{path}" for path in ("gone/a", "gone/deep/b", "r/x", "r")]
    subprocess.run(
        ["git", "apply"],
        cwd=made["lower"],
        input=shown.encode(),
        check=True,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)},
    )
    left = [str(path.relative_to(made["lower"])) for path in made["lower"].rglob("*") if not path.is_dir()]
    assert sorted(left) == ["kept/f", "r"]
    assert (made["lower"] / "r").read_text() == "a file now\n"


def test_patch_names_binary_files(tmp_path: Path) -> None:
    made = make(tmp_path, lower={"b": file(b"\0" * 9)}, upper={"b": file(b"\0" * 8)})
    shown = run("diff", "-p", made["upper"], "--lower", made["lower"]).stdout
    assert shown == "diff --git a/b b/b\nBinary files a/b and b/b differ\n"


# -- check


def test_check_takes_xattrs_of_the_other_prefix_for_data(tmp_path: Path) -> None:
    made = make(tmp_path, upper={"d": directory(xattrs={"user.overlay.redirect": b".."})}, work={})
    assert run("check", "--repair", made["upper"], made["work"]).stdout == "nothing to mend\n"
    assert os.listxattr(made["upper"] / "d") == ["user.overlay.redirect"]
    (finding,) = answer("check", "--userxattr", made["upper"], made["work"], status=3)
    assert (finding["problem"], finding["path"]) == ("bad-redirect", "d")


def test_check_finds_mends_and_says_so_by_its_status(tmp_path: Path) -> None:
    upper: Tree = {"d": opaque_dir(), "d/w": char(0, 0, 0), "f": file(b"kept")}
    made = make(tmp_path, upper=upper, work={"work/#1": file()})
    arguments = ("check", made["upper"], made["work"])
    findings = answer(*arguments, status=3)
    assert [(finding["problem"], finding["path"], finding["repaired"]) for finding in findings] == [
        ("workdir-leftover", "work/#1", False),
        ("whiteout-in-opaque", "d/w", False),
    ]
    assert "--repair would remove the whiteout" in run(*arguments, status=3).stdout
    assert run(*arguments, "--repair").stdout.endswith("2 mended, 0 left\n")
    assert run(*arguments).stdout == "nothing to mend\n"
    assert answer(*arguments) == []
    assert (made["upper"] / "f").read_bytes() == b"kept"


def test_check_leaves_status_3_for_what_it_may_not_mend(tmp_path: Path) -> None:
    made = make(tmp_path, upper={".wh.x": file(b"precious")}, work={})
    shown = run("check", "--repair", made["upper"], made["work"], status=3).stdout
    assert "left to you" in shown
    assert (made["upper"] / ".wh.x").read_bytes() == b"precious"


# -- what people see


def test_terminal_gets_colour_and_a_pipe_does_not(tmp_path: Path) -> None:
    made = make(tmp_path, lower=LOWER, upper=UPPER)
    arguments = ("diff", str(made["upper"]), "--lower", str(made["lower"]))
    seen = on_a_terminal(*arguments)
    assert "\x1b[31mD /gone" in seen
    assert "\x1b" not in run(*arguments).stdout


def test_hostile_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    made = make(tmp_path, upper={"\x1b]0;owned\x07": file(b"\x1b[2J\n"), "[red]x": file(b"\x9b2J\n")})
    for option in ("--all", "--stat", "--patch"):
        seen = on_a_terminal("diff", option, made["upper"])
        left = re.sub(r"\x1b\[[0-9;]*m", "", seen)
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]", left)
        assert "[red]x" in left
        assert r"\x1b]0;owned\x07" in left or r"\033]0;owned\a" in left


def test_printable_escapes_what_is_not() -> None:
    assert printable(b"a b\xc3\xa4\xff\x1b\xe2\x80\xae\n") == "a bä\\xff\\x1b\\u202e\\n"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB"), (1 << 50, "1024.0 TiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (61.9, "1m 1s"), (3600, "1h"), (90061, "1d 1h"), (-5, "0s")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_question_without_answer_ends_in_time() -> None:
    read_fd, write_fd = os.pipe()
    try:
        with pytest.raises(NotAnswering):
            in_time(lambda: os.read(read_fd, 1), 0.01)
    finally:
        os.close(write_fd)


def test_failure_of_a_question_is_the_askers() -> None:
    with pytest.raises(FileNotFoundError):
        in_time(lambda: os.stat("/absent"))


def test_interrupt_while_the_program_is_loaded_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", "overlayfs", "images"]
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
