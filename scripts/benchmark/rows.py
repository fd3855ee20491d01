"""What is measured: the table of rows.

Neighbours: reads.py, writes.py and daemons.py hold what each row does, measure.py runs the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from . import daemons, reads, writes
from .trial import Trial


class Start(Enum):
    """What the mount has seen before the clock starts."""

    UNMOUNTED = "unmounted"
    FRESH = "fresh mount"
    COLD = "fresh mount, caches dropped"
    WARM = "after the same once"


def nothing(_trial: Trial) -> None:
    """No preparing, no checking beyond what the run does."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. `run` returns its figure, in `unit`; all else is outside it.

    `target` is the project's own bar, as a multiple of the kernel's figure.
    """

    name: str
    title: str
    start: Start
    run: Callable[[Trial], float]
    target: float | None = None
    stack: str = "tree"
    programs: tuple[str, ...] = ()
    prepare: Callable[[Trial], None] = nothing
    check: Callable[[Trial], None] = nothing
    check_upper: Callable[[Trial], None] = nothing
    unit: str = "s"


ROWS = (
    Row("find-cold", "find, cold", Start.COLD, reads.run_find, 2.5, programs=("find",)),
    Row("find", "find, warm", Start.WARM, reads.run_find, 1.4),
    Row("ls", "ls -lR, warm", Start.WARM, reads.run_ls, 1.4),
    Row("tar", "tar, warm", Start.WARM, reads.run_tar, 1.3),
    Row(
        "cat-cold",
        "cat all, cold",
        Start.COLD,
        reads.run_cat,
        1.5,
        programs=("bash", "find", "xargs", "cat"),
        check=reads.check_contents,
    ),
    Row("cat", "cat all, warm", Start.WARM, reads.run_cat, 1.3, check=reads.check_contents),
    Row("grep", "grep -r, warm", Start.WARM, reads.run_grep, 1.3),
    Row("open", "open+read+close, warm", Start.WARM, reads.run_open, 1.1),
    Row("imports", "python imports, warm", Start.WARM, reads.run_imports, 1.2),
    Row("gcc", "gcc, warm", Start.WARM, reads.run_gcc, 1.2),
    Row(
        "read",
        "sequential read, first",
        Start.COLD,
        reads.run_sequential_read,
        2.0,
        "data",
        check=reads.check_big_file,
    ),
    Row(
        "read-again",
        "sequential read, again",
        Start.WARM,
        reads.run_sequential_read,
        1.2,
        "data",
        check=reads.check_big_file,
    ),
    Row(
        "random",
        "random 4 KiB read, warm",
        Start.WARM,
        reads.run_random_read,
        1.1,
        "data",
        prepare=reads.check_big_file,
    ),
    Row(
        "untar",
        "untar",
        Start.FRESH,
        writes.run_untar,
        6.0,
        prepare=writes.make_target,
        check_upper=writes.check_upper_tree,
    ),
    Row("cp", "cp -a", Start.FRESH, writes.run_copy, 6.0, "data", check_upper=writes.check_upper_copy),
    Row(
        "rm-upper",
        "rm -rf of upper files",
        Start.FRESH,
        writes.run_remove_upper,
        4.0,
        prepare=writes.untar,
        check=writes.check_removed_upper,
        check_upper=writes.check_upper_empty,
    ),
    Row(
        "rm-lower",
        "rm -rf of lower files",
        Start.FRESH,
        writes.run_remove_lower,
        2.5,
        check=writes.check_removed_lower,
    ),
    Row("chmod", "chmod -R of lower files", Start.FRESH, writes.run_chmod, 2.0, check=writes.check_chmod),
    Row(
        "append",
        "append to lower files",
        Start.FRESH,
        writes.run_append,
        2.0,
        "data",
        check_upper=writes.check_appended,
    ),
    Row(
        "copy-up",
        "copy-up of a big file",
        Start.FRESH,
        writes.run_copy_up,
        1.2,
        "data",
        check_upper=writes.check_copied_up,
    ),
    Row(
        "write",
        "sequential write",
        Start.FRESH,
        writes.run_sequential_write,
        1.3,
        check_upper=writes.check_sequential_write,
    ),
    Row(
        "write-4k",
        "4 KiB writes",
        Start.FRESH,
        writes.run_small_writes,
        3.0,
        check_upper=writes.check_small_writes,
    ),
    Row(
        "sqlite",
        "sqlite commits, WAL",
        Start.FRESH,
        writes.run_commits("WAL"),
        1.5,
        check_upper=writes.check_database,
    ),
    Row(
        "sqlite-rollback",
        "sqlite commits, rollback journal",
        Start.FRESH,
        writes.run_commits("DELETE"),
        check_upper=writes.check_database,
    ),
    Row("git", "git init+add+commit+status", Start.FRESH, writes.run_git, 2.0, "data", check=writes.check_git),
    Row(
        "two-finds",
        "two finds at once, cold",
        Start.COLD,
        reads.run_two_finds,
        2.5,
        programs=("bash", "find"),
    ),
    Row("mount", "mount to first ls", Start.UNMOUNTED, daemons.run_mount),
    Row("memory", "memory per 100k inodes", Start.FRESH, daemons.run_memory, stack="many", unit="MiB"),
    Row(
        "memory-back",
        "the same after FORGET",
        Start.FRESH,
        daemons.run_memory_given_back,
        stack="many",
        unit="MiB",
    ),
)
