"""What is measured: the table of rows.

Neighbours: reads.py, writes.py, daemons.py, commandline.py and snapshots.py hold what each row does, measure.py runs
the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from . import commandline, daemons, reads, snapshots, writes
from .figures import Figure, Start, Target, of_fuse_overlayfs, of_kernel
from .trial import Trial


def nothing(_trial: Trial) -> None:
    """No preparing, no checking beyond what the run does."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. `run` returns its figure, in the figure's unit; all else is outside it."""

    figure: Figure
    run: Callable[[Trial], float]
    stack: str = "tree"
    programs: tuple[str, ...] = ()
    prepare: Callable[[Trial], None] = nothing
    check: Callable[[Trial], None] = nothing
    check_upper: Callable[[Trial], None] = nothing


ROWS = (
    Row(Figure("find-cold", "find, cold", Start.COLD, of_fuse_overlayfs(0.4)), reads.run_find, programs=("find",)),
    Row(Figure("find", "find, warm", Start.WARM, of_kernel(1.2)), reads.run_find),
    Row(Figure("ls", "ls -lR, warm", Start.WARM, of_fuse_overlayfs(0.35)), reads.run_ls),
    Row(Figure("walk-cold", "engine walk, cold", Start.COLD, of_fuse_overlayfs(0.5)), reads.run_walk),
    Row(Figure("walk", "engine walk, warm", Start.WARM, of_fuse_overlayfs(0.5)), reads.run_walk),
    Row(Figure("tar", "tar, warm", Start.WARM, of_kernel(1.2)), reads.run_tar),
    Row(
        Figure("cat-cold", "cat all, cold", Start.COLD, of_fuse_overlayfs(0.6)),
        reads.run_cat,
        programs=("bash", "find", "xargs", "cat"),
        check=reads.check_contents,
    ),
    Row(Figure("cat", "cat all, warm", Start.WARM, of_kernel(1.2)), reads.run_cat, check=reads.check_contents),
    Row(Figure("grep", "grep -r, warm", Start.WARM, of_kernel(1.2)), reads.run_grep),
    Row(Figure("open", "open+read+close, warm", Start.WARM, of_kernel(1.2)), reads.run_open),
    Row(Figure("imports", "python imports, warm", Start.WARM, of_kernel(1.2)), reads.run_imports),
    Row(Figure("gcc", "gcc, warm", Start.WARM, of_kernel(1.2)), reads.run_gcc),
    Row(
        Figure("read", "sequential read, first", Start.COLD, of_fuse_overlayfs(0.9)),
        reads.run_sequential_read,
        "data",
        check=reads.check_big_file,
    ),
    Row(
        Figure("read-again", "sequential read, again", Start.WARM, of_kernel(1.2)),
        reads.run_sequential_read,
        "data",
        check=reads.check_big_file,
    ),
    Row(
        Figure("random", "random 4 KiB read, warm", Start.WARM, of_kernel(1.2)),
        reads.run_random_read,
        "data",
        prepare=reads.check_big_file,
    ),
    Row(
        Figure("untar", "untar", Start.FRESH, of_fuse_overlayfs(0.65)),
        writes.run_untar,
        prepare=writes.make_target,
        check_upper=writes.check_upper_tree,
    ),
    Row(
        Figure("cp", "cp -a", Start.FRESH, of_fuse_overlayfs(0.65)),
        writes.run_copy,
        "data",
        check_upper=writes.check_upper_copy,
    ),
    Row(
        Figure("rm-upper", "rm -rf of upper files", Start.FRESH, of_fuse_overlayfs(0.3)),
        writes.run_remove_upper,
        prepare=writes.untar,
        check=writes.check_removed_upper,
        check_upper=writes.check_upper_empty,
    ),
    Row(
        Figure("rm-lower", "rm -rf of lower files", Start.FRESH, of_fuse_overlayfs(0.3)),
        writes.run_remove_lower,
        check=writes.check_removed_lower,
    ),
    Row(
        Figure("chmod", "chmod -R of lower files", Start.FRESH, of_fuse_overlayfs(1.0)),
        writes.run_chmod,
        check=writes.check_chmod,
    ),
    Row(
        Figure("append", "append to lower files", Start.FRESH, of_fuse_overlayfs(1.0)),
        writes.run_append,
        "data",
        check_upper=writes.check_appended,
    ),
    Row(
        Figure("copy-up", "copy-up of a big file", Start.FRESH, of_fuse_overlayfs(1.0)),
        writes.run_copy_up,
        "data",
        check_upper=writes.check_copied_up,
    ),
    Row(
        Figure("write", "sequential write", Start.FRESH, of_fuse_overlayfs(0.9)),
        writes.run_sequential_write,
        check_upper=writes.check_sequential_write,
    ),
    Row(
        Figure("write-4k", "4 KiB writes", Start.FRESH, of_fuse_overlayfs(0.6)),
        writes.run_small_writes,
        check_upper=writes.check_small_writes,
    ),
    Row(
        Figure("sqlite", "sqlite commits, WAL", Start.FRESH, of_fuse_overlayfs(0.7)),
        writes.run_commits("WAL"),
        check_upper=writes.check_database,
    ),
    Row(
        Figure("sqlite-rollback", "sqlite commits, rollback journal", Start.FRESH, of_fuse_overlayfs(1.0)),
        writes.run_commits("DELETE"),
        check_upper=writes.check_database,
    ),
    Row(
        Figure("git", "git init+add+commit+status", Start.FRESH, of_fuse_overlayfs(0.4)),
        writes.run_git,
        "data",
        check=writes.check_git,
    ),
    Row(
        Figure("two-finds", "two finds at once, warm", Start.WARM, of_fuse_overlayfs(0.4)),
        reads.run_two_finds,
        programs=("bash", "find"),
    ),
    Row(
        Figure("two-finds-cold", "two finds at once, cold", Start.COLD, of_fuse_overlayfs(1.0)),
        reads.run_two_finds,
        programs=("bash", "find"),
    ),
    Row(Figure("mount", "mount to first ls", Start.UNMOUNTED, Target(0.08)), daemons.run_mount),
    *(
        Row(
            Figure(f"overlayfs-{name}", f"overlayfs {name}", Start.UNMOUNTED, Target(0.15)),
            run,
            prepare=prepare,
            check=check,
        )
        for name, prepare, run, check in commandline.COMMANDS
    ),
    *(
        row
        for name, command, prepare, check in (
            ("snapshot", snapshots.take_snapshot, snapshots.prepare_snapshot, snapshots.check_changed),
            ("rollback", snapshots.roll_back, snapshots.prepare_rollback, snapshots.check_clean),
        )
        for row in (
            Row(
                Figure(name, f"{name}, 1,000 files changed", Start.FRESH, Target(0.015)),
                snapshots.timed(command),
                prepare=prepare,
                check=check,
            ),
            Row(
                Figure(f"{name}-daemon", f"daemon's time of a {name}", Start.FRESH, Target(5), "ms"),
                snapshots.daemon_time(command),
                prepare=prepare,
                check=check,
            ),
        )
    ),
    Row(
        Figure("clean-remount", "the same by unmount, mount", Start.FRESH),
        snapshots.run_remount,
        prepare=snapshots.change,
        check=snapshots.check_clean,
    ),
    Row(Figure("fork", "fork of a mount", Start.FRESH), snapshots.run_fork),
    *(
        Row(
            Figure(f"{name}-{depth}", f"{title}, snapshots: {depth}", start), run, prepare=snapshots.copied_up_in(depth)
        )
        for name, title, start, run in (
            ("deep-find-cold", "find, cold", Start.COLD, reads.run_find),
            ("deep-find", "find, warm", Start.WARM, reads.run_find),
            ("deep-open", "open+read+close, warm", Start.WARM, reads.run_open),
        )
        for depth in (1, 50)
    ),
    Row(Figure("clean-copy", "the same by cp -a of the tree", Start.FRESH), snapshots.run_copy),
    Row(
        Figure("test", "a pytest test with a clean tree", Start.UNMOUNTED, Target(10), "ms"),
        snapshots.run_tests,
        prepare=snapshots.prepare_tests,
    ),
    *(
        Row(
            Figure(f"untar-{kind}", f"daemon's {kind} time of an untar, an entry", Start.FRESH, target, "us"),
            daemons.run_processor_time(kind),
            prepare=writes.make_target,
            check_upper=writes.check_upper_tree,
        )
        for kind, target in (("user", Target(70)), ("system", None))
    ),
    Row(Figure("memory-idle", "daemon's memory, idle", Start.FRESH, Target(15), "MiB"), daemons.run_idle_memory),
    Row(
        # The limit is for an inode without its name, and the names of this stack have 11 bytes.
        Figure("memory", "daemon's memory an inode", Start.FRESH, Target(250 + 11), "B"),
        daemons.run_memory,
        "many",
    ),
    Row(
        Figure("memory-back", "the same after FORGET", Start.FRESH, unit="B"),
        daemons.run_memory_given_back,
        "many",
    ),
)
