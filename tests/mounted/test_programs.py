"""Real programs on the mount: what works on a disk works here."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.stack import REPOSITORY, Stack, run

# Databases


def _fill(database: Path, rows: int) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY, text TEXT)")
        connection.executemany("INSERT INTO numbers (text) VALUES (?)", ((f"row {row}" * 20,) for row in range(rows)))
    connection.close()


def _count(database: Path) -> int:
    connection = sqlite3.connect(database)
    (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    (count,) = connection.execute("SELECT count(*) FROM numbers").fetchone()
    connection.close()
    assert verdict == "ok"
    return int(count)


@pytest.mark.parametrize("lane", ["on", "off"])
def test_empty_stamp_of_a_build_is_renewed_by_a_redirection(lane: str, stack: Stack) -> None:
    """open(2) with O_TRUNC sets mtime, also of an empty file: of a lower layer, and once it is copied up."""
    (stack.lowers[0] / "stamp").touch()
    os.utime(stack.lowers[0] / "stamp", ns=(1, 1))
    stack.mount(f"lane={lane}")
    for _ in range(2):
        subprocess.run(["sh", "-c", ": > stamp"], cwd=stack.place, check=True)
        assert (stack.place / "stamp").stat().st_mtime_ns > 1
        os.utime(stack.place / "stamp", ns=(1, 1))


@pytest.mark.parametrize("journal", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_sqlite_writes_a_database_of_a_lower_layer(journal: str, stack: Stack) -> None:
    _fill(stack.lowers[0] / "db", 1000)
    before = (stack.lowers[0] / "db").read_bytes()
    stack.mount()
    database = stack.place / "db"
    connection = sqlite3.connect(database)
    assert connection.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal.lower(),)
    for number in range(50):
        connection.execute("INSERT INTO numbers (text) VALUES (?)", (f"commit {number}",))
        connection.commit()
    connection.execute("DELETE FROM numbers WHERE number <= 100")
    connection.rollback()
    connection.close()
    assert _count(database) == 1050
    stack.remount()
    assert _count(database) == 1050
    assert (stack.lowers[0] / "db").read_bytes() == before


def test_sqlite_readers_and_a_writer_at_once(stack: Stack) -> None:
    _fill(stack.lowers[0] / "db", 100)
    stack.mount("volatile")
    # On no filesystem does SQLite wait for locks while it changes the journal mode, or ends the log with its last user.
    first = sqlite3.connect(stack.place / "db")
    assert first.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    script = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=60)\n"
        "for number in range(25):\n"
        "    connection.execute('INSERT INTO numbers (text) VALUES (?)', (sys.argv[2],))\n"
        "    connection.commit()\n"
        "    assert connection.execute('PRAGMA quick_check').fetchone() == ('ok',)\n"
    )
    writers = [
        subprocess.Popen(["python3", "-c", script, stack.place / "db", f"writer {number}"]) for number in range(4)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    assert first.execute("SELECT count(*) FROM numbers").fetchone() == (200,)
    first.close()
    assert _count(stack.place / "db") == 200


# Version control


def _git(place: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "safe.directory=*"]
    return run("git", *identity, "-c", "gc.auto=0", *arguments, cwd=place)


def _make_repository(place: Path) -> None:
    place.mkdir()
    _git(place, "init", "--quiet", "--initial-branch=main")
    for number in range(60):
        path = place / f"directory{number % 7}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"line {number}\n" * number)
    _git(place, "add", "--all")
    _git(place, "commit", "--quiet", "--message=first")


def test_git_works_in_a_repository_of_a_lower_layer(stack: Stack) -> None:
    _make_repository(stack.lowers[0] / "repository")
    stack.mount()
    place = stack.place / "repository"
    assert _git(place, "status", "--porcelain") == ""
    _git(place, "switch", "--quiet", "--create", "other")
    (place / "directory1/file1").write_text("changed\n")
    (place / "directory2/file2").unlink()
    _git(place, "mv", "directory3", "moved")
    _git(place, "add", "--all")
    _git(place, "commit", "--quiet", "--message=second")
    _git(place, "switch", "--quiet", "main")
    assert (place / "directory2/file2").exists()
    _git(place, "merge", "--quiet", "other")
    _git(place, "gc", "--quiet", "--prune=now")
    _git(place, "fsck", "--full", "--strict")
    stack.remount()
    assert _git(place, "status", "--porcelain") == ""
    assert _git(place, "log", "--oneline").count("\n") == 2
    _git(place, "clone", "--quiet", str(place), str(stack.place / "clone"))
    _git(stack.place / "clone", "fsck", "--full", "--strict")


# A C library's and a shell's usual ways with files


def test_tar_takes_a_tree_in_and_out_unchanged(stack: Stack, scratch: Path) -> None:
    source = REPOSITORY / "overlayfs"
    stack.mount()
    archive, out = scratch / "in.tar", scratch / "out"
    out.mkdir()
    run("tar", "--create", "--file", archive, "--directory", source, "--exclude=__pycache__", ".")
    run("tar", "--extract", "--file", archive, "--directory", stack.place)
    run("cp", "--archive", f"{stack.place}/.", out)
    assert run("diff", "--recursive", "--exclude=__pycache__", source, out) == ""
    run("rm", "--recursive", *stack.place.iterdir())
    assert list(stack.place.iterdir()) == []
    assert list(stack.upper.iterdir()) == []


def test_editors_ways_of_saving_keep_one_file(stack: Stack) -> None:
    (stack.lowers[0] / "text").write_text("old\n")
    stack.mount()
    text = stack.place / "text"
    text.with_suffix(".new").write_text("by rename\n")
    text.with_suffix(".new").replace(text)
    os.link(text, stack.place / "backup")
    text.unlink()
    text.write_text("by backup\n")
    run("sed", "--in-place", "s/backup/sed/", text)
    stack.remount()
    assert sorted(path.name for path in stack.place.iterdir()) == ["backup", "text"]
    assert text.read_text() == "by sed\n"
    assert (stack.place / "backup").read_text() == "by rename\n"


# Stress

SAMPLE = (
    "chmod",
    "chown",
    "dentry",
    "dirdeep",
    "filename",
    "fstat",
    "getdent",
    "hdd",
    "link",
    "rename",
    "utime",
    "xattr",
)


def _stress_class() -> tuple[str, ...]:
    """Every stressor of stress-ng's filesystem class: it lists them when asked for the class `filesystem?`."""
    asked = subprocess.run(["stress-ng", "--class", "filesystem?"], capture_output=True, text=True, check=False)
    return tuple((asked.stdout + asked.stderr).partition(": ")[2].split())


def _stress_failures(place: Path, stressor: str, seconds: int) -> list[str]:
    """What stress-ng complains of, without process numbers and paths."""
    command = ["stress-ng", f"--{stressor}", "1", "--timeout", f"{seconds}s", "--verify", "--temp-path", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=place)
    complaints = re.findall(r"(?:fail|error):\s+\[\d+\]\s+(.*)", done.stdout + done.stderr)
    return sorted({re.sub(r"\d+", "N", line.replace(str(place), "PLACE")) for line in complaints})


def _new_stress_failures(stack: Stack, stressor: str, seconds: int) -> list[str]:
    """What fails on the mount and does not fail beside it on the disk."""
    plain = stack.base / "plain"
    plain.mkdir(exist_ok=True)
    found = _stress_failures(stack.place, stressor, seconds)
    return [line for line in found if line not in _stress_failures(plain, stressor, seconds)] if found else []


def test_stress_sample_has_no_failures_of_ours(stack: Stack) -> None:
    stack.mount("volatile")
    known = set(_stress_class())
    assert known >= set(SAMPLE)
    failures = {name: _new_stress_failures(stack, name, 1) for name in SAMPLE}
    assert {name: lines for name, lines in failures.items() if lines} == {}
    assert stack.status["pid"] == stack.pid


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_stress_class_has_no_failures_of_ours(stack: Stack) -> None:
    stack.mount()
    failures = {name: _new_stress_failures(stack, name, 2) for name in _stress_class()}
    assert {name: lines for name, lines in failures.items() if lines} == {}
    assert stack.status["pid"] == stack.pid


# A whole system


@pytest.fixture(scope="module")
def system_layers(module_scratch: Path) -> list[Path]:
    """Debian in three layers, top first."""
    run(REPOSITORY / "scripts/make-layers", module_scratch / "layers", timeout_s=900)
    return sorted((module_scratch / "layers").glob("[0-9]-*"), reverse=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_packages_install_and_verify_in_a_chroot(system_layers: list[Path], new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(0)
    stack.lowers = system_layers
    stack.mount()
    shutil.copy("/etc/resolv.conf", stack.place / "etc/resolv.conf")
    chroot = ("chroot", stack.place, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
    run(*chroot, "apt-get", "update", timeout_s=300)
    run(*chroot, "apt-get", "install", "--yes", "--no-install-recommends", "file", "make", timeout_s=600)
    assert "ELF" in run(*chroot, "file", "/usr/bin/make")
    assert _changed_files(run_anyway(*chroot, "dpkg", "--verify", "file", "make", "libmagic1")) == []
    run(*chroot, "apt-get", "purge", "--yes", "file", timeout_s=300)
    assert run(*chroot, "dpkg", "--audit") == ""
    stack.remount()
    assert "GNU Make" in run(*chroot, "make", "--version")
    assert not (stack.place / "usr/bin/file").exists()


def run_anyway(*command: str | Path) -> str:
    """What the program printed, whatever its exit status."""
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False).stdout


def _changed_files(report: str) -> list[str]:
    """Lines of `dpkg --verify` that say that content differs."""
    return [line for line in report.splitlines() if "5" in line.split()[0]]
