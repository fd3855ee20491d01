"""What an overlay does for a user whose own files refuse what root's mount could do to them.

A deputy in a user namespace does it; where there can be none, the user gets EACCES.
"""

import errno
import fcntl
import os
import resource
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import OverlayOptions
from overlayfs.overlay.values import AttributeChanges, Caller
from overlayfs.tree import access, deputies, syscalls
from overlayfs.tree.deputy import CALLS, Deputy

NOBODY = 65534
CALLER = Caller(NOBODY, NOBODY)
PATIENCE_MS = 60_000


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory of nobody's that nobody can reach."""
    path = Path(tempfile.mkdtemp(prefix="overlayfs-nobody-"))
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def as_nobody(base: Path) -> Iterator[None]:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        deputies.dismiss()
        os.seteuid(0)
        os.setegid(0)


def options(base: Path) -> OverlayOptions:
    lower, upper, work = (bytes(base / name) for name in ("lower", "upper", "work"))
    return OverlayOptions(lowers=(lower,), upper=upper, work=work)


@pytest.fixture
def nobody(as_nobody: None, base: Path) -> Iterator[Overlay]:
    """An overlay over two files without any permission, opened and used as the user nobody."""
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    for name, content in (("empty", b""), ("full", b"content")):
        (base / "lower" / name).write_bytes(content)
        (base / "lower" / name).chmod(0)
    overlay = Overlay.open(options(base))
    yield overlay
    overlay.close()


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """User namespaces are switched off."""

    def refuse(_namespaces: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "unshare", refuse)


def chmod(overlay: Overlay, name: bytes, mode: int) -> int:
    return overlay.setattr(overlay.lookup(1, name).ino, AttributeChanges(mode=mode), CALLER).mode


def test_empty_file_that_may_not_be_read_is_copied_up(no_namespaces: None, nobody: Overlay, base: Path) -> None:
    assert chmod(nobody, b"empty", 0o600) == 0o100600
    assert (base / "upper" / "empty").stat().st_size == 0


def test_content_that_may_not_be_read_is_never_left_out_of_a_copy(
    no_namespaces: None, nobody: Overlay, base: Path
) -> None:
    with pytest.raises(PermissionError):
        chmod(nobody, b"full", 0o600)
    assert not (base / "upper" / "full").exists()


def test_content_that_may_not_be_read_is_copied_by_a_deputy(nobody: Overlay, base: Path) -> None:
    before = (base / "lower" / "full").stat()
    assert chmod(nobody, b"full", 0o600) == 0o100600
    assert (base / "upper" / "full").read_bytes() == b"content"
    after = (base / "lower" / "full").stat()
    assert (after.st_mode, after.st_atime_ns, after.st_ctime_ns) == (
        before.st_mode, before.st_atime_ns, before.st_ctime_ns,
    )  # fmt: skip


def test_file_of_another_group_stays_refused(nobody: Overlay, base: Path) -> None:
    """The deputy's namespace has no other group, so its capabilities do not count there."""
    os.seteuid(0)
    os.chown(base / "lower" / "full", NOBODY, 4711)
    os.seteuid(NOBODY)
    with pytest.raises(PermissionError):
        chmod(nobody, b"full", 0o600)


@pytest.mark.parametrize("mode", [0o555, 0o111, 0o333])
def test_upper_whose_root_refuses_its_user_is_mounted_again(mode: int, nobody: Overlay, base: Path) -> None:
    nobody.setattr(1, AttributeChanges(mode=mode), CALLER)
    nobody.close()
    again = Overlay.open(options(base))
    nobody.state = again.state
    assert chmod(again, b"full", 0o600) == 0o100600
    assert (base / "upper").stat().st_mode == 0o40000 | mode


def test_opaque_directory_that_may_not_be_read_still_hides_what_is_below(nobody: Overlay, base: Path) -> None:
    for name in ("d", "d/below"):
        (base / "lower" / name).mkdir()
    nobody.close()
    first = Overlay.open(options(base))
    directory = first.lookup(1, b"d").ino
    first.rmdir(directory, b"below")
    first.forget(directory, 1)
    first.rmdir(1, b"d")
    first.mkdir(1, b"d", 0o111, CALLER)
    first.close()
    again = Overlay.open(options(base))
    nobody.state = again.state
    assert again.find(again.lookup(1, b"d").ino, b"below") is None


# -- the deputy


@pytest.fixture
def closed_file(as_nobody: None, base: Path) -> Iterator[int]:
    """A descriptor of the directory with `file`, which nobody may not read."""
    (base / "file").write_bytes(b"content")
    (base / "file").chmod(0)
    fd = os.open(base, os.O_PATH)
    yield fd
    os.close(fd)


def read(dir_fd: int) -> bytes:
    fd = access.open_at(dir_fd, b"file", os.O_RDONLY)
    try:
        assert not os.get_inheritable(fd)
        return os.read(fd, 100)
    finally:
        os.close(fd)


def started() -> Deputy:
    found = deputies.present()
    assert found is not None
    return found


def test_deputy_that_was_killed_is_replaced(closed_file: int) -> None:
    assert read(closed_file) == b"content"
    first = started()
    kill(first)
    assert read(closed_file) == b"content"
    assert started().pid != first.pid


def test_call_during_which_the_deputy_is_killed_is_an_error(closed_file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was done is not known, so it is not done again."""
    monkeypatch.setitem(CALLS, "open", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(OSError, match="gone") as caught:
        read(closed_file)
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    assert read(closed_file) == b"content"


def kill(deputy: Deputy) -> None:
    pidfd = os.pidfd_open(deputy.pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        watch = select.poll()
        watch.register(pidfd, select.POLLIN)
        assert watch.poll(PATIENCE_MS)
    finally:
        os.close(pidfd)


def test_deputy_is_started_from_any_thread(closed_file: int) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: read(closed_file), range(100))) == {b"content"}


def test_forked_child_has_a_deputy_of_its_own(closed_file: int) -> None:
    read(closed_file)
    pid = started().pid
    child = os.fork()
    if not child:
        os._exit(0 if read(closed_file) == b"content" and started().pid != pid else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert read(closed_file) == b"content"
    assert started().pid == pid


def test_errors_are_those_of_the_call(closed_file: int) -> None:
    deputy = started()
    with pytest.raises(FileNotFoundError):
        deputy.ask("open", (closed_file,), b"absent", os.O_RDONLY, 0)
    with pytest.raises(NotADirectoryError):
        deputy.ask("rmdir", (closed_file,), b"file")
    assert read(closed_file) == b"content"


def test_no_room_for_a_descriptor_is_said_and_leaves_none_behind(closed_file: int) -> None:
    deputy = started()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(closed_file)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            deputy.ask("open", (closed_file,), b"file", os.O_RDONLY, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read(closed_file) == b"content"


def test_locks_are_free_only_when_the_deputy_has_ended(closed_file: int, base: Path) -> None:
    """What it does when its daemon is killed must be done before another mount begins."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        fd = os.open(base, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        deputies.note_lock(fd)
        read(closed_file)
        os.kill(started().pid, signal.SIGSTOP)
        os.write(writing, b"%d" % started().pid)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    deputy = int(os.read(reading, 100))
    fd = os.open(base, os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(deputy, signal.SIGCONT)
        fcntl.flock(fd, fcntl.LOCK_EX)
    finally:
        for one in (fd, reading, writing):
            os.close(one)


def test_locks_are_free_when_the_deputy_is_dismissed(closed_file: int, base: Path) -> None:
    fd = os.open(base, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    deputies.note_lock(fd)
    read(closed_file)
    deputies.dismiss(fd)
    os.close(fd)
    fd = os.open(base, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_signals_that_end_a_daemon_do_not_end_its_deputy_first(closed_file: int) -> None:
    deputy = started()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(deputy.pid, number)
    assert read(closed_file) == b"content"
    assert started() is deputy
    deputies.dismiss()


def test_reading_moves_no_access_time_of_own_files_and_directories_below(nobody: Overlay, base: Path) -> None:
    """There is no copy of the mount to see to it; the kernel lets owners ask for it at each open."""
    lower = base / "lower"
    (lower / "d").mkdir()
    (lower / "d" / "file").write_bytes(b"content")
    paths = (lower, lower / "d", lower / "d" / "file")
    for path in paths:
        os.utime(path, ns=(10**18, 10**18 + 1))
    directory = nobody.lookup(1, b"d").ino
    assert [entry.name for entry in nobody.readdir(directory, 0)] == [b".", b"..", b"file"]
    file = nobody.lookup(directory, b"file").ino
    assert nobody.read(file, 0, 100) == b"content"
    assert {path.stat().st_atime_ns for path in paths} == {10**18}


def test_closed_lower_directory_is_read_where_layers_are_revalidated(as_nobody: None, base: Path) -> None:
    for name in ("lower/x/sub", "upper/x", "work"):
        (base / name).mkdir(parents=True)
    (base / "lower" / "x" / "sub" / "f").write_bytes(b"content")
    (base / "lower" / "x").chmod(0o600)
    overlay = Overlay.open(options(base)._replace(timeout_s=0.0))
    try:
        directory = overlay.lookup(overlay.lookup(1, b"x").ino, b"sub").ino
        assert overlay.read(overlay.lookup(directory, b"f").ino, 0, 100) == b"content"
    finally:
        overlay.close()
