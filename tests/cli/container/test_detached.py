"""Containers that outlive their command: run -d, create, start, stop, kill, wait, exec, logs, attach, rename, top."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from overlayfs.container.containers import Containers
from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from overlayfs.overlay.history import uppers
from tests.cli.container.shop import Shop, await_that, descendants, is_alive
from tests.cli.people import COMMAND
from tests.container.small import image_of, small_image
from tests.prepared import PATIENCE_S, Prepared

ENDLESS = "while :; do sleep 0.05; done"
OBEDIENT = f"trap 'echo asked; exit 5' TERM; echo ready; {ENDLESS}"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    # conmon's and slirp4netns's sockets are reached whatever the length of the path
    path = tmp_path_factory.mktemp("shop") / ("long" * 20) / "store"
    path.parent.mkdir()
    with Store.open(path) as store:
        unpack_image(store, small_image(store))
        small = store.find("small")
        base = small.config.config
        config = RunConfig(env=base.env, cmd=["sh", "-c", OBEDIENT], labels={"a": "image"}, stop_signal="SIGUSR1")
        image_of(store, "labelled", config, {}, base=small)
        image_of(store, "empty", RunConfig(), {}, base=small)
    with Prepared() as prepared:
        yield Shop(path, prepared)


def log_of(shop: Shop, name: str, wanted: str) -> None:
    """Wait for a line in the log."""
    await_that(lambda: wanted in shop.run("logs", name).splitlines())


def status_of(shop: Shop, name: str) -> str:
    return str(shop.answer("inspect", "--type", "container", name)[0]["State"]["Status"])


def keeper_of(shop: Shop, name: str) -> int:
    (row,) = [row for row in shop.answer("ps", "-a") if row["name"] == name]
    return int(row["pid"])


def test_container_is_started_after_a_copy_to_it(live: Shop) -> None:
    live.run("create", "--name", "box", "small", "sh", "-c", ENDLESS)
    with live.start_command("cp", "-", "box:/tmp", stdin=subprocess.PIPE) as copying:
        await_that(lambda: live.answer("ps", "-a")[0]["pid"] is not None)
        assert live.run("stop", "box") == "box\n" and status_of(live, "box") == "created"
        with live.start_command("start", "box") as starting:
            copying.communicate("\0" * 10240)
            assert (copying.returncode, starting.wait()) == (0, 0)
    assert status_of(live, "box") == "running"


# -- reset while it runs

CHANGES = "echo changed >/etc/passwd; rm /etc/group; mkdir -p /new/deep; rm -rf /tmp;"
OTHERS = """
exec 3>/etc/open; echo before >&3; echo again >>/volume/file; touch /scratch/file
"""
LOOK = """
cat /etc/group; ls -d /new /etc/open /tmp 2>/dev/null
cat /proc/self/comm /etc/hostname; test -c /dev/null && test -d /sys/fs && test -s /etc/hosts && echo all
cat /volume/file /some/where/file; ls /scratch; pwd; cat /proc/self/mountinfo
"""


def test_running_container_is_reset_and_goes_on(live: Shop, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    passwd, group = live.run("run", "--rm", "small", "sh", "-c", "cat /etc/passwd; echo; cat /etc/group").split("\n\n")
    go_on = "echo after >&3; cat /etc/passwd; echo more >/tmp/more"
    script = f"cat /proc/self/mountinfo; {OTHERS} {CHANGES} echo up; trap '{go_on}' USR1; {ENDLESS}"
    volumes = ("-v", f"{tmp_path}:/some/where", "-v", "named:/volume", "--tmpfs", "/scratch", "-w", "/work/dir")
    live.run("run", "-d", "--name", "box", *volumes, "small", "sh", "-c", script)
    log_of(live, "box", "up")
    mounts = live.run("logs", "box").removesuffix("up\n")
    seen = f"{group}/tmp\ncat\nbox\nall\nagain\nof the host\nfile\n/work/dir\n{mounts}"
    for changes in (CHANGES, ""):
        live.run("reset", "box")
        assert live.run("diff", "box") == ""
        assert live.run("exec", "box", "sh", "-c", f"{LOOK} {changes}") == seen
    live.run("reset", "box")
    live.run("kill", "-s", "USR1", "box")
    await_that(lambda: live.run("logs", "box") == f"{mounts}up\n{passwd}\n")
    live.run("stop", "-t", "0", "box")
    assert live.run("diff", "box") == "A /tmp/more\n"
    *_, (_, layer) = uppers(bytes(live.store / "containers/box/upper"), bytes(live.store / "containers/box/work"))
    assert sorted(os.listdir(layer)) == [b"etc", b"tmp"] and os.listdir(layer + b"/etc") == []
    live.run("rm", "box")
    live.run("volume", "rm", "named")


# -- the story


def test_container_is_run_looked_into_changed_stopped_and_started_again(live: Shop) -> None:
    identity = live.run("run", "-d", "--name", "web", "small", "sh", "-c", OBEDIENT).strip()
    assert re.fullmatch(r"[0-9a-f]{64}", identity)
    log_of(live, "web", "ready")
    assert live.run("exec", "web", "sh", "-c", "echo changed >/tmp/file; id -u") == "0\n"
    assert live.run("exec", identity[:12], "cat", "/tmp/file") == "changed\n"
    assert live.run("diff", "web") == "A /tmp/file\n"
    assert live.run("stop", "web") == "web\n"
    assert status_of(live, "web") == "exited"
    assert live.run("logs", "web") == "ready\nasked\n"
    assert live.run("wait", "web") == "5\n"
    assert live.run("start", "web") == "web\n"
    assert live.run("exec", "web", "cat", "/tmp/file") == "changed\n"
    await_that(lambda: live.run("logs", "web") == "ready\nasked\nready\n")
    live.run("commit", "web", "changed")
    live.run("rm", "--force", "web")
    assert live.run("run", "--rm", "changed", "cat", "/tmp/file") == "changed\n"
    live.run("rmi", "changed")


def test_created_container_waits_for_its_start(live: Shop) -> None:
    live.run("create", "--name", "box", "-e", "A=b", "small", "sh", "-c", "echo $A; exit 3")
    assert status_of(live, "box") == "created"
    assert live.run("logs", "box") == "" and live.run("ps") == ""
    assert live.run("start", "--attach", "box", status=3) == "b\n"
    assert live.run("wait", "box") == "3\n"
    assert live.run("start", "-a", "box", status=3) == "b\n"
    assert live.run("logs", "box") == "b\nb\n"


def test_passing_container_is_waited_for_although_it_disappears(live: Shop) -> None:
    live.run("run", "-d", "--rm", "--name", "box", "small", "sh", "-c", f"trap 'exit 9' TERM; echo up; {ENDLESS}")
    log_of(live, "box", "up")
    waiting = live.start_command("wait", "box")
    # it holds the container's status before the container goes
    await_that(lambda: any("status" in os.readlink(f"/proc/{waiting.pid}/fd/{fd}") for fd in open_fds(waiting.pid)))
    live.run("stop", "box")
    with waiting:
        assert waiting.communicate(timeout=PATIENCE_S) == ("9\n", "")
    assert live.names == []


def open_fds(pid: int) -> list[str]:
    return [fd for fd in os.listdir(f"/proc/{pid}/fd") if os.path.islink(f"/proc/{pid}/fd/{fd}")]


@pytest.mark.parametrize("way", [(), ("-d",)])
def test_status_of_a_program_that_cannot_begin_is_kept(live: Shop, way: tuple[str, ...]) -> None:
    for name, path, status in (("box", "nope", 127), ("other", "/etc", 126)):
        live.refuses("run", *way, "--name", name, "small", path, status=status)
        assert live.run("wait", name) == f"{status}\n"
        assert json.loads(live.run("inspect", name))[0]["State"]["ExitCode"] == status


def test_failing_start_is_told_with_dockers_status_and_leaves_nothing_live(live: Shop) -> None:
    assert "'nope' is not in the image" in live.refuses("run", "-d", "--rm", "small", "nope", status=127)
    assert "is not executable" in live.refuses("run", "-d", "--rm", "small", "/etc/passwd", status=126)
    assert "no user 'nobody'" in live.refuses("run", "-d", "--rm", "-u", "nobody", "small", status=125)
    assert live.names == []
    assert "needs runc" in live.refuses("run", "-d", "--runtime", "bwrap", "small", status=125)


# -- stop, kill, and what they leave


def test_twenty_containers_are_stopped_at_once(live: Shop, tmp_path: Path) -> None:
    names = [f"box{number}" for number in range(20)]
    # each ends once all have been asked to
    gather = "touch /all/$HOSTNAME; set -- /all/*; while test $# -lt 20; do sleep 0.05; set -- /all/*; done; exit 4"
    for name in names:
        options = ("-d", "--name", name, "-v", f"{tmp_path}:/all")
        live.run("run", *options, "small", "sh", "-c", f"trap '{gather}' TERM; echo ready; {ENDLESS}")
    for name in names:
        log_of(live, name, "ready")
    assert live.run("stop", "--time", str(PATIENCE_S), *names).split() == names
    assert live.run("wait", *names).split() == ["4"] * 20
    with Store.open(live.store) as store:
        assert not any(one.is_in_use for one in Containers(store).listed())


def test_program_that_does_not_listen_is_killed(live: Shop) -> None:
    live.run("run", "-d", "--name", "deaf", "--stop-timeout", "0", "small", "sh", "-c", f"trap '' TERM; {ENDLESS}")
    assert live.run("stop", "deaf") == "deaf\n"
    assert live.run("wait", "deaf") == "137\n"


def test_stop_signal_is_the_options_or_the_images(live: Shop) -> None:
    script = f"trap 'exit 1' USR1; trap 'exit 2' HUP; echo ready; {ENDLESS}"
    live.run("run", "-d", "--name", "a", "labelled", "sh", "-c", script)
    live.run("run", "-d", "--name", "b", "--stop-signal", "HUP", "labelled", "sh", "-c", script)
    for name in ("a", "b"):
        log_of(live, name, "ready")
    live.run("stop", "a", "b")
    assert live.run("wait", "a", "b") == "1\n2\n"


def test_signals_reach_programs_in_background_and_foreground(live: Shop) -> None:
    live.run("run", "-d", "--name", "box", "small", "sh", "-c", f"trap 'echo hup' HUP; echo ready; {ENDLESS}")
    log_of(live, "box", "ready")
    live.run("kill", "-s", "HUP", "box")
    log_of(live, "box", "hup")
    live.run("kill", "box")
    assert status_of(live, "box") == "exited" and live.run("wait", "box") == "137\n"
    assert "is not running" in live.refuses("kill", "box")
    with live.start("--name", "front", "small", "sh", "-c", f"trap 'exit 6' TERM; echo up; {ENDLESS}") as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        live.run("stop", "front")
        assert process.wait(PATIENCE_S) == 6


@pytest.mark.parametrize("victim", ["keeper", "conmon", "tree", "all"])
def test_killed_helper_leaves_no_process_and_no_mount(live: Shop, victim: str) -> None:
    live.run("run", "-d", "--name", "box", "small", "sh", "-c", ENDLESS)
    keeper = keeper_of(live, "box")
    program = live.answer("inspect", "--type", "container", "box")[0]["State"]["Pid"]
    family = {*descendants(keeper), keeper, program}
    children = [int(word) for word in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()]
    (conmon,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "conmon\n"]
    (janitor,) = [pid for pid in children if is_janitor_of(pid, keeper)]
    (tree,) = set(children) - {conmon, janitor}
    chosen = {"keeper": [keeper], "conmon": [conmon], "tree": [tree], "all": [janitor, keeper]}[victim]
    for pid in chosen:
        os.kill(pid, signal.SIGKILL)
    if victim == "tree":
        live.run("kill", "box")
    if victim == "all":
        await_that(lambda: not is_alive(keeper))
        live.run("ps")  # the next command cleans up
    await_that(lambda: not any(map(is_alive, family)))
    await_that(lambda: status_of(live, "box") == "exited")
    assert live.run("start", "box") == "box\n"
    assert live.run("exec", "box", "pwd") == "/\n"


@pytest.mark.parametrize("words", [("rm",), ("start",), ("rename", "box", "other"), ("reset",)])
def test_program_that_outlives_all_of_ours_ends_before_the_next_use(live: Shop, words: tuple[str, ...]) -> None:
    live.run("run", "-d", "--name", "box", "small", "sh", "-c", ENDLESS)
    keeper = keeper_of(live, "box")
    family = {*descendants(keeper), keeper, live.answer("inspect", "--type", "container", "box")[0]["State"]["Pid"]}
    (janitor,) = [pid for pid in family if is_janitor_of(pid, keeper)]
    for pid in (janitor, keeper):
        os.kill(pid, signal.SIGKILL)
    await_that(lambda: not is_alive(keeper))
    live.run(*words, *(["box"] if len(words) == 1 else []))
    await_that(lambda: not any(map(is_alive, family)))


def is_janitor_of(pid: int, keeper: int) -> bool:
    """Whether it holds a pidfd of the keeper (proc(5), /proc/pid/fdinfo)."""
    held = f"Pid:\t{keeper}\n"
    with suppress(OSError):  # it has ended
        return any(held in Path(f"/proc/{pid}/fdinfo/{fd}").read_text() for fd in open_fds(pid))
    return False


def test_container_of_an_earlier_boot_has_exited(live: Shop) -> None:
    live.run("create", "--name", "box", "small", "sh", "-c", ENDLESS)
    with Store.open(live.store) as store:
        claimed = Containers(store).claim(Containers(store).find("box"), None)
        assert claimed.process is not None
        before = replace(claimed.process, boot="another")
        Containers(store).change(claimed, process=before, is_detached=True)
        (live.store / "containers/box/bundle").mkdir()
    assert live.run("ps") == ""
    assert status_of(live, "box") == "exited" and live.run("ps", "-aqf", "exited=137") == "box\n"
    assert live.run("start", "box") == "box\n"


def test_container_that_never_ran_shows_what_it_is_to_run(live: Shop) -> None:
    live.run("create", "--name", "box", "--entrypoint", "sleep", "small", "5")
    assert live.run("ps", "-a", "--format", "{{.Status}}: {{.Command}}") == "created: sleep 5\n"
    assert live.run("inspect", "--format", "{{.Path}} {{.Args}}", "box") == "sleep [5]\n"


def test_exit_code_is_always_a_number(live: Shop) -> None:
    def code() -> str:
        return live.run("inspect", "--format", "{{.State.ExitCode}}", "box")

    live.run("create", "--name", "box", "small", "sh", "-c", OBEDIENT)
    assert code() == "0\n"
    live.run("start", "box")
    await_that(lambda: live.run("logs", "box") == "ready\n")
    assert code() == "0\n"
    live.run("stop", "box")
    assert code() == "5\n"
    live.run("start", "box")
    assert code() == "0\n"


def test_container_of_nothing_to_run_is_not_made(live: Shop) -> None:
    assert "no command of its own" in live.refuses("create", "empty", status=125)
    assert live.names == []


def test_containers_and_images_are_inspected_together(live: Shop) -> None:
    identity = live.run("create", "--name", "box", "small")
    image = live.run("inspect", "--format", "{{.Id}}", "small")
    assert live.run("inspect", "--format", "{{.Id}}", "small", "box") == f"{image}{identity}"
    assert [one["Id"] for one in live.answer("inspect", "box", "small")] == [identity.strip(), image.strip()]
    assert "no image 'absent'" in live.refuses("inspect", "box", "absent")


# -- exec


def test_exec_has_the_containers_user_and_other_options(live: Shop) -> None:
    live.run("run", "-d", "--name", "box", "-u", "bob", "-e", "A=1", "-w", "/tmp", "small", "sh", "-c", ENDLESS)
    assert live.run("exec", "box", "sh", "-c", "id; pwd; echo $A") == (
        "uid=33(bob) gid=44(bobs) groups=44(bobs),50(others)\n/tmp\n1\n"
    )
    said = live.run("exec", "-u", "0", "-e", "A=2", "-w", "/etc", "box", "sh", "-c", "id -u; pwd; echo $A")
    assert said == "0\n/etc\n2\n"
    live.run("exec", "box", "sh", "-c", "exit 9", status=9)
    assert "'nope' is not in the image" in live.refuses("exec", "box", "nope", status=127)
    assert "not executable" in live.refuses("exec", "box", "/etc/passwd", status=126)
    for option in ("-it", "-t"):
        assert "needs a terminal" in live.refuses("exec", option, "box", "sh", status=125)
    live.run("exec", "-d", "box", "sh", "-c", "echo done >/tmp/done")
    await_that(lambda: live.run("exec", "box", "sh", "-c", "cat /tmp/done 2>/dev/null; :") == "done\n")
    status = live.run("exec", "box", "cat", "/proc/self/status")
    assert "CapEff:\t0000000000000000" in status and "Seccomp:\t2" in status


@pytest.mark.parametrize(("option", "home"), [((), "/root"), (("-e", "HOME=/tmp"), "/tmp")])
def test_exec_as_another_user_has_that_users_home(live: Shop, option: Sequence[str], home: str) -> None:
    live.run("run", "-d", "--name", "box", "-u", "bob", *option, "small", "sh", "-c", ENDLESS)
    own = live.run("exec", "box", "sh", "-c", "echo $HOME")
    assert live.run("exec", "-u", "bob", "box", "sh", "-c", "echo $HOME") == own
    assert live.run("exec", "-u", "0", "box", "sh", "-c", "echo $HOME") == f"{home}\n"


def test_exec_needs_a_directory_to_work_in(live: Shop) -> None:
    live.run("run", "-d", "--name", "box", "-v", "/new", "small", "sh", "-c", ENDLESS)
    assert live.run("exec", "-w", "/new", "box", "pwd") == "/new\n"
    for directory in ("/absent", "/etc/passwd"):
        assert f"{directory} in the container is no directory" in live.refuses(
            "exec", "-w", directory, "box", "pwd", status=125
        )


def test_exec_needs_a_live_container_of_runc(live: Shop) -> None:
    live.run("create", "--name", "box", "small")
    assert "is not running" in live.refuses("exec", "box", "pwd", status=125)
    with live.start("--name", "front", "--runtime", "bwrap", "small", "sh", "-c", f"echo up; {ENDLESS}") as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        assert "does not run under runc" in live.refuses("exec", "front", "pwd", status=125)
        live.run("kill", "front")
        process.wait(PATIENCE_S)


# -- logs, attach, top, rename


def test_logs_keep_streams_times_and_lines_without_end(live: Shop) -> None:
    live.run("run", "-d", "--name", "box", "small", "sh", "-c", "echo a; echo b; printf d; echo c >&2")
    live.run("wait", "box")
    done = live.call("logs", "box")
    assert (done.status, done.out, done.err) == (0, "a\nb\nd", "c\n")
    done = live.call("logs", "--tail", "3", "box")
    # conmon decides which of the two streams it reads first
    assert (done.out, done.err) in (("b\nd", "c\n"), ("a\nb\nd", ""))
    assert live.run("logs", "--tail", "0", "box") == ""
    assert re.match(r"\d{4}-\d\d-\d\dT[0-9:.]+\S+ a\n", live.call("logs", "-t", "box").out)
    assert live.run("logs", "--since", "2100-01-01T00:00:00Z", "box") == ""
    assert "is no time" in live.refuses("logs", "--since", "now", "box")


def test_program_without_a_log_can_be_attached_to(live: Shop) -> None:
    live.run("create", "-i", "--name", "box", "--log-driver", "none", "small", "sh", "-c", "read x; echo got $x")
    assert live.call("start", "-ai", "box", typed="x\n").out == "got x\n"
    assert "--log-driver none" in live.refuses("logs", "box")


def test_logs_are_followed_until_the_end(live: Shop) -> None:
    live.run("run", "-d", "--name", "box", "small", "sh", "-c", OBEDIENT)
    with live.start_command("logs", "--follow", "box") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        live.run("stop", "box")
        assert process.communicate(timeout=PATIENCE_S) == ("asked\n", "")
        assert process.returncode == 0


def test_attached_program_gets_input_and_its_status_is_ours(live: Shop) -> None:
    live.run("run", "-d", "-i", "--name", "box", "small", "sh", "-c", "read x; echo got $x; read y; exit 8")
    with live.start_command("attach", "box", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("one\n")
        process.stdin.flush()
        assert process.stdout.readline() == "got one\n"
        assert process.communicate("two\n", PATIENCE_S) == ("", "")
        assert process.returncode == 8
    assert "is not running" in live.refuses("attach", "box")


def test_detached_program_may_have_a_terminal(live: Shop) -> None:
    live.run("run", "-d", "-t", "--name", "box", "small", "sh", "-c", "tty; exit 2")
    assert live.run("wait", "box") == "2\n"
    assert live.run("logs", "box") == "/dev/pts/0\n"


def test_top_shows_its_processes_only(live: Shop) -> None:
    live.run("run", "-d", "--name", "box", "small", "sleep", "4321")
    for options in ((), ("-o", "pid,args"), ("-ef",), ("aux",)):
        lines = live.run("top", "box", *options).splitlines()
        assert len(lines) == 2 and lines[1].endswith("sleep 4321")
    assert "the column PID" in live.refuses("top", "box", "-o", "args")
    assert "overlayfs: ps: " in live.refuses("top", "box", "-zz")


def test_top_takes_a_program_without_a_name(live: Shop) -> None:
    nameless = f"printf '\\0' > /proc/self/comm; echo ready; {ENDLESS}"
    live.run("run", "-d", "--name", "box", "small", "sh", "-c", nameless)
    log_of(live, "box", "ready")
    assert live.run("top", "box", "-o", "comm,pid").split()[:2] == ["COMMAND", "PID"]


def test_renamed_container_keeps_its_changes(live: Shop) -> None:
    live.run("run", "--name", "old", "small", "touch", "/tmp/x")
    live.run("create", "--name", "taken", "small")
    assert "taken is taken" in live.refuses("rename", "old", "taken")
    live.run("rename", "old", "new")
    assert live.names == ["new", "taken"]
    assert live.run("diff", "new") == "A /tmp/x\n"


def test_running_container_is_renamed_and_used_by_its_new_name(live: Shop) -> None:
    live.run("run", "-d", "-i", "--name", "old", "small", "sh", "-c", f"read x; {OBEDIENT}")
    with live.start_command("attach", "old", stdin=subprocess.PIPE) as attached:
        assert attached.stdin is not None and attached.stdout is not None
        attached.stdin.write("go\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == "ready\n"
        live.run("rename", "old", "new")
        assert "no container 'old'" in live.refuses("logs", "old")
        live.run("run", "-d", "--name", "old", "small", "sh", "-c", ENDLESS)  # the name is free at once
        assert live.run("exec", "new", "cat", "/etc/hostname") == "old\n"
        assert live.run("logs", "new") == "ready\n"
        assert live.run("stop", "new") == "new\n"
        assert attached.wait(PATIENCE_S) == 5
    assert status_of(live, "old") == "running"
    assert live.run("start", "new") == "new\n"
    assert live.run("exec", "new", "cat", "/etc/hostname") == "old\n"
    live.run("rm", "-f", "new")
    assert live.names == ["old"] and status_of(live, "old") == "running"


@pytest.mark.parametrize("is_killed", [False, True], ids=["ended", "keeper killed"])
def test_renamed_ephemeral_container_goes_with_its_program(live: Shop, is_killed: bool) -> None:
    live.run("run", "-d", "--rm", "--name", "old", "small", "sh", "-c", ENDLESS)
    live.run("rename", "old", "new")
    keeper = keeper_of(live, "new")
    family = {*descendants(keeper), keeper}
    if is_killed:
        os.kill(keeper, signal.SIGKILL)
    else:
        live.run("kill", "new")
    await_that(lambda: not any(map(is_alive, family)))
    await_that(lambda: live.names == [])


def test_paused_program_stands_still(live: Shop) -> None:
    live.run("run", "-d", "--name", "box", "small", "sh", "-c", "while :; do echo x; sleep 0.02; done")
    log_of(live, "box", "x")
    assert live.run("ps", "--filter", "status=paused") == ""
    live.run("pause", "box")
    assert runc_status(live, "box") == "paused"
    assert live.run("ps", "--filter", "status=paused", "--format", "{{.Names}} {{.State}}") == "box paused\n"
    states = "{{.State.Status}} {{.State.Running}} {{.State.Paused}}"
    assert live.run("inspect", "--format", states, "box") == "paused true true\n"
    assert "is paused" in live.refuses("exec", "box", "pwd", status=125)
    assert "is paused already" in live.refuses("pause", "box")
    live.run("unpause", "box")
    assert "is not paused" in live.refuses("unpause", "box")
    assert runc_status(live, "box") == "running"
    assert live.run("inspect", "-f", states, "box") == "running true false\n"


def runc_status(shop: Shop, name: str) -> str:
    state = shop.store / "containers" / name / "bundle/state"
    said = subprocess.run(["runc", "--root", state, "state", name], capture_output=True, check=True).stdout
    return str(json.loads(said)["status"])


def paused(shop: Shop) -> None:
    """A paused container `box`, which ends with 5 on SIGTERM."""
    shop.run("run", "-d", "--name", "box", "small", "sh", "-c", OBEDIENT)
    log_of(shop, "box", "ready")
    shop.run("pause", "box")


@pytest.mark.parametrize(
    ("words", "status"), [(("stop",), 5), (("kill",), 137), (("kill", "-s", "TERM"), 5), (("stop", "-t", "0"), None)]
)
def test_signal_ends_a_pause(live: Shop, words: tuple[str, ...], status: int | None) -> None:
    paused(live)
    live.run(*words, "box")
    found = int(live.run("wait", "box"))
    assert found == status if status is not None else found in (5, 137)


def test_paused_container_is_restarted_and_removed(live: Shop) -> None:
    paused(live)
    live.run("restart", "box")
    await_that(lambda: live.run("logs", "box") == "ready\nasked\nready\n")
    live.run("pause", "box")
    live.run("rm", "-f", "box")
    assert live.names == []


def test_killed_keeper_of_a_paused_container_leaves_no_process(live: Shop) -> None:
    paused(live)
    keeper = keeper_of(live, "box")
    family = {*descendants(keeper), keeper}
    os.kill(keeper, signal.SIGKILL)
    await_that(lambda: not any(map(is_alive, family)))
    await_that(lambda: status_of(live, "box") == "exited")


def test_commands_start_as_people_start_them(live: Shop) -> None:
    words = [*COMMAND, "--store", str(live.store)]
    started = subprocess.run([*words, "run", "-d", "--name", "box", "small"], capture_output=True, check=True)
    assert len(started.stdout) == 65
    subprocess.run([*words, "wait", "box"], capture_output=True, check=True, timeout=PATIENCE_S)
