"""Nobody is asked to open anything: files without names, old readers, caches, and who else may mount."""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.calls import name_descriptor, outcome
from tests.mounted.program import AS_USER, COMMAND, SILENT_SUCCESS, Place, make_place, mounts_beneath, open_device
from tests.mounted.stack import Stack, make_tree
from tests.mounted.test_limits import until

USER = 65534
WAYS = ["lane=on", "lane=off", "passthrough=on"]

# Files that lost their names


@pytest.mark.parametrize("way", WAYS)
def test_unlinked_files_stay_what_they_are(way: str, stack: Stack) -> None:
    for name in ("lower", "read-only", "copied-up"):
        (stack.lowers[0] / name).write_bytes(b"content")
    stack.mount(way)
    (stack.place / "created").write_bytes(b"content")
    with open(stack.place / "copied-up", "r+b", buffering=0) as file:
        file.write(b"C")
    opened = {name: os.open(stack.place / name, os.O_RDWR) for name in ("lower", "copied-up", "created")}
    opened["read-only"] = os.open(stack.place / "read-only", os.O_RDONLY)
    for name in opened:
        (stack.place / name).unlink()
    stack.forget()
    try:
        assert os.listdir(stack.place) == []
        for name, fd in opened.items():
            found = os.fstat(fd)
            assert (found.st_nlink, found.st_size) == (0, 7), name
            assert os.pread(fd, 100, 0).lower() == b"content", name
        for name in ("lower", "copied-up", "created"):
            fd = opened[name]
            assert os.pwrite(fd, b"more", 7) == 4
            os.ftruncate(fd, 9)
            os.fchmod(fd, 0o600)
            os.fsync(fd)
            with mmap.mmap(fd, 9) as mapping:
                mapping[0:1] = b"M"
            (stack.place / name).write_bytes(b"another file of that name")
            assert os.pread(fd, 100, 0) == b"Montentmo", name
            assert os.fstat(fd).st_size == 9
        assert (stack.lowers[0] / "lower").read_bytes() == b"content"
    finally:
        for fd in opened.values():
            os.close(fd)
    stack.forget()
    until(lambda: stack.status["inodes"] == 1)


@pytest.mark.parametrize("way", WAYS)
def test_file_replaced_by_rename_stays_with_its_readers(way: str, stack: Stack) -> None:
    (stack.lowers[0] / "file").write_bytes(b"old")
    stack.mount(way)
    with open(stack.place / "file", "rb", buffering=0) as reader:
        (stack.place / "new").write_bytes(b"new")
        (stack.place / "new").rename(stack.place / "file")
        assert reader.read() == b"old"
        assert (stack.place / "file").read_bytes() == b"new"


@pytest.mark.parametrize("way", WAYS)
def test_readers_from_before_a_copy_up_see_what_is_written_later(way: str, stack: Stack) -> None:
    content = b"o" * 100_000
    (stack.lowers[0] / "file").write_bytes(content)
    stack.mount(way)
    with (
        open(stack.place / "file", "rb", buffering=0) as reader,
        mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapping,
    ):
        assert (os.pread(reader.fileno(), 3, 50_000), mapping[50_000:50_003]) == (b"ooo", b"ooo")
        with open(stack.place / "file", "r+b", buffering=0) as writer:
            os.pwrite(writer.fileno(), b"NEW", 50_000)
            assert (os.pread(reader.fileno(), 3, 50_000), mapping[50_000:50_003]) == (b"NEW", b"NEW")
            os.ftruncate(writer.fileno(), 200_000)
            assert os.fstat(reader.fileno()).st_size == 200_000
            with mmap.mmap(writer.fileno(), 200_000) as writable:
                writable[10:13] = b"MAP"
                assert (os.pread(reader.fileno(), 3, 10), mapping[10:13]) == (b"MAP", b"MAP")
        with open(stack.place / "file", "ab", buffering=0) as second:
            second.write(b"tail")
        assert os.pread(reader.fileno(), 10, 200_000) == b"tail"
    assert (stack.lowers[0] / "file").read_bytes() == content


def test_two_appenders_lose_nothing(stack: Stack) -> None:
    (stack.lowers[0] / "log").write_bytes(b"start\n")
    stack.mount()
    script = 'i=0; while [ $i -lt 300 ]; do echo "$1 $i"; i=$((i+1)); done >>"$2"'
    writers = [subprocess.Popen(["sh", "-c", script, "sh", str(n), stack.place / "log"]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0] * 3
    lines = (stack.place / "log").read_text().splitlines()
    assert sorted(lines) == sorted(["start", *(f"{n} {i}" for n in range(3) for i in range(300))])


# Few descriptors


@pytest.mark.usefixtures("many_descriptors")
def test_thousands_of_new_and_changed_files_are_in_use_with_1024_descriptors(stack: Stack) -> None:
    count = 1500
    make_tree(stack.lowers[0], [f"lower{number}" for number in range(count)], b"lower")
    stack.mount("volatile")
    resource.prlimit(stack.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    flags = os.O_RDWR | os.O_CREAT
    names = [f"lower{number}" for number in range(count)] + [f"new{number}" for number in range(count)]
    fds = [os.open(stack.place / name, flags) for name in names]
    try:
        for fd in fds:
            assert os.pwrite(fd, b"UPPER", 5) == 5
        for number, name in enumerate(names[::10]):
            os.rename(stack.place / name, stack.place / f"renamed{number}")
        for name, fd in zip(names, fds, strict=True):
            assert os.pread(fd, 100, 0) == (b"lower" if name.startswith("lower") else bytes(5)) + b"UPPER"
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.usefixtures("many_descriptors")
def test_more_unlinked_files_than_descriptors_is_an_error_not_the_end(stack: Stack) -> None:
    """Each needs a descriptor of the daemon's: there is no other way to a file without a name."""
    stack.mount("volatile")
    resource.prlimit(stack.pid, resource.RLIMIT_NOFILE, (256, 256))
    opened: dict[int, int] = {}
    refused = 0
    try:
        for number in range(400):
            path = stack.place / f"file{number}"
            fd = outcome(lambda path=path: os.open(path, os.O_RDWR | os.O_CREAT))  # type: ignore[misc]
            if not isinstance(fd, int):
                assert fd == "EMFILE"
                refused += 1
                continue
            opened[number] = fd
            done = [outcome(lambda fd=fd, number=number: os.write(fd, b"%03d" % number)), outcome(path.unlink)]  # type: ignore[misc]
            assert set(done) <= {3, None, "EMFILE"}
        assert refused < 200
        for number in list(opened)[:150]:
            found = outcome(lambda fd=opened[number]: os.pread(fd, 10, 0))  # type: ignore[misc]
            assert found in (b"%03d" % number, "EMFILE")
        for number in list(opened)[100:]:
            os.close(opened.pop(number))
        for number, fd in opened.items():
            assert os.pread(fd, 10, 0) == b"%03d" % number
    finally:
        for fd in opened.values():
            os.close(fd)
    assert (stack.place / "after").write_bytes(b"all is well") == 11


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """This process may open as many files as it is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# What the kernel remembers


def _named_tmpfile(path: Path) -> None:
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR)
    try:
        name_descriptor(fd, path)
    finally:
        os.close(fd)


MAKERS: dict[str, Callable[[Path], object]] = {
    "create": lambda path: path.write_bytes(b""),
    "mkdir": lambda path: path.mkdir(),
    "symlink": lambda path: path.symlink_to("nowhere"),
    "mkfifo": os.mkfifo,
    "link": lambda path: os.link(path.parent / "source", path),
    "rename": lambda path: (path.parent / "mover").rename(path),
    "rename of a directory": lambda path: (path.parent / "directory").rename(path),
    "tmpfile": _named_tmpfile,
}


@pytest.mark.parametrize("way", ["lane=on", "lane=off"])
def test_names_come_and_go_though_their_absence_is_remembered(way: str, stack: Stack) -> None:
    for number in range(len(MAKERS)):
        make_tree(stack.lowers[0], [f"d{number}/source", f"d{number}/mover", f"d{number}/directory/", f"d{number}/x"])
    stack.mount(way)
    for number, (how, make) in enumerate(MAKERS.items()):
        if how == "tmpfile" and way == "lane=off":
            continue
        directory = stack.place / f"d{number}"
        path = directory / "name"
        for _ in range(2):
            assert not os.path.lexists(path)
        before = set(os.listdir(directory))
        make(path)
        assert os.path.lexists(path), how
        gone = {"rename": {"mover"}, "rename of a directory": {"directory"}}.get(how, set())
        assert set(os.listdir(directory)) == before - gone | {"name"}, how
        for name in gone:
            assert not os.path.lexists(directory / name), how
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        assert not os.path.lexists(path), how
        assert set(os.listdir(directory)) == before - gone, how


def test_absent_names_symlinks_and_opens_are_asked_for_once(stack: Stack) -> None:
    (stack.lowers[0] / "target").write_bytes(b"x")
    (stack.lowers[0] / "link").symlink_to("target")
    stack.mount()
    for _ in range(50):
        assert not (stack.place / "absent").exists()
        assert os.readlink(stack.place / "link") == "target"
        assert (stack.place / "target").read_bytes() == b"x"
        assert len(os.listdir(stack.place)) == 2
    requests = {name: sum(counts.values()) for name, counts in stack.status["requests"].items()}
    assert requests["READLINK"] == requests["OPEN"] == requests["OPENDIR"] == 1
    assert requests["LOOKUP"] <= 4
    assert requests["READ"] <= 2
    assert requests.get("READDIRPLUS", 0) + requests.get("READDIR", 0) <= 5
    assert not requests.keys() & {"RELEASE", "RELEASEDIR", "FLUSH"} - {"FLUSH"}
    assert requests.get("FLUSH", 0) <= 1


def test_symlink_that_is_replaced_shows_its_new_target(stack: Stack) -> None:
    (stack.lowers[0] / "link").symlink_to("first")
    stack.mount()
    link = stack.place / "link"
    for number in range(20):
        assert os.readlink(link) == ("first" if not number else f"target{number - 1}")
        if number % 2:
            link.unlink()
            link.symlink_to(f"target{number}")
        else:
            (stack.place / "new").symlink_to(f"target{number}")
            (stack.place / "new").rename(link)


def test_everything_is_given_back_when_the_kernel_forgets(stack: Stack) -> None:
    make_tree(stack.lowers[0], [f"d{number % 30}/file{number}" for number in range(3000)])
    stack.mount()
    assert stack.status["inodes"] == 1
    for turn in range(2):
        for directory, _, names in os.walk(stack.place):
            for name in names:
                path = os.path.join(directory, name)
                os.lstat(path)
                if name.endswith("7"):
                    with open(path, "ab") as file:
                        file.write(b"x")
        made = stack.place / f"new{turn}"
        made.mkdir()
        for number in range(300):
            (made / f"n{number}").write_bytes(b"")
            if number % 2:
                (made / f"n{number}").unlink()
        assert stack.status["inodes"] > 3000
        stack.forget()
        until(lambda: stack.status["inodes"] == 1)
    assert len(os.listdir(f"/proc/{stack.pid}/fd")) < 1000


# Who mounts, and how


@pytest.mark.parametrize("has_upper", [True, False])
def test_read_only_mount_is_one_to_the_kernel(has_upper: bool, new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(has_upper=has_upper)
    (stack.lowers[0] / "file").write_bytes(b"x")
    stack.mount(*(("ro",) if has_upper else ()))
    assert os.statvfs(stack.place).f_flag & os.ST_RDONLY
    (mounted,) = mounts_beneath(stack.base)
    assert "ro" in mounted.options
    for _ in range(20):
        assert (stack.place / "file").read_bytes() == b"x"
    if not has_upper:  # which another mount may change all the while
        requests = stack.status["requests"]
        assert sum(requests["GETATTR"].values()) <= 4 if "GETATTR" in requests else True
    assert outcome(lambda: (stack.place / "file").write_bytes(b"y")) == "EROFS"
    assert outcome((stack.place / "file").touch) == "EROFS"


# In the mount of one who is not the machine's administrator; each line is a promise of the lane's.
USES = """
import fcntl, json, os, subprocess, sys
os.chdir(sys.argv[1])
assert json.loads(os.getxattr('.', 'user.overlayfs.status'))['lane']
fd = os.open('sealed', os.O_CREAT | os.O_RDWR, 0o400)
assert os.write(fd, b'written though read-only') == 24
os.fchmod(fd, 0)
assert os.pread(fd, 100, 0) == b'written though read-only'
os.unlink('sealed')
assert os.pwrite(fd, b'WRITTEN', 0) == 7
assert os.pread(fd, 7, 0) == b'WRITTEN'
os.close(fd)
held = os.open('below', os.O_RDONLY)
with open('below', 'a') as file:
    file.write('more\\n')
assert os.pread(held, 100, 0) == b'only below\\nmore\\n'
os.unlink('below')
assert os.pread(held, 100, 0) == b'only below\\nmore\\n'
assert not os.path.exists('below')
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(fd, b'nameless')
assert os.pread(fd, 8, 0) == b'nameless'
fd = os.open('holes', os.O_CREAT | os.O_RDWR)
os.pwrite(fd, b'x', 1 << 20)
assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
os.posix_fallocate(fd, 0, 2 << 20)
assert os.fstat(fd).st_size == 2 << 20
assert os.copy_file_range(fd, fd, 1, 1 << 20, 0) == 1
assert os.pread(fd, 1, 0) == b'x'
os.fsync(fd)
fcntl.ioctl(fd, 0x80086601, bytes(8))
os.makedirs('a/b')
for number in range(300):
    open(f'a/b/{number}', 'x').close()
assert len(os.listdir('a/b')) == 300
os.rename('a/b', 'c')
subprocess.run(['rm', '-r', 'a', 'c', 'holes'], check=True)
assert os.listdir('.') == ['shared']
"""


@pytest.fixture
def place() -> Iterator[Place]:
    base = Path(tempfile.mkdtemp(prefix="overlayfs-lane-"))
    base.chmod(0o755)
    made = make_place(base)
    yield made
    made.clear()


def test_lane_serves_inside_a_user_namespace(place: Place) -> None:
    script = (
        'target=$1; uses=$2; shift 2; "$@" || exit 9; python3 -c "$uses" "$target"; s=$?; umount "$target"; exit $s'
    )
    done = place.run(
        *("-o", place.options, place.target),
        command=("unshare", "-Urm", "sh", "-c", script, "sh", str(place.target), USES, *COMMAND),
    )
    assert done == SILENT_SUCCESS


def test_lane_serves_an_ordinary_user(place: Place) -> None:
    for path in (place.base, *place.base.rglob("*")):
        os.chown(path, USER, USER)
    with open_device():
        done = place.run(str(USER), "-o", place.options, place.target, command=(COMMAND[0], "-c", AS_USER))
        assert done == SILENT_SUCCESS
        used = subprocess.run(
            ["python3", "-c", USES, place.target],
            user=USER,
            group=USER,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (used.returncode, used.stderr) == (0, "")
        unmounted = subprocess.run(["fusermount3", "-u", place.target], user=USER, group=USER, check=False)
        assert unmounted.returncode == 0
