"""`overlayfs run`, `ps`, `containers`, `rm`, `reset`, and `mount` and `diff` of images and containers, as root."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayfs.cli.background import wait_until_ended
from overlayfs.cli.mounts.live import mount_at, read_status
from overlayfs.container.containers import Containers
from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from overlayfs.tree.mount_table import mount_entries
from overlayfs.tree.syscalls import unmount
from tests.cli import people
from tests.cli.container.shop import Shop, await_that, descendants, first_line, is_alive
from tests.cli.people import COMMAND
from tests.container.small import image_of, link, small_image
from tests.prepared import PATIENCE_S, Prepared

RUNTIMES = ("bwrap", "runc")
CONFIG = RunConfig(
    env=["PATH=/bin", "GREETING=hello"],
    entrypoint=["sh", "-c"],
    cmd=["id -un; pwd; echo $GREETING"],
    working_dir="/work",
    user="bob",
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    top = tmp_path_factory.mktemp("shop")
    path = top / "store"
    with Store.open(path) as store:
        unpack_image(store, small_image(store))
        small = store.find("small")
        base = small.config.config
        assert base is not None
        image_of(store, "configured", CONFIG, {}, base=small)
        image_of(store, "hostile", RunConfig(cmd=["sh"]), {"proc": link("proc", "/tmp")}, base=small)
        once = {"f": b"twice\n"}
        image_of(store, "repeated", RunConfig(cmd=["sh"]), once, {"f": b"once\n", "g": b"once\n"}, once, base=small)
        image_of(store, "other", RunConfig(cmd=["sh"]), {"other": b""}, base=small)
    with Prepared() as prepared:
        yield Shop(path, prepared)


@pytest.fixture
def clean(shop: Shop) -> Iterator[Shop]:
    """No test leaves a container behind for the next."""
    yield shop
    with Store.open(shop.store) as store:
        for container in Containers(store).listed():
            Containers(store).take_away(container)


# -- what runs


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_image_says_what_runs_as_whom_and_where(clean: Shop, runtime: str) -> None:
    assert clean.run("run", "--rm", "--runtime", runtime, "configured") == "bob\n/work\nhello\n"
    options = ("-e", "GREETING=bye", "-w", "/tmp", "-u", "7:8", "--entrypoint", "sh")
    said = clean.run("run", "--rm", "--runtime", runtime, *options, "configured", "-c", "id; pwd; echo $GREETING")
    assert said == "uid=7 gid=8 groups=8\n/tmp\nbye\n"
    assert clean.names == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_user_has_the_images_groups_and_no_capabilities(clean: Shop, runtime: str) -> None:
    said = clean.sh("id; cat /proc/self/status; touch /tmp/x; stat -c %u:%g /tmp/x", "-u", "bob", "--runtime", runtime)
    assert said.startswith("uid=33(bob) gid=44(bobs) groups=44(bobs),50(others)\n")
    assert "CapEff:\t0000000000000000" in said and said.endswith("33:44\n")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_root_has_the_capabilities_that_docker_leaves(clean: Shop, runtime: str) -> None:
    assert "CapEff:\t00000000a80425fb" in clean.sh("cat /proc/self/status", "--runtime", runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("options", [("-h", "web.example"), ("-hweb.example",), ("--hostname=web.example",)])
def test_host_name_may_be_given(clean: Shop, runtime: str, options: tuple[str, ...]) -> None:
    script = "cat /proc/sys/kernel/hostname; echo $HOSTNAME"
    assert clean.sh(script, *options, "--runtime", runtime) == "web.example\n" * 2
    assert clean.run("run", "--name", "box", "--runtime", runtime, "small", "sh", "-c", script) == "box\n" * 2


def test_bad_host_name_is_refused_before_a_container_is_made(clean: Shop) -> None:
    assert "'a b' is no host name" in clean.refuses("run", "-h", "a b", "small", "sh", status=125)
    assert clean.names == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_image_may_have_a_layer_twice(clean: Shop, runtime: str, mountpoint: Path) -> None:
    assert clean.run("run", "--rm", "--runtime", runtime, "repeated", "cat", "/f", "/g") == "twice\nonce\n"
    clean.run("mount", "repeated", mountpoint)
    assert ((mountpoint / "f").read_text(), (mountpoint / "g").read_text()) == ("twice\n", "once\n")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_exit_status_is_the_programs(clean: Shop, runtime: str) -> None:
    clean.sh("exit 7", "--runtime", runtime, status=7)
    clean.sh("kill -KILL $$" if runtime == "bwrap" else "exit 137", "--runtime", runtime, status=137)


def test_what_cannot_be_run_has_dockers_statuses(clean: Shop) -> None:
    assert "'nothing' is not in the image" in clean.refuses("run", "--rm", "small", "nothing", status=127)
    assert "/etc/passwd in the image is not executable" in clean.refuses("run", "small", "/etc/passwd", status=126)
    assert "no image 'absent'" in clean.refuses("run", "absent", status=125)
    assert "no user 'nobody'" in clean.refuses("run", "--rm", "-u", "nobody", "small", status=125)
    assert "is no volume" in clean.refuses("run", "-v", "x:x", "small", status=125)


def test_program_reads_our_input(clean: Shop) -> None:
    with clean.start("--rm", "small", "cat", stdin=subprocess.PIPE) as process:
        assert process.communicate("to and fro", PATIENCE_S)[0] == "to and fro"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_program_may_lie_in_a_volume_and_volumes_in_each_other(clean: Shop, runtime: str, tmp_path: Path) -> None:
    (tmp_path / "outer/inner").mkdir(parents=True)
    (tmp_path / "outer/program").write_text("#!/bin/sh\nls /v/inner\n")
    (tmp_path / "outer/plain").touch()
    (tmp_path / "outer/program").chmod(0o755)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/seen").touch()
    words = ("-v", f"{tmp_path}/other:/v/inner", "-v", f"{tmp_path}/outer:/v", "--runtime", runtime, "small")
    assert clean.run("run", "--rm", *words, "/v/program") == "seen\n"
    assert clean.run("run", "--rm", "-w", "/v", *words, "./program") == "seen\n"
    assert "not executable" in clean.refuses("run", "--rm", *words, "/v/plain", status=126)
    assert "not in the image" in clean.refuses("run", "--rm", *words, "/v/none", status=127)


def test_words_that_are_no_text_are_passed_on_or_refused(clean: Shop, mountpoint: Path) -> None:
    odd = os.fsdecode(b"\xff")
    with clean.start("--name", "box", "small", "sh", "-c", "printf %s $0", odd, errors="surrogateescape") as process:
        assert process.communicate(timeout=PATIENCE_S) == (odd, "")
    assert clean.answer("ps", "-a")[0]["command"][-1] == odd
    assert "bwrap" in clean.refuses("run", "--rm", "--runtime", "runc", "small", "sh", odd, status=125)
    place = mountpoint / odd
    place.mkdir()
    clean.run("mount", "small", place, "--rw", "--name", "box")
    assert clean.answer("ps")[0]["mountpoint"] == str(place)
    clean.run("umount", place)
    place.rmdir()
    assert "UTF-8" in clean.refuses("commit", "box", "x", "-m", odd)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_streams_that_the_caller_closed_lead_nowhere(clean: Shop, runtime: str) -> None:
    words = [
        *COMMAND,
        "--store",
        str(clean.store),
        "run",
        "--rm",
        "--runtime",
        runtime,
        "small",
        "sh",
        "-c",
        "cat; echo x",
    ]
    shell = ["sh", "-c", 'exec "$@" 0<&- 2>&-', "sh", *words]
    done = subprocess.run(shell, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (0, b"x\n")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_volumes_and_read_only(clean: Shop, runtime: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine\n")
    script = "cat /v/file /f; touch /new /ro/x /v/x 2>/dev/null; ls /v"
    volumes = ("-v", f"{tmp_path}:/v", "-v", f"{tmp_path}:/ro:ro", "-v", f"{tmp_path}/file:/f")
    assert clean.sh(script, *volumes, "--read-only", "--runtime", runtime) == "mine\nmine\nfile\nx\n"
    assert sorted(os.listdir(tmp_path)) == ["file", "x"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_without_network_there_is_only_the_loopback(clean: Shop, runtime: str) -> None:
    lines = clean.sh("cat /proc/net/dev", "--network", "none", "--runtime", runtime).splitlines()
    assert [line.split(":")[0].strip() for line in lines[2:]] == ["lo"]


def test_sandbox_sees_its_own_processes_only(clean: Shop) -> None:
    assert set(clean.sh("ls -d /proc/[0-9]*").split()) <= {f"/proc/{pid}" for pid in range(1, 6)}


def test_place_of_proc_that_links_elsewhere_is_refused(clean: Shop) -> None:
    assert "/proc in the image is a symlink" in clean.refuses("run", "--rm", "hostile", status=125)


# -- what is kept


def test_changes_stay_in_the_named_container(clean: Shop) -> None:
    clean.run("run", "--name", "box", "small", "sh", "-c", "echo kept >/tmp/file; rm /etc/group")
    assert clean.run("run", "--name", "box", "small", "cat", "/tmp/file") == "kept\n"
    assert clean.run("diff", "box") == "D /etc/group\nA /tmp/file\n"
    (row,) = clean.answer("containers")
    assert (row["name"], row["image"], row["status"], row["exit_status"]) == ("box", "small:latest", "exited", 0)
    assert clean.answer("ps") == []
    clean.run("reset", "box")
    assert clean.run("diff", "box") == ""
    clean.run("rm", row["id"][:12])
    assert clean.names == []


def test_run_that_changes_nothing_leaves_nothing(clean: Shop, tmp_path: Path) -> None:
    clean.run("run", "--name", "box", "-v", f"{tmp_path}:/some/where", "-w", "/new", "small", "pwd")
    assert clean.run("diff", "box") == ""


def test_container_of_another_image_or_kept_one_is_not_taken(clean: Shop) -> None:
    clean.run("run", "--name", "box", "small", "pwd")
    assert "on another image, small:latest" in clean.refuses("run", "--name", "box", "other", status=125)
    assert "box exists already" in clean.refuses("run", "--rm", "--name", "box", "small", status=125)
    assert clean.names == ["box"]


def test_several_are_removed_whatever_becomes_of_one(clean: Shop) -> None:
    for name in ("a", "b"):
        clean.run("run", "--name", name, "small", "pwd")
    done = clean.call("rm", "a", "absent", "b")
    assert (done.status, done.out) == (1, "a\nb\n")
    assert "no container 'absent'" in done.err
    assert clean.run("rm", "--force", "absent") == ""
    assert clean.names == []


def test_prune_takes_those_that_the_filters_choose(clean: Shop) -> None:
    clean.run("create", "--name", "a", "--label", "x=y", "small")
    clean.run("create", "--name", "b", "small")
    assert clean.run("container", "prune", "--filter", "label=x=z") == ""
    assert clean.run("container", "prune", "--filter", "until=1h") == ""
    assert "is no time" in clean.refuses("container", "prune", "--filter", "until=now")
    clean.run("container", "prune", "--filter", "label!=x")
    assert clean.names == ["a"]
    clean.run("container", "prune", "--filter", "label=x=y", "--filter", "until=0s")
    assert clean.names == []


# -- the log


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_output_in_the_foreground_is_logged(clean: Shop, runtime: str) -> None:
    words = ("run", "--name", "box", "--user", "bob", "--runtime", runtime, "small", "sh", "-c")
    done = clean.call(*words, "read x; echo $x >/dev/stdout; echo err >&2; printf end; exit 3", typed="typed\n")
    assert (done.status, done.out, done.err) == (3, "typed\nend", "err\n")
    again = clean.call("logs", "box")
    assert (again.out, again.err) == (done.out, done.err)
    clean.run(*words, "echo; echo more")
    assert clean.run("logs", "--tail", "1", "box") == "more\n"


def test_streams_that_lead_to_one_place_keep_their_order(clean: Shop) -> None:
    script = "for x in 1 2 3 4 5 6 7 8 9; do echo $x; echo -$x >&2; done"
    words: list[str | Path] = [*COMMAND, "--store", clean.store, "run", "--name", "box", "small", "sh", "-c", script]
    both = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
    assert both == "".join(f"{number}\n-{number}\n" for number in range(1, 10))
    assert clean.run("logs", "box") == both


def test_output_that_nobody_takes_ends_the_program_and_output_that_is_lost_is_reported(clean: Shop) -> None:
    with clean.start("--name", "box", "small", "sh", "-c", "while :; do echo y; done") as process:
        assert first_line(process) == "y" and process.stdout is not None
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGPIPE
    words: list[str | Path] = [*COMMAND, "--store", clean.store, "run", "--name", "full", "small", "pwd"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 125 and "could not be passed on: No space left" in done.stderr
    assert (clean.run("logs", "full"), clean.run("wait", "full")) == ("/\n", "0\n")


def test_without_a_log_the_program_has_our_output_itself(clean: Shop, tmp_path: Path) -> None:
    words = ("run", "--name", "box", "--log-driver", "none", "small", "sh", "-c", "stat -Lc %i /dev/stdout")
    with (tmp_path / "out").open("w+b") as out:
        subprocess.run([*COMMAND, "--store", clean.store, *words], stdout=out, check=True)
        out.seek(0)
        assert int(out.read()) == os.fstat(out.fileno()).st_ino
    assert "--log-driver none" in clean.refuses("logs", "box")


def test_passing_container_in_the_foreground_has_no_log(clean: Shop) -> None:
    with clean.start("--rm", "--name", "box", "small", "sh", "-c", "echo up; read x", stdin=subprocess.PIPE) as process:
        assert first_line(process) == "up"
        assert "with --rm" in clean.refuses("logs", "box")
        process.communicate("\n", timeout=PATIENCE_S)


# -- signals and ends


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_signals_are_passed_on(clean: Shop, runtime: str) -> None:
    script = "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    with clean.start("--rm", "--runtime", runtime, "small", "sh", "-c", script) as process:
        assert first_line(process) == "ready"
        process.terminate()
        assert process.communicate(timeout=PATIENCE_S) == ("asked\n", "")
        assert process.returncode == 5
    assert clean.names == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_killed_run_leaves_nothing_behind(clean: Shop, runtime: str) -> None:
    before = {entry.mount_id for entry in mount_entries()}
    with clean.start(
        "--rm", "--name", "box", "--runtime", runtime, "small", "sh", "-c", "echo up; sleep 3333"
    ) as process:
        assert first_line(process) == "up"
        (row,) = clean.answer("ps")
        assert (row["name"], row["status"], row["pid"]) == ("box", "running", process.pid)
        assert {entry.mount_id for entry in mount_entries()} <= before
        family = descendants(process.pid)
        assert len(family) >= 3
        process.kill()
        await_that(lambda: not any(map(is_alive, family)))
    await_that(lambda: clean.names == [])


def test_container_with_a_damaged_record_holds_no_other_up(clean: Shop) -> None:
    clean.run("create", "--name", "broken", "small", "true")
    clean.run("create", "--name", "box", "small", "sh", "-c", "exit 3")
    record = clean.store / "containers" / "broken" / "container.json"
    record.write_bytes(b"")
    clean.sh("true")
    image = clean.run("inspect", "small", "--format", "{{.Id}}").strip().removeprefix("sha256:")
    clean.run("export", image[:12], "-o", clean.store.parent / "exported.tar")  # an ID that is no container's
    clean.run("start", "box")
    assert clean.run("wait", "box") == "3\n"
    for words in (("ps", "-a", "-q"), ("ps", "-a", "--json"), ("container", "prune")):
        done = clean.call(*words)
        assert done.status == 1 and done.out and f"{record} is damaged" in done.err and done.err.count("\n") == 1
    for words in (("rm", "broken"), ("inspect", "broken"), ("cp", "broken:/bin", ".")):
        assert f"{record} is damaged" in clean.refuses(*words)
    assert clean.run("inspect", "-f", "{{index .RepoTags 0}}", "small") == "small:latest\n"
    shutil.rmtree(record.parent)
    assert clean.run("ps", "-a", "-q") == ""


def test_path_that_runc_makes_after_its_container_was_removed_takes_no_name(clean: Shop) -> None:
    containers = clean.store / "containers"
    (containers / "box/bundle/state").mkdir(parents=True)
    assert clean.run("run", "--rm", "--name", "box", "small", "pwd") == "/\n"
    (containers / "box/bundle/state").mkdir(parents=True)
    clean.refuses("rm", "box")
    assert clean.names == []
    (containers / "box/upper").mkdir(parents=True)  # whose record was lost
    (containers / "box/upper/kept").touch()
    clean.run("ps")
    assert (containers / "box/upper/kept").exists()
    shutil.rmtree(containers / "box")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_only_the_programs_changes_count_also_while_it_runs_or_after_it_was_killed(
    clean: Shop, runtime: str, tmp_path: Path
) -> None:
    words = ("--name", "box", "--runtime", runtime, "-v", f"{tmp_path}:/some/where", "small")
    with clean.start(*words, "sh", "-c", "touch /new; echo up; sleep 3333") as process:
        assert first_line(process) == "up"
        family = descendants(process.pid)
        assert clean.run("diff", "box") == "A /new\n"
        clean.run("commit", "box", "running")
        assert clean.run("diff", "small", "running") == "A /new\n"
        process.kill()
    await_that(lambda: not any(map(is_alive, family)))
    assert clean.run("diff", "box") == "A /new\n"
    assert clean.run("logs", "box") == "up\n"
    clean.run("export", "box", "-o", tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert "new" in tar.getnames() and "some" not in tar.getnames()
    clean.run("run", *words, "ls", "/new")
    assert set(os.listdir(clean.store / "containers/box/upper")) <= {"etc", "new"}


@contextmanager
def another_mount(base: Path) -> Iterator[Path]:
    """A mount of ours that has nothing to do with any container: where."""
    for name in ("lower", "upper", "work", "other"):
        (base / name).mkdir()
    mount = base / "other"
    words = ("--upper", base / "upper", "--work", base / "work", mount)
    people.run("mount", "--lower", base / "lower", *words)
    try:
        yield mount
    finally:
        while os.path.ismount(mount):
            unmount(os.fsencode(mount), lazy=True)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_running_container_holds_no_other_mount_of_the_host(clean: Shop, runtime: str, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    words = ("--rm", "--runtime", runtime, "-v", f"{volume}:/volume", "small", "sh", "-c")
    script = "echo up; read -r _; echo kept > /volume/kept; cat /proc/self/mountinfo"
    with another_mount(tmp_path) as mount:
        subprocess.run(["mount", "-t", "tmpfs", "none", volume], check=True)
        daemon = os.pidfd_open(read_status(os.fsencode(mount)).pid)
        try:
            with clean.start(*words, script, stdin=subprocess.PIPE) as process:
                assert first_line(process) == "up"
                people.run("umount", mount)  # which fails where somebody else holds the mount
                assert wait_until_ended(daemon, PATIENCE_S)
                out, err = process.communicate("go on\n", timeout=PATIENCE_S)
                assert (process.returncode, err) == (0, "")
                assert str(tmp_path / "other") not in out
            assert (volume / "kept").read_text() == "kept\n"
        finally:
            os.close(daemon)
            unmount(os.fsencode(volume))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_container_that_runs_in_the_foreground_is_reset_and_goes_on(clean: Shop, runtime: str) -> None:
    look = "cat /etc/group /proc/self/mountinfo; ls -d /new /tmp 2>/dev/null"
    script = f"{look}; rm -r /etc/group /tmp; mkdir /new; echo up; read line; {look}; mkdir /since"
    words = ("--name", "box", "--runtime", runtime, "-i", "-w", "/work", "small", "sh", "-c", script)
    with clean.start(*words, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        before = "".join(iter(process.stdout.readline, "up\n"))
        clean.run("reset", "box")
        out, err = process.communicate("go on\n", timeout=PATIENCE_S)
    assert (out, err, process.returncode) == (before, "", 0)
    assert clean.run("diff", "box") == "A /since/\n"
    clean.run("reset", "box")
    assert clean.run("diff", "box") == ""


def test_running_container_is_removed_by_force_only(clean: Shop) -> None:
    with clean.start("--name", "box", "small", "sh", "-c", "echo up; sleep 3333") as process:
        assert first_line(process) == "up"
        assert "box is running" in clean.refuses("rm", "box")
        assert "box is running" in clean.refuses("run", "--name", "box", "small", status=125)
        clean.run("rm", "-f", "box")
        assert process.wait(PATIENCE_S) == 143
    assert clean.names == []


# -- mounts


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while os.path.ismount(path):
        unmount(os.fsencode(path), lazy=True)


def test_image_is_mounted_read_only(clean: Shop, mountpoint: Path) -> None:
    clean.run("mount", "configured", mountpoint)
    assert {"bin", "etc", "tmp"} <= set(os.listdir(mountpoint))
    with pytest.raises(OSError, match="Read-only"):
        (mountpoint / "new").touch()
    with Store.open(clean.store) as store:
        (use,) = store.mounts().values()
        assert use.mountpoint == str(mountpoint) and len(use.layers) == 2
    clean.run("umount", mountpoint)
    with Store.open(clean.store) as store:
        assert store.mounts() == {}


def test_passing_container_goes_with_its_mount(clean: Shop, mountpoint: Path) -> None:
    clean.run("mount", "small", mountpoint, "--rw")
    (mountpoint / "new").touch()
    assert clean.run("diff", mountpoint) == "A /new\n"
    (row,) = clean.answer("ps")
    assert (row["status"], row["mountpoint"]) == ("mounted", str(mountpoint))
    clean.run("umount", mountpoint)
    await_that(lambda: clean.names == [])


def test_named_container_is_mounted_and_run_in_turn(clean: Shop, mountpoint: Path) -> None:
    clean.run("mount", "small", mountpoint, "--rw", "--name", "box")
    (mountpoint / "new").write_text("from the mount\n")
    assert f"box is mounted on {mountpoint}" in clean.refuses("run", "--name", "box", "small", status=125)
    clean.run("reset", "box")
    assert not (mountpoint / "new").exists()
    (mountpoint / "new").write_text("since the reset\n")
    assert clean.run("diff", "box") == "A /new\n"
    clean.run("umount", mountpoint)
    assert clean.run("run", "--name", "box", "small", "cat", "/new") == "since the reset\n"
    clean.run("mount", "small", mountpoint, "--rw", "--name", "box")
    clean.run("rm", "--force", "box")
    assert clean.names == [] and mount_at(os.fsencode(mountpoint)) is None


def test_failed_mount_leaves_no_container(clean: Shop, tmp_path: Path) -> None:
    assert "does not exist" in clean.refuses("mount", "small", tmp_path / "absent", "--rw")
    assert clean.names == []
    with Store.open(clean.store) as store:
        assert store.mounts() == {}


@pytest.mark.parametrize(
    "words",
    [("small", "m", "--name", "x"), ("m", "--rw"), ("small", "m", "--rw", "-r"), ("small", "m", "--rw", "-l", "/")],
)
def test_words_that_do_not_go_together(clean: Shop, words: tuple[str, ...]) -> None:
    clean.refuses("mount", *words, status=2)


def test_mount_in_the_foreground_gives_its_container_up(clean: Shop, mountpoint: Path) -> None:
    command: list[str | Path] = [*COMMAND, "--store", clean.store, "mount", "small", mountpoint, "--rw", "--foreground"]
    with subprocess.Popen(command) as process:
        await_that(lambda: os.path.ismount(mountpoint))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert clean.names == []


def test_ps_selects_and_prints_as_docker_does(clean: Shop) -> None:
    clean.run("create", "--name", "web", "-l", "a=b", "-l", "c", "small", "true")
    clean.run("create", "--name", "box", "-l", "a=x", "small", "true")

    def names(*filters: str) -> list[str]:
        words = [word for text in filters for word in ("--filter", text)]
        return sorted(clean.run("ps", "-a", *words, "--format", "{{.Names}}").splitlines())

    assert names("name=we") == names("label=a=b") == names("label=a", "label=c") == ["web"]
    assert names("name=web", "name=box") == names("label=a") == names("ancestor=small") == ["box", "web"]
    assert names("status=running") == names("name=^o") == names("name=web", "label=a=x") == []
    assert clean.run("ps", "-f", "status=created", "-f", "name=web", "--format", r"{{.State}}\t{{ .Labels }}") in (
        "created\ta=b,c=\n"
    )
    assert [row["name"] for row in json.loads(clean.run("ps", "-af", "name=web", "--format", "json"))] == ["web"]
    assert clean.run("images", "--format", "{{.Repository}}:{{.Tag}}", "small") == "small:latest\n"
    assert clean.run("inspect", "-f", "{{index .RepoTags 0}}", "small", "other") == "small:latest\nother:latest\n"
    wrong = ("name", "x=y", "name=(", "status=exists", "health=good", "exited=well", "since=nobody")
    for words in (*(("-f", text) for text in wrong), ("--format", "{{.X}}"), ("--format", "{{if}}")):
        assert clean.refuses("ps", "-a", *words)


def test_ps_selects_by_end_age_volume_and_network(clean: Shop) -> None:
    clean.run("run", "--name", "old", "-v", "kept:/data", "small", "sh", "-c", "exit 3", status=3)
    clean.run("create", "--name", "new", "--network", "none", "small", "true")

    def names(text: str) -> list[str]:
        return clean.run("ps", "-aqf", text).splitlines()

    assert names("exited=3") == names("volume=kept") == names("volume=/data") == names("network=host") == ["old"]
    assert names("before=new") == ["old"] and names("since=old") == names("network=none") == ["new"]
    assert names("exited=0") == names("since=new") == names("status=dead") == []


def test_format_of_a_table_has_headings(clean: Shop) -> None:
    clean.run("create", "--name", "a-longer-name", "small", "true")
    clean.run("create", "--name", "box", "small", "true")
    wanted = r"table {{.Names}}\t{{.State}}\t{{.CreatedAt}}"
    lines = clean.run("ps", "-a", "--format", wanted).splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["NAMES", "STATE"],
        ["box", "created"],
        ["a-longer-name", "created"],
    ]
    assert lines[0].endswith("STATE    CREATED AT") and {line.find("created") for line in lines[1:]} == {15}
    assert clean.run("ps", "--format", wanted).split() == ["NAMES", "STATE", "CREATED", "AT"]
    assert clean.run("images", "small", "--format", "table {{.Repository}}") == "REPOSITORY\nsmall\n"
    assert clean.refuses("ps", "--format", "table {{if}}")


def test_lines_of_a_file_of_variables_end_as_docker_has_it(clean: Shop, tmp_path: Path) -> None:
    file = tmp_path / "variables"
    file.write_bytes("\ufeffFIRST=1\r\n  # none\n\tSECOND=2\x0c\u2028end\nUNSET-HERE\n".encode())
    script = "echo $FIRST; echo $SECOND"
    assert clean.sh(script, "--env-file", file) == "1\n2\x0c\u2028end\n"
