"""Containers of an ordinary user: root in them is the user, their other users are the user's subordinate ids.

The machine is as distributions have it for as long as this module's tests run, in the mounts of this process alone:
a user with subordinate ids, and /dev/fuse and /dev/net/tun for everybody.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from overlayfs.image.store.store import Store
from overlayfs.tree.mount_table import mount_entries
from overlayfs.tree.syscalls import mount, unmount
from tests.cli.container.shop import await_that
from tests.cli.people import run
from tests.container.small import small_image
from tests.image.making import LayoutFiles, tar
from tests.prepared import Done, Prepared

USER = 4711
_MS_BIND = 4096
FUSE_DEVICE, TUN_DEVICE = os.makedev(10, 229), os.makedev(10, 200)


class Home:
    """The user's directory, with a store that has `small`."""

    def __init__(self, path: Path, prepared: Prepared) -> None:
        self.path = path
        self._prepared = prepared

    def call(self, *words: str | Path) -> Done:
        return self._prepared.call("--store", self.path / "store", *words)

    def run(self, *words: str | Path, status: int = 0) -> str:
        done = self.call(*words)
        assert (done.status, done.err) == (status, ""), done.err
        return done.out

    def sh(self, script: str, *options: str | Path, status: int = 0) -> str:
        return self.run("run", "--rm", *options, "small", "sh", "-c", script, status=status)

    def upper(self, name: str) -> Path:
        return self.path / "store/containers" / name / "upper"


@contextmanager
def covered(place: str, by: Path) -> Iterator[None]:
    mount(os.fsencode(by), os.fsencode(place), b"", _MS_BIND, b"")
    try:
        yield
    finally:
        unmount(os.fsencode(place), lazy=True)


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """A directory for the user, who may pass through all above it."""
    top = Path("/var/tmp") / f"overlayfs-user-{os.getpid()}"
    top.mkdir()
    top.chmod(0o755)
    yield top
    subprocess.run(["rm", "-rf", top], check=True)


@pytest.fixture(scope="module")
def machine(top: Path) -> Iterator[Path]:
    """A machine with this user, who has no subordinate ids yet."""
    (top / "passwd").write_text(f"{Path('/etc/passwd').read_text()}tester:x:{USER}:{USER}::{top}/home:/bin/sh\n")
    os.mknod(top / "fuse", stat.S_IFCHR, FUSE_DEVICE)
    (top / "fuse").chmod(0o666)
    os.mknod(top / "tun", stat.S_IFCHR, TUN_DEVICE)
    (top / "tun").chmod(0o666)
    (top / "home").mkdir()
    os.chown(top / "home", USER, USER)
    places = {"/etc/passwd": "passwd", "/dev/fuse": "fuse", "/dev/net/tun": "tun"}
    with ExitStack() as stack:
        for place, name in places.items():
            stack.enter_context(covered(place, top / name))
        yield top


@pytest.fixture(scope="module")
def prepared(machine: Path) -> Iterator[Prepared]:
    with Prepared(USER, {"HOME": str(machine / "home")}) as prepared:
        with Store.open(machine / "roots") as store:
            small_image(store)
        run("--store", machine / "roots", "save", "small", "-o", machine / "small.tar")
        (machine / "small.tar").chmod(0o644)
        done = prepared.call("--store", machine / "home/store", "load", "-i", machine / "small.tar")
        assert done.status == 0, done
        yield prepared


@pytest.fixture
def poor(machine: Path, prepared: Prepared) -> Home:
    """Without subordinate ids."""
    return Home(machine / "home", prepared)


@pytest.fixture
def home(machine: Path, poor: Home) -> Iterator[Home]:
    (machine / "subids").write_text(f"tester:300000:65536\n{USER}:900000:1\n")
    with covered("/etc/subuid", machine / "subids"), covered("/etc/subgid", machine / "subids"):
        yield poor


RUNTIMES = ("bwrap", "runc")
DETACHED = "echo up; while :; do sleep 0.05; done"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_user_is_root_in_the_container(home: Home, runtime: str) -> None:
    script = "id -u; stat -c %u:%g /etc/passwd; cat /proc/self/uid_map; touch /new; stat -c %u /new"
    lines = home.sh(script, "--runtime", runtime).splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("0", "0:0", "0")
    assert [line.split() for line in lines[2:4]] == [["0", str(USER), "1"], ["1", "300000", "65536"]]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_images_other_users_are_there(home: Home, runtime: str) -> None:
    script = "id; touch /tmp/x /x 2>/dev/null; stat -c %u:%g /tmp/x; exit 5"
    said = home.sh(script, "-u", "bob", "--runtime", runtime, status=5)
    assert said == "uid=33(bob) gid=44(bobs) groups=44(bobs),50(others)\n33:44\n"


def test_owners_are_written_down_and_the_files_stay_the_users(home: Home) -> None:
    script = "touch /tmp/a; chown 33:44 /tmp/a; mkdir /tmp/d; chown 33 /tmp/d; ln -s a /tmp/l; touch /tmp/d/f"
    home.run("run", "--name", "box", "small", "sh", "-c", f"{script}; echo done")
    assert home.run("logs", "box") == "done\n"
    upper = home.upper("box")
    assert {path.lstat().st_uid for path in (upper, *upper.rglob("*"))} == {USER}
    assert home.run("run", "--name", "box", "small", "stat", "-c", "%u:%g", "/tmp/a", "/tmp/d", "/tmp/l") == (
        "33:44\n33:0\n0:0\n"
    )
    assert home.run("diff", "box") == "A /tmp/a\nA /tmp/d/\nA /tmp/d/f\nA /tmp/l\n"
    home.run("reset", "box")
    assert home.run("diff", "box") == ""
    home.run("rm", "box")


def test_container_of_a_user_in_the_foreground_is_reset(poor: Home, machine: Path) -> None:
    look = "cat /etc/group /proc/self/mountinfo; ls -d /new /tmp 2>/dev/null; stat -c %a:%u /etc /tmp /work"
    wait = "touch /volume/up; until test -e /volume/go; do sleep 0.05; done"
    script = f"({look}) >/volume/before; rm -r /etc/group /tmp; mkdir /new; {wait}; {look}; mkdir /since"
    volume = poor.path / "volume"
    volume.mkdir()
    os.chown(volume, USER, USER)
    words = ("run", "--name", "box", "--runtime", "bwrap", "-v", f"{volume}:/volume", "-w", "/work", "small")
    with Prepared(USER, {"HOME": str(machine / "home")}) as other, ThreadPoolExecutor(1) as pool:
        running = pool.submit(other.call, "--store", poor.path / "store", *words, "sh", "-c", script)
        await_that((volume / "up").exists)
        reset = poor.call("reset", "box")
        (volume / "go").touch()
        assert (running.result(), reset) == (Done(0, (volume / "before").read_text(), ""), Done(0, "", ""))
    assert poor.run("diff", "box") == "A /since/\n"
    poor.run("rm", "box")


def test_without_subordinate_ids_there_is_root_alone(poor: Home) -> None:
    assert poor.sh("id -u; touch /new; stat -c %u:%g /new") == "0\n0:0\n"
    done = poor.call("run", "--rm", "-u", "bob", "small")
    assert done.status == 125 and "user 33:44 cannot be here: /etc/subuid and /etc/subgid give you no ids" in done.err


def test_device_that_only_root_may_open_is_named(home: Home, machine: Path) -> None:
    (machine / "fuse").chmod(0o600)
    try:
        done = home.call("run", "--rm", "small")
    finally:
        (machine / "fuse").chmod(0o666)
    assert (done.status, done.err) == (125, "overlayfs: /dev/fuse: Permission denied (your user may not open it)\n")
    assert os.listdir(home.path / "store/containers") == []


@pytest.fixture
def mountpoint(home: Home) -> Iterator[Path]:
    path = home.path / "mnt"
    path.mkdir(exist_ok=True)
    os.chown(path, USER, USER)
    yield path
    while os.fsencode(path) in {entry.mountpoint for entry in mount_entries()}:
        unmount(os.fsencode(path), lazy=True)


def as_user(words: list[str | Path]) -> str:
    """Run a program as the user; root may not look into a user's FUSE mount."""
    return subprocess.run(
        words, user=USER, group=USER, extra_groups=[], check=True, capture_output=True, text=True
    ).stdout


def test_read_only_mount_shows_the_images_owners(home: Home, mountpoint: Path) -> None:
    home.run("mount", "small", mountpoint)
    assert as_user(["stat", "-c", "%u:%g %a", mountpoint / "etc/passwd", mountpoint / "tmp"]) == "0:0 644\n0:0 1777\n"
    home.run("umount", mountpoint)


def test_writable_mount_is_the_users_and_what_is_written_roots(home: Home, mountpoint: Path) -> None:
    home.run("mount", "small", mountpoint, "--rw", "--name", "box")
    as_user(["sh", "-c", f"cd {mountpoint} && echo x >etc/new && ln -s new etc/link && mkdir d && rm etc/group"])
    assert as_user(["stat", "-c", "%u:%g", mountpoint / "etc/new", mountpoint / "etc/link", mountpoint / "bin"]) == (
        f"{USER}:{USER}\n" * 3
    )
    home.run("umount", mountpoint)
    assert home.run("diff", "box") == "A /d/\nD /etc/group\nA /etc/link\nA /etc/new\n"
    assert (
        home.run("run", "--name", "box", "small", "stat", "-c", "%u:%g", "/etc/new", "/etc/link", "/d") == "0:0\n" * 3
    )
    home.run("rm", "box")


def test_image_without_layers_is_the_users_to_fill(home: Home, machine: Path, mountpoint: Path) -> None:
    scratch = LayoutFiles()
    scratch.image("latest")
    (machine / "scratch.tar").write_bytes(tar(scratch.finished()))
    home.run("load", "-i", machine / "scratch.tar", "--name", "scratch:1")
    home.run("mount", "scratch:1", mountpoint)
    assert as_user(["stat", "-c", "%u:%g %a", mountpoint]) == "0:0 755\n"
    home.run("umount", mountpoint)
    home.run("mount", "scratch:1", mountpoint, "--rw", "--name", "box")
    as_user(["touch", mountpoint / "new"])
    home.run("umount", mountpoint)
    assert home.run("diff", "box") == "A /new\n"
    home.run("rm", "box")


def test_container_with_modes_that_refuse_its_user(home: Home, mountpoint: Path) -> None:
    home.run("mount", "small", mountpoint, "--rw", "--name", "box")
    script = "mkdir -m 555 a; mkdir -p c/d; touch c/d/f; chmod 0 c/d/f c/d; chmod 111 c; chmod 555 ."
    as_user(["sh", "-c", f"cd {mountpoint} && {script}"])
    home.run("umount", mountpoint)
    assert home.run("diff", "box") == "M /\nA /a/\nA /c/\nA /c/d/\nA /c/d/f\n"
    home.run("mount", "small", mountpoint, "--rw", "--name", "box")
    modes = as_user(["sh", "-c", f"cd {mountpoint} && stat -c %a . a c && touch -d @5 a"])
    assert modes == "555\n555\n111\n"
    home.run("umount", mountpoint)
    home.run("commit", "box", "closed")
    home.run("reset", "box")
    assert home.run("diff", "box") == ""
    home.run("rm", "box")
    home.run("mount", "closed", mountpoint)
    assert as_user(["stat", "-c", "%a", mountpoint, mountpoint / "a", mountpoint / "c"]) == "555\n555\n111\n"
    home.run("umount", mountpoint)
    home.run("rmi", "closed")


def test_detached_container_of_a_user(home: Home) -> None:
    options = ("-u", "bob", "-p", "127.0.0.1::80", "--health-cmd", "test $(id -u) = 33", "--health-interval", "1s")
    home.run("run", "-d", "--name", "web", *options, "small", "sh", "-c", DETACHED)
    try:
        await_that(lambda: home.run("logs", "web") == "up\n")
        assert home.run("exec", "web", "sh", "-c", "id -u; echo more >/tmp/file") == "33\n"
        assert home.run("exec", "-u", "0", "web", "cat", "/tmp/file") == "more\n"
        assert home.run("port", "web").startswith("80/tcp -> 127.0.0.1:")
        await_that(lambda: home.run("ps", "-q", "-f", "health=healthy") == "web\n")
        assert home.run("healthcheck", "run", "web") == ""
        assert "cgroup" in home.call("run", "--rm", "--memory", "64m", "small").err
        home.run("cp", "web:/tmp/file", home.path / "copied")
        assert (home.path / "copied").read_text() == "more\n"
        home.run("reset", "web")
        look = (
            "test ! -e /tmp/file && test -s /etc/hosts && stat -c %u /tmp && cat /proc/self/comm; echo new >/tmp/file"
        )
        assert home.run("exec", "-u", "0", "web", "sh", "-c", look) == "0\ncat\n"
        home.run("stop", "-t", "0", "web")
        assert home.run("wait", "web") == "137\n"
        assert home.run("diff", "web") == "A /tmp/file\n"
    finally:
        home.run("rm", "-f", "web")
