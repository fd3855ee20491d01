"""`overlayfs.mount` in programs of all manners: those that forget to unmount, that fork, that are killed."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import overlayfs
from tests.mounted.program import ENVIRONMENT, PATIENCE_S, has_ended, mounts_beneath
from tests.property.paths import unmount


class Layers:
    """Directories for one mount, and programs that mount them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.lower, self.upper, self.work = base / "lower", base / "upper", base / "work"
        for path in (self.lower, self.upper, self.work, base / "tmp"):
            path.mkdir()
        (self.lower / "below").write_text("of the lower\n")
        (self.upper / "precious").write_text("of the upper\n")

    def start(self, program: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        """Run a program that has `mount(**more)` of these layers."""
        head = f"""
            import os, signal, sys, overlayfs
            def mount(**more):
                return overlayfs.mount([{str(self.lower)!r}], **more)
            kept = {{"upper": {str(self.upper)!r}, "work": {str(self.work)!r}}}
        """
        script = self.base / "bin" / "program.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text(textwrap.dedent(head) + textwrap.dedent(program))
        return subprocess.Popen(
            [sys.executable, script],
            env={**ENVIRONMENT, "TMPDIR": str(self.base / "tmp")},
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, program: str, cwd: Path | None = None) -> str:
        """Run a program to its end; it must succeed and say nothing on standard error."""
        with self.start(program, cwd) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, err) == (0, b"")
        return out.decode()

    def assert_clean(self) -> None:
        """The upper is as it was; no mount and no temporary directory is left."""
        assert [path.name for path in self.upper.iterdir()] == ["precious"]
        assert (self.upper / "precious").read_text() == "of the upper\n"
        assert mounts_beneath(self.base) == []
        assert list((self.base / "tmp").iterdir()) == []


@pytest.fixture
def layers(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layers]:
    made = Layers(scratch)
    monkeypatch.setattr("tempfile.tempdir", str(scratch / "tmp"))
    yield made
    for mounted in mounts_beneath(scratch):
        unmount(Path(mounted.place))


# -- those who forget


def test_program_that_never_unmounts_loses_nothing(layers: Layers) -> None:
    layers.run("m = mount(**kept); print(os.listdir(m.path))")
    layers.assert_clean()


def test_program_that_forgets_the_mount_loses_nothing(layers: Layers) -> None:
    path = layers.run("path = mount(**kept).path; print(path); print(os.path.ismount(path))").split()
    assert path[1] == "False"
    layers.assert_clean()


def test_forgotten_mount_is_unmounted(layers: Layers) -> None:
    mounted = overlayfs.mount([layers.lower], upper=layers.upper, work=layers.work)
    assert (mounted.path / "precious").exists()
    del mounted
    gc.collect()
    layers.assert_clean()


def test_unmounting_twice_leaves_a_later_mount_alone(layers: Layers) -> None:
    target = layers.base / "target"
    target.mkdir()
    first = overlayfs.mount([layers.lower], target)
    first.unmount()
    with overlayfs.mount([layers.lower], target):
        first.unmount()
        assert (target / "below").exists()
    layers.assert_clean()


# -- those who fork


def test_forked_child_that_ends_takes_nothing_with_it(layers: Layers) -> None:
    program = """
        with mount(**kept) as m:
            child = os.fork()
            if not child:
                sys.exit(0)
            os.waitpid(child, 0)
            print(*sorted(os.listdir(m.path)))
    """
    assert layers.run(program).split() == ["below", "precious"]
    layers.assert_clean()


def test_forked_child_that_lives_on_holds_no_mount(layers: Layers) -> None:
    program = """
        with mount(**kept) as m:
            child = os.fork()
            if not child:
                signal.pause()
        os.kill(child, signal.SIGKILL)
        print(m._server.process.returncode)
    """
    assert layers.run(program) == "0\n"
    layers.assert_clean()


# -- those who are killed, and whose server is


def test_killed_program_leaves_nothing_of_an_ephemeral_mount(layers: Layers) -> None:
    program = """
        m = mount(ephemeral=True)
        (m.path / "written").mkdir(0)
        print(m.pid, flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    """
    with layers.start(program) as process:
        assert process.stdout is not None
        server = os.pidfd_open(int(process.stdout.readline()))
        assert len(list((layers.base / "tmp").iterdir())) == 1
        process.kill()
    try:
        assert has_ended(server)
    finally:
        os.close(server)
    layers.assert_clean()


def test_killed_server_leaves_no_dead_mount(layers: Layers) -> None:
    with overlayfs.mount([layers.lower], ephemeral=True) as mounted:
        (mounted.path / "written").touch()
        server = os.pidfd_open(mounted.pid)
        signal.pidfd_send_signal(server, signal.SIGKILL)
        select.select([server], [], [], PATIENCE_S)
        os.close(server)
    layers.assert_clean()


def test_interrupt_at_the_terminal_is_for_the_caller_alone(layers: Layers) -> None:
    program = """
        signal.signal(signal.SIGINT, lambda *_: None)
        with mount(**kept) as m:
            os.killpg(0, signal.SIGINT)
            print(os.getpgid(m.pid) == os.getpgid(0), *os.listdir(m.path))
    """
    assert layers.run(program).startswith("False ")
    layers.assert_clean()


# -- what it is told


def test_no_code_of_the_current_directory_is_run(layers: Layers) -> None:
    (layers.base / "xxhash.py").write_text("open('executed', 'w').close()\n")
    layers.run("mount().unmount()", cwd=layers.base)
    assert not (layers.base / "executed").exists()


def test_code_of_the_current_directory_is_found_where_the_caller_finds_it(layers: Layers) -> None:
    program = f"import overlayfs; overlayfs.mount([{str(layers.lower)!r}]).unmount()"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", program], cwd=ENVIRONMENT["PYTHONPATH"], env=environ, check=True)


def test_wrong_arguments_leave_nothing(layers: Layers) -> None:
    with pytest.raises(TypeError, match="sequence of directories"):
        overlayfs.mount(str(layers.lower))
    with pytest.raises(TypeError, match="no_such_option"):
        overlayfs.mount([layers.lower], ephemeral=True, no_such_option=1)
    with pytest.raises(overlayfs.MountError, match="an upper and a work of its own"):
        overlayfs.mount([layers.lower], ephemeral=True, upper=layers.upper, work=layers.work)
    with pytest.raises(overlayfs.MountError, match="absent does not exist"):
        overlayfs.mount([layers.base / "absent"], ephemeral=True)
    layers.assert_clean()
