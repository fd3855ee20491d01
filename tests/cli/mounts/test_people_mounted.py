"""`overlayfs` with live mounts: mount, look, ask, unmount; daemons that hang or died."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.cli.background import wait_until_ended
from overlayfs.cli.mounts.live import CommandError, Status, mount_at, our_mounts
from overlayfs.cli.mounts.stats import show_stats
from overlayfs.tree.mount_table import MountEntry
from tests.cli.people import COMMAND, Site, answer, run
from tests.contract.tree import Tree, directory, file, hardlink
from tests.prepared import PATIENCE_S

BASE: Tree = {"": directory(), "etc/a": file(b"a\n"), "etc/b": file(b"b\n"), "bin/x": file(b"x", 0o755)}
TOP: Tree = {"": directory(), "etc/b": file(b"newer b\n"), ".wh.bin": file()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def mounted(site: Site) -> Site:
    site.mount(site.lower("top", TOP), site.lower("base", BASE))
    return site


def layers(site: Site) -> list[tuple[str, str]]:
    return [(layer["role"], layer["directory"]) for layer in answer("layers", site.mountpoint)]


def daemon_of(site: Site) -> int:
    (found,) = [row for row in answer("mounts") if row["mountpoint"] == str(site.mountpoint)]
    return int(found["status"]["pid"])


# -- mount, umount


def test_mounted_tree_can_be_read_and_written_and_goes_away(mounted: Site) -> None:
    at = mounted.mountpoint
    assert sorted(os.listdir(at)) == ["etc"]
    (at / "etc" / "a").write_text("written\n")
    assert (mounted.upper / "etc" / "a").read_text() == "written\n"
    assert (mounted.top / "base" / "etc" / "a").read_text() == "a\n"
    assert run("umount", at).stdout == ""
    assert mount_at(os.fsencode(at)) is None


def test_umount_returns_when_the_upper_is_free(mounted: Site) -> None:
    mounted.unmount()
    assert answer("check", mounted.upper, mounted.work) == []


def test_mount_without_upper_is_read_only(site: Site) -> None:
    site.mount(site.lower("base", BASE), writable=False)
    with pytest.raises(OSError, match="Read-only"):
        (site.mountpoint / "new").touch()
    assert layers(site) == [("lower", str(site.top / "base"))]


def test_read_only_mount_shows_its_upper(site: Site) -> None:
    (site.upper / "mine").touch()
    upper = ("--upper", site.upper, "--work", site.work)
    run("mount", "--lower", site.lower("base", BASE), *upper, "--read-only", site.mountpoint)
    assert (site.mountpoint / "mine").exists()
    with pytest.raises(OSError, match="Read-only"):
        (site.mountpoint / "new").touch()


def test_options_of_the_mount_program_are_taken(site: Site) -> None:
    run("mount", "-o", "squash_to_uid=77,noexec", "--lower", site.lower("base", BASE), site.mountpoint)
    assert (site.mountpoint / "etc").stat().st_uid == 77
    entry = mount_at(os.fsencode(site.mountpoint))
    assert entry is not None
    assert b"noexec" in entry.options


def test_layer_names_with_separators_are_taken_as_they_are(site: Site) -> None:
    odd = site.lower('a:b,c\\d "e" ', {"": directory(), "f": file()})
    site.mount(odd)
    assert os.listdir(site.mountpoint) == ["f"]
    assert layers(site)[1] == ("lower", str(odd))


def throw_away_directories(top: Path) -> list[str]:
    return [name for name in os.listdir(top) if name.startswith("overlayfs-")]


def watcher_of(site: Site, daemon: int) -> int:
    """A pidfd of the process that waits for the end of an ephemeral mount."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(site.mountpoint) in words and int(name) != daemon:
            return os.pidfd_open(int(name))
    raise AssertionError("nobody will remove the directory")


def test_ephemeral_upper_is_gone_after_the_unmount(site: Site) -> None:
    temporary = site.top / "tmp"
    temporary.mkdir()
    base = site.lower("base", BASE)
    run("mount", "--lower", base, "--ephemeral", site.mountpoint, environ={"TMPDIR": str(temporary)})
    (site.mountpoint / "etc" / "a").write_text("thrown away")
    (site.mountpoint / "locked").mkdir(0)
    (site.mountpoint / "bin" / "x").unlink()
    assert len(throw_away_directories(temporary)) == 1
    watcher = watcher_of(site, daemon_of(site))
    try:
        run("umount", site.mountpoint)
        assert wait_until_ended(watcher, PATIENCE_S)
    finally:
        os.close(watcher)
    assert throw_away_directories(temporary) == []
    assert (base / "etc" / "a").read_bytes() == b"a\n"


def test_ephemeral_mount_waits_for_no_answer_of_its_daemon(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(site.top))
    program = """
import os, signal, sys
from overlayfs.fuse import session
serve = session.serve_in_background
def serve_and_hang(*arguments):
    daemon = serve(*arguments)
    os.kill(daemon, signal.SIGSTOP)
    print(daemon, flush=True)
    return daemon
session.serve_in_background = serve_and_hang
from overlayfs.cli.main import main
sys.exit(main())
"""
    arguments = ("mount", "--lower", site.lower("base", BASE), "--ephemeral", site.mountpoint)
    done = subprocess.run([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, check=True)
    os.kill(int(done.stdout), signal.SIGCONT)
    (site.mountpoint / "written").touch()
    (directory,) = throw_away_directories(site.top)
    assert (site.top / directory / "upper" / "written").exists()
    watcher = watcher_of(site, int(done.stdout))
    try:
        run("umount", site.mountpoint)
        assert wait_until_ended(watcher, PATIENCE_S)
    finally:
        os.close(watcher)
    assert throw_away_directories(site.top) == []


def test_ephemeral_mount_that_fails_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(site.top))
    run("mount", "--lower", site.top / "absent", "--ephemeral", site.mountpoint, status=1)
    assert throw_away_directories(site.top) == []


def test_foreground_mount_ends_with_the_unmount(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(site.top))
    base = site.lower("base", BASE)
    arguments = ("mount", "--foreground", "--lower", base, "--ephemeral", site.mountpoint)
    command: list[str | os.PathLike[str]] = [*COMMAND, *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            wait_until_mounted(site)
            assert len(throw_away_directories(site.top)) == 1
            run("umount", site.mountpoint)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
    assert throw_away_directories(site.top) == []


def wait_until_mounted(site: Site) -> None:
    import select

    with open("/proc/self/mountinfo", "rb") as table:
        poller = select.poll()
        poller.register(table, select.POLLERR | select.POLLPRI)
        while mount_at(os.fsencode(site.mountpoint)) is None:
            assert poller.poll(PATIENCE_S * 1000)


def test_busy_mount_says_who_uses_it_and_stays(mounted: Site) -> None:
    with (mounted.mountpoint / "etc" / "a").open("rb") as held:
        said = run("umount", mounted.mountpoint, status=1).stderr
        assert f"({os.getpid()})" in said
        assert "--lazy" in said
        assert held.read() == b"a\n"
    mounted.unmount()


def test_lazy_unmount_takes_a_busy_mount_away(mounted: Site) -> None:
    with (mounted.mountpoint / "etc" / "a").open("rb") as held:
        run("umount", "--lazy", mounted.mountpoint)
        assert mount_at(os.fsencode(mounted.mountpoint)) is None
        assert held.read() == b"a\n"


def test_unmount_says_that_another_mount_namespace_keeps_it(mounted: Site) -> None:
    command = ["unshare", "--mount", "sh", "-c", "echo ready; read line"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == b"ready\n"
        daemon = os.pidfd_open(daemon_of(mounted))
        try:
            said = run("umount", mounted.mountpoint, status=1).stderr
            assert f"unmounted here, but the mount namespace of sh ({other.pid})" in said
            assert mount_at(os.fsencode(mounted.mountpoint)) is None
            other.stdin.close()
            assert wait_until_ended(daemon, PATIENCE_S)
        finally:
            os.close(daemon)


def test_second_mount_of_the_same_upper_is_refused(mounted: Site) -> None:
    other = mounted.top / "other"
    other.mkdir()
    upper = ("--upper", mounted.upper, "--work", mounted.work)
    said = run("mount", "--lower", mounted.top / "base", *upper, other, status=1).stderr
    assert f"in use by the mount at {mounted.mountpoint}" in said
    assert not os.path.ismount(other)


def test_check_refuses_a_mounted_upper(mounted: Site) -> None:
    said = run("check", "--repair", mounted.upper, mounted.work, status=1).stderr
    assert f"in use by the mount at {mounted.mountpoint}" in said


def test_umount_takes_a_symlink_to_the_mountpoint(mounted: Site) -> None:
    link = mounted.top / "link"
    link.symlink_to(mounted.mountpoint)
    run("umount", link)
    assert mount_at(os.fsencode(mounted.mountpoint)) is None


# -- mounts, layers


def test_mount_under_another_type_s_name_is_ours(site: Site) -> None:
    base = site.lower("base", BASE)
    upper = ("--upper", site.upper, "--work", site.work)
    run("mount", "-o", "subtype=stack", "--lower", base, *upper, site.mountpoint)
    assert os.fsencode(site.mountpoint) in {entry.mountpoint for entry in our_mounts()}
    assert layers(site)[1] == ("lower", str(base))
    assert diff(site) == []
    assert "file of layer 1" in run("which", site.mountpoint / "etc" / "a").stdout
    run("umount", site.mountpoint)


def test_status_is_no_xattr_to_be_set(mounted: Site) -> None:
    at = mounted.mountpoint
    for name in ("user.overlayfs.status", "user.overlayfs.status.1"):
        with pytest.raises(PermissionError):
            os.setxattr(at, name, b"mine")
    os.setxattr(at, "user.overlayfs.status-quo", b"mine")
    assert os.getxattr(at, "user.overlayfs.status-quo") == b"mine"
    assert os.listxattr(at) == ["user.overlayfs.status-quo"]


# -- stats


def test_stats_count_what_was_asked(mounted: Site) -> None:
    (mounted.mountpoint / "etc" / "a").stat()
    found = answer("stats", mounted.mountpoint)
    assert sorted(found) == ["caches", "descriptors", "lane", "requests", "rss_bytes"]
    assert found["lane"] is True
    assert found["requests"]["LOOKUP"]["lane"] >= 2
    lines = [line.split() for line in run("stats", mounted.mountpoint).stdout.splitlines()]
    assert lines[0] == ["REQUEST", "LANE", "FORWARDED"]
    assert "LOOKUP" in [line[0] for line in lines]
    assert lines[-2][1] == "requests,"
    assert " ".join(lines[-1]).endswith("of memory")


def test_stats_of_a_mount_without_the_lane_say_so(site: Site) -> None:
    run("mount", "--no-fast-lane", "--lower", site.lower("base", BASE), site.mountpoint)
    assert "the fast lane is off" in run("stats", site.mountpoint).stdout


def test_stats_are_shown_again_and_again_until_interrupted(mounted: Site) -> None:
    # a job in the background, as a whole run may be one, is started with SIGINT ignored
    hears = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from overlayfs.cli.main import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", hears, "stats", "--watch", "0.1", str(mounted.mountpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        seen = 0
        while seen < 2:
            seen += b"PER SECOND" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == b""


def test_watched_stats_end_with_the_mount(mounted: Site) -> None:
    command: list[str | os.PathLike[str]] = [*COMMAND, "stats", "--watch", "0.1", mounted.mountpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        mounted.unmount()
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert b"no overlayfs is mounted here" in said


def test_stats_of_a_daemon_that_counts_nothing_are_an_error(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    document = {"version": "0.0.9", "requests": {"LOOKUP": 1}}
    entry = MountEntry(1, b"0:1", b"/m", b"fuse.overlayfs", b"x", frozenset())
    status = Status("0.0.9", 1, 0.0, "x", (), (), None, None, "overlay", b"trusted.overlay.", False, document)
    monkeypatch.setattr("overlayfs.cli.mounts.stats.status_of", lambda _: (entry, status))
    with pytest.raises(CommandError, match=r"/m: its daemon is overlayfs 0\.0\.9, which does not count requests"):
        show_stats("/m", True, None)


# -- mounts, layers


def test_mounts_lists_layers_upper_and_process(mounted: Site) -> None:
    (row,) = [row for row in answer("mounts") if row["mountpoint"] == str(mounted.mountpoint)]
    status = row["status"]
    assert status["lowers"] == [str(mounted.top / "top"), str(mounted.top / "base")]
    assert (status["upper"], status["work"]) == (str(mounted.upper), str(mounted.work))
    assert not status["read_only"]
    line = next(line for line in run("mounts").stdout.splitlines() if str(mounted.mountpoint) in line)
    assert line.split()[1:4] == ["rw", "2", str(mounted.upper)]


def test_layers_are_numbered_from_the_top(mounted: Site) -> None:
    assert [line.split() for line in run("layers", mounted.mountpoint).stdout.splitlines()[1:]] == [
        ["0", "upper", str(mounted.upper)],
        ["1", "lower", str(mounted.top / "top")],
        ["2", "lower", str(mounted.top / "base")],
    ]


def test_covered_mount_is_not_listed(mounted: Site) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted.mountpoint], check=True)
    try:
        assert os.fsencode(mounted.mountpoint) not in {entry.mountpoint for entry in our_mounts()}
        assert "not an overlayfs mount but tmpfs" in run("umount", mounted.mountpoint, status=1).stderr
    finally:
        subprocess.run(["umount", mounted.mountpoint], check=True)


def test_many_layers_do_not_fit_one_xattr_and_are_all_listed(site: Site) -> None:
    deep = site.top / ("d" * 200)
    names = [f"{number:03}" + "x" * 200 for number in range(200)]
    for name in names:
        (deep / name).mkdir(parents=True)
    site.mount(*(deep / name for name in names))
    assert layers(site) == [("upper", str(site.upper)), *(("lower", str(deep / name)) for name in names)]


def test_hung_daemon_hangs_nobody(mounted: Site) -> None:
    daemon = daemon_of(mounted)
    os.kill(daemon, signal.SIGSTOP)
    try:
        line = next(line for line in run("mounts").stdout.splitlines() if str(mounted.mountpoint) in line)
        assert "no answer within" in line
        assert "no answer within" in run("layers", mounted.mountpoint, status=1).stderr
        assert "no answer within" in run("which", mounted.mountpoint / "etc" / "a", status=1).stderr
    finally:
        os.kill(daemon, signal.SIGCONT)
    mounted.unmount()


def test_mount_of_a_dead_daemon_is_shown_and_can_be_unmounted(mounted: Site) -> None:
    daemon = os.pidfd_open(daemon_of(mounted))
    try:
        signal.pidfd_send_signal(daemon, signal.SIGKILL)
        assert wait_until_ended(daemon, PATIENCE_S)
    finally:
        os.close(daemon)
    line = next(line for line in run("mounts").stdout.splitlines() if str(mounted.mountpoint) in line)
    assert "its daemon is gone" in line
    mounted.unmount()
    assert mount_at(os.fsencode(mounted.mountpoint)) is None


# -- which


def test_which_names_the_provider_and_the_hidden(mounted: Site) -> None:
    (found,) = answer("which", mounted.mountpoint / "etc" / "b")
    assert (found["exists"], found["provider"]) == (True, 1)
    assert [(layer["layer"], layer["role"], layer["hidden_by"]) for layer in found["layers"]] == [
        (1, "provides", None),
        (2, "hidden", 1),
    ]


def test_which_names_what_deletes(mounted: Site) -> None:
    (mounted.mountpoint / "etc" / "a").unlink()
    upper, lower = answer("which", mounted.mountpoint / "etc" / "a", mounted.mountpoint / "bin" / "x", status=1)
    assert (upper["exists"], upper["deleted_by"]) == (False, 0)
    assert (lower["exists"], lower["deleted_by"]) == (False, 1)
    assert lower["layers"][0]["path"] == ".wh.bin"
    shown = run("which", mounted.mountpoint / "bin" / "x", status=1).stdout
    assert "deleted by layer 1" in shown
    assert "whiteout: a .wh. file" in shown


def test_which_takes_relative_paths_and_leaves_symlinks_unfollowed(mounted: Site) -> None:
    (mounted.mountpoint / "link").symlink_to("/etc/passwd")
    done = subprocess.run(
        [*COMMAND, "which", "link", "etc/../etc/b"],
        cwd=mounted.mountpoint,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert "symlink of layer 0" in done.stdout
    assert "file of layer 1" in done.stdout


def test_which_follows_a_renamed_directory(mounted: Site) -> None:
    (mounted.mountpoint / "etc").rename(mounted.mountpoint / "conf")
    (found,) = answer("which", mounted.mountpoint / "conf" / "a")
    assert (found["provider"], found["layers"][0]["path"]) == (2, "etc/a")


def test_which_and_the_mount_agree_on_every_path(mounted: Site) -> None:
    at = mounted.mountpoint
    (at / "etc" / "a").unlink()
    (at / "etc" / "new").mkdir()
    (at / "etc" / "b").chmod(0o600)
    (at / "moved").mkdir()
    (at / "etc").rename(at / "moved" / "etc")
    inside = ("etc", "etc/a", "etc/b", "bin", "bin/x", "moved", "moved/etc", "moved/etc/a", "moved/etc/b")
    paths = [at / name for name in (*inside, "moved/etc/new", "none")]
    found = answer("which", *paths, status=1)
    assert [(entry["path"], entry["exists"]) for entry in found] == [(str(path), path.exists()) for path in paths]


# -- diff


def diff(site: Site, *options: str) -> list[str]:
    return run("diff", site.mountpoint, *options).stdout.splitlines()


def test_diff_of_a_fresh_mount_is_empty(mounted: Site) -> None:
    assert diff(mounted) == []


def test_reading_and_listing_changes_nothing(mounted: Site) -> None:
    before = diff(mounted, "--all")  # the root itself: upper and lower were made at different times
    for path in mounted.mountpoint.rglob("*"):
        path.stat()
        if path.is_file():
            path.read_bytes()
    assert before == diff(mounted, "--all") == ["M /"]
    assert list(mounted.upper.iterdir()) == []


def test_diff_of_a_mount_shows_what_was_done(mounted: Site) -> None:
    at = mounted.mountpoint
    (at / "etc" / "a").unlink()
    (at / "etc" / "b").chmod(0o600)
    (at / "bin").mkdir()
    (at / "bin" / "tool").write_text("x")
    assert diff(mounted) == ["A /bin/", "A /bin/tool", "D /etc/a", "M /etc/b"]
    mounted.unmount()
    lowers = ("--lower", mounted.top / "top", "--lower", mounted.top / "base")
    assert run("diff", mounted.upper, *lowers).stdout.splitlines() == [
        "A /bin/",
        "A /bin/tool",
        "D /etc/a",
        "M /etc/b",
    ]


def test_diff_knows_the_marks_of_a_mount_with_userxattr(site: Site) -> None:
    base, upper = site.lower("base", BASE), ("--upper", site.upper, "--work", site.work)
    run("mount", "-o", "userxattr", "--lower", base, *upper, site.mountpoint)
    (site.mountpoint / "etc").rename(site.mountpoint / "moved")
    (site.mountpoint / "etc").mkdir()
    os.setxattr(site.mountpoint / "bin", "trusted.overlay.opaque", b"y")
    changes = ["M /bin/", "D /etc/a", "D /etc/b", "A /moved/", "A /moved/a", "A /moved/b"]
    assert diff(site) == changes
    assert "the spelling of a mount's marks is known" in run("diff", "--userxattr", site.mountpoint, status=1).stderr
    assert answer("which", site.mountpoint / "moved/a")[0]["layers"][0]["layer"] == 1
    assert run("which", site.mountpoint / "etc/a", status=1).stdout.startswith(f"{site.mountpoint}/etc/a: not there")
    site.unmount()
    assert run("diff", "--userxattr", site.upper, "--lower", base).stdout.splitlines() == changes
    told_nothing = run("diff", site.upper, "--lower", base).stdout.splitlines()
    assert "D /bin/x" in told_nothing and "A /moved/a" not in told_nothing


def test_change_taken_back_is_no_change(mounted: Site) -> None:
    target = mounted.mountpoint / "etc" / "b"
    before = target.stat()
    content = target.read_bytes()
    target.write_bytes(b"something else")
    target.write_bytes(content)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert diff(mounted) == []


def test_removed_and_made_again_directory_deletes_what_was_in_it(mounted: Site) -> None:
    directory_of = mounted.mountpoint / "etc"
    for path in directory_of.iterdir():
        path.unlink()
    mode = stat.S_IMODE(directory_of.stat().st_mode)
    directory_of.rmdir()
    directory_of.mkdir(mode)
    assert diff(mounted) == ["D /etc/a", "D /etc/b"]


def test_renamed_lower_directory_is_deleted_and_added(mounted: Site) -> None:
    (mounted.mountpoint / "etc").rename(mounted.mountpoint / "conf")
    assert diff(mounted) == ["A /conf/", "A /conf/a", "A /conf/b", "D /etc/"]


def test_all_names_of_a_changed_hard_link_are_changed(site: Site) -> None:
    linked: Tree = {"": directory(), "a": file(b"1"), "d/b": hardlink("a"), "d/c": hardlink("a")}
    site.mount(site.lower("base", linked))
    with (site.mountpoint / "d" / "b").open("ab") as stream:
        stream.write(b"2")
    assert (site.mountpoint / "a").read_bytes() == b"12"
    assert diff(site) == ["M /a", "M /d/b", "M /d/c"]


def test_metadata_change_by_metacopy_shows_no_content_change(site: Site) -> None:
    base = site.lower("base", {"": directory(), "big": file(b"x" * 100_000)})
    upper = ("--upper", site.upper, "--work", site.work)
    run("mount", "-o", "metacopy=on", "--lower", base, *upper, site.mountpoint)
    (site.mountpoint / "big").chmod(0o600)
    (change,) = [c for c in answer("diff", site.mountpoint) if c["path"] == "/big"]
    assert change["aspects"] == ["mode"]


def test_diff_of_a_read_only_mount_says_why_not(site: Site) -> None:
    site.mount(site.lower("base", BASE), writable=False)
    assert "mounted without an upper" in run("diff", site.mountpoint, status=1).stderr


def test_diff_of_a_directory_in_a_mount_names_the_mount(mounted: Site) -> None:
    said = run("diff", mounted.mountpoint / "etc", status=1).stderr
    assert f"lies in the mount {mounted.mountpoint}" in said
    assert run("diff", mounted.mountpoint / "etc", "--lower", mounted.top / "base" / "etc").stdout == "M /b\n"


def test_diff_of_a_mount_takes_no_lowers(mounted: Site) -> None:
    said = run("diff", mounted.mountpoint, "--lower", mounted.top, status=1).stderr
    assert "the lower layers of a mount are known" in said
