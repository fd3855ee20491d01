"""Work on the store that is killed, or out of space, at any step: nothing half is visible, and again it succeeds."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from overlayfs.image.archive.load import load
from overlayfs.image.oci.errors import InUseError, NotFoundError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store import pruning
from overlayfs.image.store.pruning import prune, remove_image
from overlayfs.image.store.store import Store
from overlayfs.image.store.verify import verify
from tests.image.making import LayoutFiles, docker_files, put, tar, whole

A, B = tar({"etc/a": b"a" * 50_000, "etc/b": b"b"}), tar({"etc/b": b"c"})
_KILLED = 77
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_STEPS = frozenset(
    {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.utime"}
)


def oci() -> bytes:
    files = LayoutFiles()
    files.image("docker.io/library/x:1", A, B)
    files.image("docker.io/library/y:1", B)
    return tar(files.finished())


ARCHIVES = {"oci": oci(), "docker": tar(docker_files(["x:1", "y:1"], A, B))}


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that ends, as if killed, before its step number `step`; whether it came so far.

    Steps are calls that change directories or open files for writing; what a kill between two of them leaves, the
    kernel's caches being intact, one of these leaves too.
    """

    def counted() -> None:
        sys.addaudithook(_Countdown(step))
        work()

    _, status = os.waitpid(in_child(counted), 0)
    assert os.waitstatus_to_exitcode(status) in (0, _KILLED)
    return os.waitstatus_to_exitcode(status) == _KILLED


class _Countdown:
    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & _WRITES:
                return
        elif event not in _STEPS:
            return
        self.left -= 1
        if self.left < 0:
            os._exit(_KILLED)


def sweep(work: Callable[[], object], stride: int, check: Callable[[int], None]) -> int:
    """Kill `work` at every `stride`th step, and check after each; how many points there were."""
    step = 0
    while killed_at(step, work):
        check(step)
        step += stride
    return step // stride


def stride_of(request: pytest.FixtureRequest, sampled: int) -> int:
    return 1 if request.config.getoption("--long") else sampled


def check_is_sound(path: Path) -> dict[str, str]:
    """Every image is whole; the names that there are."""
    with Store.open(path) as store:
        assert verify(store) == []
        for image in store.images():
            whole(store, image)
        return {str(image.reference): image.id for image in store.images() if image.reference}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_load_killed_at_any_step(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    path = tmp_path / "store"
    with Store.open(path) as store:
        put(store, "x:1", B, author="whose name is taken")
    before = check_is_sound(path)

    def work() -> None:
        with Store.open(path) as store:
            load(store, io.BytesIO(ARCHIVES[kind]), unpack=True)

    def check(step: int) -> None:
        after = check_is_sound(path)
        assert set(after) >= set(before), step
        with Store.open(path) as store:
            prune(store)
            assert os.listdir(store.path / "tmp") == []
            for name in ("x:1", "y:1"):
                if str(Reference.parse(name)) in after:
                    store.untag(Reference.parse(name))
            put(store, "x:1", B, author="whose name is taken")
            prune(store)

    points = sweep(work, stride_of(request, 9), check)
    assert points > 5
    assert set(check_is_sound(path)) == {"docker.io/library/x:1", "docker.io/library/y:1"}


def test_removal_killed_at_any_step(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "store"

    def work() -> None:
        with Store.open(path) as store:
            remove_image(store, "y:1")
            prune(store)

    def refill(step: int) -> None:
        assert "docker.io/library/x:1" in check_is_sound(path)
        with Store.open(path) as store:
            load(store, io.BytesIO(ARCHIVES["oci"]), unpack=True)

    with Store.open(path) as store:
        load(store, io.BytesIO(ARCHIVES["oci"]), unpack=True)
        put(store, None, A, author="dangling")
    assert sweep(work, stride_of(request, 2), refill) >= 3
    assert list(check_is_sound(path)) == ["docker.io/library/x:1"]


def test_loading_removing_and_pruning_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store"

    def load_and_remove() -> None:
        for _ in range(4):
            with Store.open(path) as store:
                load(store, io.BytesIO(ARCHIVES["oci"]), unpack=True)
            with Store.open(path) as store, suppress(NotFoundError):  # another was faster
                remove_image(store, "y:1")

    def prune() -> None:
        for _ in range(10):
            with Store.open(path) as store, suppress(InUseError), store.alone(patience_s=0.5):
                pruning.prune_held(store)

    children = [in_child(work) for work in (load_and_remove, load_and_remove, load_and_remove, prune)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert "docker.io/library/x:1" in check_is_sound(path)


def in_child(work: Callable[[], object]) -> int:
    """Do `work` in a child, whose number this is; it ends with 0 if that succeeds."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not go on as the test
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


# out of space


def failed_for(reason: int, path: Path, archive: bytes) -> bool:
    """Load an archive; whether that failed for this reason."""
    try:
        with Store.open(path) as store:
            load(store, io.BytesIO(archive), unpack=True)
    except OSError as error:
        if error.errno != reason:
            raise
        return True
    return False


@pytest.mark.parametrize("kind", ARCHIVES)
def test_load_out_of_space_leaves_nothing(
    small_disk: Callable[[str], Path], request: pytest.FixtureRequest, kind: str
) -> None:
    failures = 0
    for pages in range(2, 80, stride_of(request, 9)):
        place = small_disk(f"size={pages * 4}k,mode=0700")
        if failed_for(errno.ENOSPC, place / "store", ARCHIVES[kind]):
            failures += 1
            subprocess.run(["mount", "-o", "remount,size=4m", place], check=True)
            assert check_is_sound(place / "store") == {}
            with Store.open(place / "store") as store:
                assert os.listdir(store.path / "tmp") == []
                load(store, io.BytesIO(ARCHIVES[kind]), unpack=True)
        assert len(check_is_sound(place / "store")) == 2
    assert failures > 2


@pytest.mark.long
@pytest.mark.parametrize("call", ["write", "rename", "fsync", "syncfs", "unlink", "mkdir", "mkdirat", "flock", "close"])
def test_command_killed_at_any_system_call(tmp_path: Path, call: str) -> None:
    """The same from outside, between system calls that the interpreter makes by itself."""
    file, path = tmp_path / "x.tar", tmp_path / "store"
    file.write_bytes(ARCHIVES["oci"])
    command = [sys.executable, "-B", "-m", "overlayfs.cli.main", "--store", str(path), "load", "-i", str(file)]
    status, when = 1, 1
    while status:
        inject = f"inject={call}:signal=KILL:when={when}"
        traced = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
        status = subprocess.run([*traced, *command], stdout=subprocess.DEVNULL, check=False).returncode
        if path.exists():
            assert len(check_is_sound(path)) in ((0, 1, 2) if status else (2,))
            subprocess.run(["rm", "-rf", path], check=True)
        when = when + 1 if when < 40 else when * 5 // 4
