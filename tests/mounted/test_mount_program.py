"""`overlayfs-mount` for real: started as its callers start it, watched until its daemon has gone."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.program import (
    AS_USER,
    COMMAND,
    ENVIRONMENT,
    PATIENCE_S,
    SILENT_SUCCESS,
    Place,
    has_ended,
    installed,
    make_place,
    mounts_beneath,
    open_device,
    wait_for_mounts,
    write_wrapper,
)

USER = 65534


@pytest.fixture
def place() -> Iterator[Place]:
    base = Path(tempfile.mkdtemp(prefix="overlayfs-program-"))
    base.chmod(0o755)
    made = make_place(base)
    yield made
    made.clear()


@pytest.fixture
def user_place(place: Place) -> Iterator[Place]:
    """A place that belongs to an ordinary user, who may use /dev/fuse."""
    for path in (place.base, *place.base.rglob("*")):
        os.chown(path, USER, USER)
    with open_device():
        yield place


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    with installed() as installed_name:
        yield installed_name


def assert_serves(place: Place) -> None:
    assert (place.target / "shared").read_text() == "of the top\n"
    assert (place.target / "below").read_text() == "only below\n"


# The two command lines, and whoever else calls.


def test_engine_s_command_line_is_live_when_it_returns_and_says_nothing(place: Place) -> None:
    done = place.run("-o", place.options, place.target)
    assert_serves(place)
    assert done == SILENT_SUCCESS
    place.daemon()
    shown = place.shown()
    assert (shown.kind, shown.source) == ("fuse.overlayfs", "overlayfs")
    (place.target / "new").write_text("x")
    assert (place.base / "upper/new").read_text() == "x"


def test_mount_s_command_line_shows_the_source(place: Place) -> None:
    done = place.run("an image, of mine", place.target, "-o", f"{place.options},dev,suid")
    assert_serves(place)
    assert done == SILENT_SUCCESS
    place.daemon()
    shown = place.shown()
    assert (shown.kind, shown.source) == ("fuse.overlayfs", "an image, of mine")


def test_mount_with_a_filesystem_type(place: Place, name: str) -> None:
    options = f"{place.options},_netdev,noatime,x-note=1"
    command = ("mount", "-t", f"fuse.{name}", "an-image", str(place.target), "-o", options)
    assert place.run(command=command) == SILENT_SUCCESS
    assert_serves(place)
    place.daemon()
    shown = place.shown()
    assert (shown.kind, shown.source) == ("fuse.overlayfs", "an-image")
    assert "noatime" in shown.options


def test_mount_from_fstab(place: Place, name: str) -> None:
    table = place.base / "fstab"
    table.write_text(f"stored {place.target} fuse.{name} defaults,noauto,nofail,user,dev,suid,{place.options} 0 0\n")
    assert place.run("-T", table, place.target, command=("mount",)) == SILENT_SUCCESS
    assert_serves(place)
    place.daemon()
    assert place.shown().source == "stored"


def test_mount_fuse3_as_containerd_calls_it(place: Place) -> None:
    directory = place.base / "bin"
    directory.mkdir()
    write_wrapper(directory / "ours")
    options = [word for option in place.options.split(",") for word in ("-o", option)]
    done = place.run(
        *("overlay", str(place.target), *options, "-t", "ours"),
        command=("mount.fuse3",),
        env={**ENVIRONMENT, "PATH": f"{directory}:{os.environ['PATH']}"},
    )
    assert done == SILENT_SUCCESS
    assert_serves(place)
    place.daemon()
    assert place.shown().source == "overlay"


def test_failure_through_mount_shows_the_reason(place: Place, name: str) -> None:
    options = f"lowerdir={place.base}/absent"
    done = place.run(command=("mount", "-t", f"fuse.{name}", "src", str(place.target), "-o", options))
    assert done.status != 0
    assert done.err.startswith("overlayfs-mount: ")
    assert f"{place.base}/absent" in done.err
    assert not place.is_mounted()


def test_foreground_stays_until_unmounted(place: Place) -> None:
    with subprocess.Popen([*COMMAND, "-f", "-o", place.options, str(place.target)], env=ENVIRONMENT) as program:
        wait_for_mounts(place.is_mounted)
        assert_serves(place)
        assert place.status()["pid"] == program.pid
        subprocess.run(["umount", place.target], check=True)
        assert program.wait(PATIENCE_S) == 0


def test_mount_works_with_no_environment_at_all(place: Place) -> None:
    code = (
        f"import sys; sys.path.insert(0, {ENVIRONMENT['PYTHONPATH']!r});"
        "from overlayfs.cli.mount_program import main; sys.exit(main())"
    )
    done = place.run("-o", place.options, place.target, command=(sys.executable, "-c", code), env={})
    assert_serves(place)
    assert done == SILENT_SUCCESS
    place.daemon()


def test_unknown_option_is_a_warning_and_the_mount_is_made(place: Place) -> None:
    done = place.run("-o", f"{place.options},,nosuchoption=1,private", place.target)
    assert (done.status, done.out) == (0, "")
    assert done.err == "overlayfs-mount: unknown option ignored: nosuchoption=1\n"
    assert_serves(place)
    place.daemon()


# What the daemon keeps of its caller: nothing.


def test_daemon_holds_none_of_the_caller_s_descriptors(place: Place) -> None:
    readable, writable = os.pipe()
    with open(place.base / "file", "w") as file:
        done = place.run("-o", place.options, place.target, pass_fds=(writable, file.fileno()))
    os.close(writable)
    assert done == SILENT_SUCCESS
    daemon = place.daemon()
    watch = select.poll()
    watch.register(readable, select.POLLIN)
    assert watch.poll(PATIENCE_S * 1000), "the pipe of the caller stays open"
    assert os.read(readable, 1) == b""
    os.close(readable)
    assert not has_ended(daemon, 0)
    held = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{place.status()['pid']}/fd")]
    assert str(place.base / "file") not in held


def test_daemon_leaves_session_directory_and_streams_of_the_caller(place: Place) -> None:
    place.run("-o", place.options, "target", cwd=place.base)
    assert_serves(place)
    place.daemon()
    process = Path(f"/proc/{place.status()['pid']}")
    assert os.getsid(place.status()["pid"]) != os.getsid(0)
    assert os.readlink(process / "cwd") == "/"
    assert [os.readlink(process / f"fd/{number}") for number in range(3)] == ["/dev/null"] * 3


def test_caller_without_standard_streams(place: Place) -> None:
    script = 'exec 0<&- 1>&- 2>&-; exec "$@"'
    done = place.run("-o", place.options, place.target, command=("sh", "-c", script, "sh", *COMMAND))
    assert done == SILENT_SUCCESS
    assert_serves(place)
    place.daemon()


# How it ends.

WAYS = {
    "umount": ["umount"],
    "lazy umount": ["umount", "-l"],
    "fusermount3": ["fusermount3", "-u"],
    "fusermount": ["fusermount", "-u"],
    "lazy fusermount3": ["fusermount3", "-u", "-z"],
}


@pytest.mark.parametrize("way", WAYS)
def test_daemon_ends_by_itself_when_unmounted(way: str, place: Place) -> None:
    daemon = place.mount()
    assert_serves(place)
    assert place.run(place.target, command=WAYS[way]) == SILENT_SUCCESS
    assert has_ended(daemon)
    assert mounts_beneath(place.base) == []
    place.mount()
    assert_serves(place)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_unmounts(number: signal.Signals, place: Place) -> None:
    daemon = place.mount()
    assert_serves(place)
    signal.pidfd_send_signal(daemon, number)
    assert has_ended(daemon)
    assert mounts_beneath(place.base) == []


def test_lazily_unmounted_tree_serves_its_last_user(place: Place) -> None:
    daemon = place.mount()
    with open(place.target / "below") as file:
        subprocess.run(["umount", "-l", place.target], check=True)
        assert not place.is_mounted()
        assert file.read() == "only below\n"
        assert not has_ended(daemon, 0)
    assert has_ended(daemon)


def test_busy_mount_is_not_unmounted_and_lives_on(place: Place) -> None:
    daemon = place.mount()
    with open(place.target / "below"):
        assert place.run(place.target, command=("umount",)).status != 0
    assert not has_ended(daemon, 0)
    assert_serves(place)


def test_auto_unmount_clears_up_after_a_killed_daemon(place: Place) -> None:
    daemon = place.mount("auto_unmount")
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    wait_for_mounts(lambda: not place.is_mounted())


# What the options do to the mount.

SHOWN = [
    ("", {"rw", "default_permissions", "allow_other"}, {"nosuid", "nodev", "noexec"}),
    ("nosuid,nodev,noexec", {"rw", "nosuid", "nodev", "noexec"}, {"ro"}),
    ("ro", {"ro"}, {"rw"}),
    ("noatime", {"noatime"}, {"relatime"}),
    ("max_read=65536", {"max_read=65536"}, set()),
    ("dev,suid,exec,rw", {"rw"}, {"nosuid", "nodev", "noexec"}),
    ("auto_unmount", {"rw", "allow_other"}, {"nosuid", "nodev"}),
    ("auto_unmount,nosuid,nodev", {"nosuid", "nodev"}, set()),
]


@pytest.mark.parametrize(("text", "present", "absent"), SHOWN, ids=[text or "default" for text, _, _ in SHOWN])
def test_options_show_in_the_table_of_mounts(text: str, present: set[str], absent: set[str], place: Place) -> None:
    place.mount(text)
    options = place.shown().options
    assert (present - options, absent & options) == (set(), set())


def test_fsname_and_subtype(place: Place) -> None:
    place.mount("fsname=mine,subtype=stack")
    shown = place.shown()
    assert (shown.kind, shown.source) == ("fuse.stack", "mine")


def test_mount_without_upper_is_read_only(place: Place) -> None:
    assert place.run("-o", f"lowerdir={place.base}/top:{place.base}/bottom", place.target) == SILENT_SUCCESS
    assert_serves(place)
    place.daemon()
    assert "ro" in place.shown().options
    with pytest.raises(OSError, match="Read-only file system"):
        (place.target / "new").touch()


def test_500_lowers_by_short_symlinks_of_the_current_directory(place: Place) -> None:
    links = [f"l/{number:03}" for number in range(500)]
    (place.base / "l").mkdir()
    for number, link in enumerate(links):
        layer = place.base / f"layer{number}"
        layer.mkdir()
        (layer / f"file{number}").touch()
        (layer / "shared").write_text(f"{number}")
        (place.base / link).symlink_to(f"../layer{number}")
    options = f"lowerdir={':'.join(links)},upperdir=upper,workdir=work"
    assert place.run("-o", options, "target", cwd=place.base) == SILENT_SUCCESS
    place.daemon()
    assert sorted(os.listdir(place.target)) == sorted(["shared", *(f"file{number}" for number in range(500))])
    assert (place.target / "shared").read_text() == "0"
    assert (place.target / "file499").exists()


def test_names_with_separators_in_layer_paths(place: Place) -> None:
    for name, written in (("a:b", r"a\:b"), ("c,d", r"c\,d"), ("e\\f", r"e\\f"), ('g"h', 'g"h')):
        layer = place.base / name
        layer.mkdir()
        (layer / "found").write_text(name)
        assert place.run("-o", f"lowerdir={place.base}/{written}", place.target) == SILENT_SUCCESS
        daemon = place.daemon()
        assert (place.target / "found").read_text() == name
        subprocess.run(["umount", place.target], check=True)
        assert has_ended(daemon)


@pytest.mark.parametrize("target", ["a b", "a,b", "a\\b", "tab\there", "é", "\udcff"])
def test_mountpoint_with_any_name(target: str, place: Place) -> None:
    directory = place.base / target
    directory.mkdir()
    assert place.run("-o", place.options, directory) == SILENT_SUCCESS
    assert (directory / "shared").read_text() == "of the top\n"
    subprocess.run(["umount", directory], check=True)


# Where there is no root.


def test_mount_inside_a_user_namespace(place: Place) -> None:
    script = (
        'base=$1; shift; "$@" || exit 9; cd "$base/target" || exit 8;'
        " cat shared; echo more >>below; rm shared; echo new >new; ls; cd /;"
        ' grep -c " $base/target fuse.overlayfs " /proc/self/mounts; umount "$base/target"'
    )
    done = place.run(
        *("-o", place.options, place.target),
        command=("unshare", "-Urm", "sh", "-c", script, "sh", str(place.base), *COMMAND),
    )
    assert (done.err, done.status) == ("", 0)
    assert done.out.split() == ["of", "the", "top", "below", "new", "1"]
    assert sorted(os.listdir(place.base / "upper")) == ["below", "new", "shared"]
    assert (place.base / "upper/below").read_text() == "only below\nmore\n"
    # What the namespace's root wrote, root outside reads the same.
    place.mount("userxattr")
    assert sorted(os.listdir(place.target)) == ["below", "new"]


def run_as_user(place: Place, *arguments: str | Path) -> tuple[int, str, str]:
    done = place.run(str(USER), *arguments, command=(sys.executable, "-c", AS_USER))
    return done.status, done.out, done.err


def as_user(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, user=USER, group=USER, extra_groups=[], capture_output=True, text=True, check=False)


def test_mount_by_an_ordinary_user(user_place: Place) -> None:
    place = user_place
    assert run_as_user(place, "-o", f"{place.options},dev,suid", place.target) == (0, "", "")
    shown = place.shown()
    assert (shown.kind, shown.source) == ("fuse.overlayfs", "overlayfs")
    assert {"nosuid", "nodev", f"user_id={USER}", "default_permissions"} <= shown.options
    assert "allow_other" not in shown.options
    script = f"cd {place.target} && cat shared && echo more >>below && rm shared && mkdir new && rmdir new && ls"
    done = as_user("sh", "-c", script)
    assert (done.stdout.split(), done.stderr) == (["of", "the", "top", "below"], "")
    assert (place.base / "upper/below").read_text() == "only below\nmore\n"
    with pytest.raises(PermissionError):
        os.listdir(place.target)  # not even root, without allow_other
    assert as_user("fusermount3", "-u", place.target).returncode == 0
    assert not place.is_mounted()


def test_unmount_ends_an_ordinary_user_s_daemon(user_place: Place) -> None:
    place = user_place
    assert run_as_user(place, "-o", place.options, place.target) == (0, "", "")
    # Only the user may ask the daemon who it is.
    code = (
        f"import os, sys; os.setresgid({USER}, {USER}, {USER}); os.setresuid({USER}, {USER}, {USER});"
        "sys.stdout.buffer.write(os.getxattr(sys.argv[1], 'user.overlayfs.status'))"
    )
    status = place.run(place.target, command=(sys.executable, "-c", code))
    daemon = os.pidfd_open(json.loads(status.out)["pid"])
    place.pidfds.append(daemon)
    assert as_user("fusermount3", "-u", place.target).returncode == 0
    assert has_ended(daemon)


def test_ordinary_user_may_not_mount_on_another_s_directory(user_place: Place) -> None:
    place = user_place
    os.chown(place.target, 0, 0)
    status, out, err = run_as_user(place, "-o", place.options, place.target)
    assert (status, out, err.count("\n"), place.is_mounted()) == (1, "", 1, False)
    assert err.startswith("overlayfs-mount: ")


# What covers the program itself, and signals at a bad moment.


def copied_code(place: Place) -> tuple[Path, dict[str, str]]:
    """A copy of the package, and the environment in which that one is run."""
    code = place.base / "code"
    shutil.copytree(Path(ENVIRONMENT["PYTHONPATH"]) / "overlayfs", code / "overlayfs")
    return code, {**ENVIRONMENT, "PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}


def test_mount_over_the_program_s_own_code(place: Place) -> None:
    code, environ = copied_code(place)
    assert place.run("-o", f"lowerdir={code}", code, env=environ, cwd=Path("/")) == SILENT_SUCCESS
    assert (code / "overlayfs" / "api.py").exists()
    subprocess.run(["umount", code], check=True)


SNAPSHOTS = """
import os, sys
from overlayfs.fuse import commanding
place = os.fsencode(sys.argv[1])
for name in "abc":
    commanding.take_snapshot(place, name)
    os.mkdir(os.path.join(place, os.fsencode(name)))
commanding.drop_snapshot(place, "b")
commanding.roll_back(place, "a")
commanding.reset(place)
"""


@pytest.mark.parametrize("lane", ["on", "off"])
def test_mount_over_the_program_s_own_code_has_snapshots(lane: str, place: Place) -> None:
    code, environ = copied_code(place)
    options = f"lowerdir={code},upperdir={place.base}/upper,workdir={place.base}/work,lane={lane}"
    assert place.run("-o", options, code, env=environ, cwd=Path("/")) == SILENT_SUCCESS
    subprocess.run([sys.executable, "-c", SNAPSHOTS, code], env=ENVIRONMENT, check=True, timeout=60)
    subprocess.run(["umount", code], check=True)


BROKEN = """\
    from ..overlay.engine import Overlay as Whole

    def broken(*_):
        raise RuntimeError('a bug')

    Overlay = type("Broken", (Whole,), {"readlink": broken})
"""


@pytest.mark.parametrize("lane", ["on", "off"])
def test_bug_is_logged_and_survived_where_the_mount_covers_the_code(lane: str, place: Place) -> None:
    code, environ = copied_code(place)
    (code / "link").symlink_to("target")
    session = code / "overlayfs" / "fuse" / "session.py"
    whole = session.read_text()
    session.write_text(whole.replace("    from ..overlay.engine import Overlay\n", BROKEN))
    assert session.read_text() != whole
    environ["OVERLAYFS_LOG"] = str(place.base / "log")
    done = place.run("-o", f"lowerdir={code},lane={lane}", code, env=environ, cwd=Path("/"))
    assert done == SILENT_SUCCESS
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            (code / "link").readlink()
    logged = (place.base / "log").read_text()
    assert "RuntimeError: a bug" in logged
    assert "in broken" in logged
    subprocess.run(["umount", code], check=True)


def without_libfuse(place: Place) -> dict[str, str]:
    """An environment in which pyfuse3 cannot be imported."""
    (place.base / "fake").mkdir()
    (place.base / "fake" / "pyfuse3.py").write_text("raise ImportError('libfuse3.so.3 is missing')\n")
    return {**ENVIRONMENT, "PYTHONPATH": f"{place.base}/fake:{ENVIRONMENT['PYTHONPATH']}"}


@pytest.mark.parametrize("arguments", [(), ("-f",)])
def test_missing_library_leaves_no_mount(arguments: tuple[str, ...], place: Place) -> None:
    done = place.run(*arguments, "-o", f"{place.options},lane=off", place.target, env=without_libfuse(place))
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "libfuse3.so.3 is missing" in done.err
    assert not place.is_mounted()


def test_library_that_is_missing_when_it_is_needed_fails_that_request_alone(place: Place) -> None:
    environ = {**without_libfuse(place), "OVERLAYFS_LOG": str(place.base / "log")}
    assert place.run("-o", place.options, place.target, env=environ) == SILENT_SUCCESS
    (place.target / "d").mkdir()
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            (place.target / "d").rename(place.target / "e")
        (place.target / "d" / "f").write_text("served")
    assert "libfuse3.so.3 is missing" in (place.base / "log").read_text()


def test_signal_between_mounting_and_serving_leaves_no_mount(place: Place) -> None:
    code = """
import os, signal, sys
from overlayfs.fuse import mounting
mount = mounting.mount
def interrupted(options):
    live = mount(options)
    os.kill(os.getpid(), signal.SIGTERM)
    return live
mounting.mount = interrupted
from overlayfs.cli.mount_program import main
sys.exit(main())
"""
    done = place.run("-f", "-o", place.options, place.target, command=(sys.executable, "-c", code))
    assert done == SILENT_SUCCESS
    assert not place.is_mounted()


def test_end_of_a_covered_mount_leaves_the_one_above(place: Place) -> None:
    below = place.mount()
    assert place.run("-o", f"lowerdir={place.base}/bottom", place.target) == SILENT_SUCCESS
    above = place.daemon()
    signal.pidfd_send_signal(below, signal.SIGTERM)
    assert has_ended(below)
    assert (place.target / "shared").read_text() == "of the bottom\n"
    assert not has_ended(above, 0)


# What it says of itself.


def test_log_file_is_named_from_the_caller_s_directory_and_says_the_format(place: Place) -> None:
    environ = {**ENVIRONMENT, "OVERLAYFS_LOG": "log"}
    assert place.run("-o", place.options, place.target, env=environ, cwd=place.base) == SILENT_SUCCESS
    signal.pidfd_send_signal(place.daemon(), signal.SIGTERM)
    assert has_ended(place.pidfds[-1])
    logged = (place.base / "log").read_text()
    assert "whiteouts are written as overlay, marks as trusted.overlay." in logged
    assert "ending on SIGTERM" in logged


@pytest.mark.parametrize("arguments", [(), ("-f",)])
def test_log_file_that_cannot_be_written_is_named(arguments: tuple[str, ...], place: Place) -> None:
    environ = {**ENVIRONMENT, "OVERLAYFS_LOG": f"{place.base}/absent/log"}
    done = place.run(*arguments, "-o", place.options, place.target, env=environ)
    assert (done.status, done.out) == (1, "")
    assert done.err == f"overlayfs-mount: OVERLAYFS_LOG: {place.base}/absent/log: No such file or directory\n"
    assert not place.is_mounted()


def test_debug_says_what_is_done(place: Place) -> None:
    command = [*COMMAND, "-d", "-o", place.options, str(place.target)]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) as program:
        wait_for_mounts(place.is_mounted)
        subprocess.run(["umount", place.target], check=True)
        _, said = program.communicate(timeout=PATIENCE_S)
    assert b"DEBUG" in said
    assert b"lowers=" in said
    assert b"whiteouts are written as" in said
