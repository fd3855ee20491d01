"""What is done to a mount that changes it: the runs and checks of the writing rows.

Neighbours: rows.py puts them into the table, trial.py gives them a mount. What was written is checked in the
upper once the mount is gone: what never arrived there was not written.
"""

import os
import sqlite3
import zlib
from collections.abc import Callable
from functools import cache

from .layers import BIG_FILE, MIB, PAGE, SMALL_DIRECTORY
from .trial import Trial
from .workloads import checksum

APPENDED = "one line more\n"
GIT = "git init -q; git add -A; git commit -qm bench; git status --porcelain"


def make_target(trial: Trial) -> None:
    trial.root.joinpath("new").mkdir()


def run_untar(trial: Trial) -> float:
    return trial.command("tar", "-xf", str(trial.bench.archive), "-C", trial.path("new"))


def check_upper_tree(trial: Trial) -> None:
    new = str(trial.upper / "new")
    trial.expect("entries", trial.ask("count", root=new), trial.expected.entries - 1)
    trial.expect("contents", tuple(trial.ask("digest", root=new)), trial.expected.contents)


def run_copy(trial: Trial) -> float:
    return trial.command("cp", "-a", trial.path(SMALL_DIRECTORY), trial.path("copy"))


def small_source(trial: Trial) -> str:
    """The lower directory of small files, beside the mount."""
    return str(trial.plan.lowers[0] / SMALL_DIRECTORY)


def check_upper_copy(trial: Trial) -> None:
    wanted = trial.ask("digest", root=small_source(trial))
    trial.expect("contents", trial.ask("digest", root=str(trial.upper / "copy")), wanted)


def untar(trial: Trial) -> None:
    make_target(trial)
    run_untar(trial)


def run_remove_upper(trial: Trial) -> float:
    return trial.command("rm", "-rf", trial.path("new"))


def check_removed_upper(trial: Trial) -> None:
    trial.expect("new", (trial.root / "new").exists(), False)


def check_upper_empty(trial: Trial) -> None:
    trial.expect("a directory in upper", (trial.upper / "new").is_dir(), False)  # a whiteout may be there


def run_remove_lower(trial: Trial) -> float:
    return trial.command("rm", "-rf", *(trial.path(name) for name in trial.expected.top))


def check_removed_lower(trial: Trial) -> None:
    trial.expect("entries", [name for name in os.listdir(trial.root) if name in trial.expected.top], [])


def run_chmod(trial: Trial) -> float:
    return trial.command("chmod", "-R", "a+w", trial.path("usr"))


def check_chmod(trial: Trial) -> None:
    total, lacking = trial.ask("modes_without", root=trial.path("usr"), bits=0o222)
    trial.expect("entries", total, trial.expected.usr_entries)
    trial.expect("unchanged entries", lacking, 0)


def appended_names(trial: Trial) -> list[str]:
    return [f"{SMALL_DIRECTORY}/{number // 100:02}/{number:04}" for number in range(trial.sizes.appended_files)]


def run_append(trial: Trial) -> float:
    paths = [trial.path(name) for name in appended_names(trial)]
    return trial.client("append", paths=paths, line=APPENDED)[0]


def check_appended(trial: Trial) -> None:
    for name in appended_names(trial):
        wanted = (trial.plan.lowers[0] / name).read_bytes() + APPENDED.encode()
        trial.expect(name, (trial.upper / name).read_bytes() == wanted, True)


def run_copy_up(trial: Trial) -> float:
    return trial.client("change_first_byte", path=trial.path(BIG_FILE))[0]


def check_copied_up(trial: Trial) -> None:
    copy = trial.upper / BIG_FILE
    with copy.open("r+b") as file:
        trial.expect("first byte", file.read(1), b"\xff")
        file.seek(0)
        file.write(b"\0")  # the first page's stamp is 0: with it the copy is the original again
    trial.expect("contents", checksum(str(copy)), trial.bench.stacks.big_checksum)


def run_sequential_write(trial: Trial) -> float:
    size = trial.sizes.sequential_write
    return trial.client("write_sequentially", path=trial.path("written"), size=size, block=MIB)[0]


def run_small_writes(trial: Trial) -> float:
    size = trial.sizes.small_write
    return trial.client("write_sequentially", path=trial.path("written"), size=size, block=PAGE)[0]


@cache
def written_checksum(size: int) -> int:
    """CRC-32 of what write_sequentially writes."""
    block, value = bytes(range(256)) * (MIB // 256), 0
    for _ in range(size // MIB):
        value = zlib.crc32(block, value)
    return value


def check_sequential_write(trial: Trial) -> None:
    found = checksum(str(trial.upper / "written"))
    trial.expect("contents", found, written_checksum(trial.sizes.sequential_write))


def check_small_writes(trial: Trial) -> None:
    found = checksum(str(trial.upper / "written"))
    trial.expect("contents", found, written_checksum(trial.sizes.small_write))


def run_commits(journal: str) -> Callable[[Trial], float]:
    def run(trial: Trial) -> float:
        times = trial.sizes.commits
        seconds, rows = trial.client("commit", path=trial.path("bench.db"), times=times, journal=journal)
        trial.expect("rows", rows, times)
        return seconds

    return run


def check_database(trial: Trial) -> None:
    connection = sqlite3.connect(trial.upper / "bench.db")
    trial.expect("integrity", connection.execute("PRAGMA integrity_check").fetchall(), [("ok",)])
    rows = connection.execute("SELECT count(*) FROM entries").fetchone()[0]
    connection.close()
    trial.expect("rows", rows, trial.sizes.commits)


def run_git(trial: Trial) -> float:
    seconds = trial.command("sh", "-ec", GIT, cwd=trial.root / SMALL_DIRECTORY)
    trial.expect("status", trial.output_text(), "")
    return seconds


def check_git(trial: Trial) -> None:
    trial.command("git", "fsck", "--strict", cwd=trial.root / SMALL_DIRECTORY)
    trial.command("git", "ls-files", cwd=trial.root / SMALL_DIRECTORY)
    trial.expect("files", trial.output_text().count("\n"), trial.sizes.small_files)
