"""A podman with storage, configuration and mounts of its own, root's or an ordinary user's."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from overlayfs.tree.syscalls import mount, unmount
from tests.container.small import programs
from tests.contract.tree import Tree, build

_PATIENCE_S = 120
_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096

# No network and no systemd are needed; a test machine may have a hard limit of files below podman's own.
_CONTAINERS = """
[containers]
default_ulimits=["nofile=1024:1024","nproc=1024:1024"]
netns="none"
[engine]
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="file"
"""


class Podman:
    """Storage below `top`, whose path must be short: podman takes no more than 50 characters for a run root.

    `program` mounts the containers, the kernel's overlayfs where it is None. `force_mask` is podman's option.
    """

    def __init__(self, top: Path, program: Path | None, user: int = 0, force_mask: str = "") -> None:
        self._top, self._user = top, user
        for name in ("", "home", "xdg"):
            (top / name).mkdir(mode=0o755 if name == "" else 0o700)
        options = "" if program is None else f'[storage.options.overlay]\nmount_program="{program}"\n'
        options += f'force_mask="{force_mask}"\n' if force_mask else ""
        (top / "storage.conf").write_text(
            f'[storage]\ndriver="overlay"\nrunroot="{top}/run"\ngraphroot="{top}/root"\n'
            f"[storage.options]\nauto-userns-min-size=1024\n{options}"
        )
        (top / "containers.conf").write_text(_CONTAINERS)
        self._without_idmapped_lowers()
        for path in (top, *top.rglob("*")):
            os.chown(path, user, user)

    def _without_idmapped_lowers(self) -> None:
        """Tell podman what it remembers from a try: that the kernel cannot map the ids of lower layers.

        Before 4.5, root's podman has both the kernel and the mount program map them (containers/storage, pull request
        1551), so that no mount program can be right.
        """
        features = self._top / "run/overlay"
        features.mkdir(parents=True)
        (features / "idmapped-lower-dir-false").touch()

    def __call__(self, *words: str | Path, status: int = 0) -> str:
        """The output of podman(1)."""
        return self._output(status, "podman", *words)

    def buildah(self, *words: str | Path) -> str:
        """The output of buildah(1), which has the same storage."""
        return self._output(0, "buildah", *words)

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of podman(1), whatever its exit status."""
        return self._run("podman", *words)

    def _output(self, status: int, *words: str | Path) -> str:
        done = self._run(*words)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def _run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*map(str, words)],
            env={
                "PATH": os.environ["PATH"],
                "HOME": f"{self._top}/home",
                "XDG_RUNTIME_DIR": f"{self._top}/xdg",
                "CONTAINERS_STORAGE_CONF": f"{self._top}/storage.conf",
                "CONTAINERS_CONF": f"{self._top}/containers.conf",
            },
            cwd=self._top,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
            user=self._user,
            group=self._user,
            extra_groups=[],
        )

    def close(self) -> None:
        """Unmount what it keeps mounted; end the process that holds the namespaces of an ordinary user's podman."""
        for point in reversed(_mountpoints()):
            if point.startswith(f"{self._top}/"):
                unmount(os.fsencode(point), lazy=True)
        if self._user:
            end(int((self._top / "xdg/libpod/tmp/pause.pid").read_text()))


def _mountpoints() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def end(pid: int) -> None:
    """Kill a process, and return when it has ended."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], _PATIENCE_S)
    finally:
        os.close(pidfd)


def archive_of(tree: Tree, top: Path, *more: str) -> Path:
    """A tar for `podman import`: this tree, and the programs of a small image and `more`."""
    root = top / "tree"
    build(os.fsencode(root), tree)
    for name, content in programs(*more).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)
    archive = top / "base.tar"
    packed = ("tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner")
    subprocess.run([*packed, "-cf", archive, "-C", root, "."], check=True, timeout=_PATIENCE_S)
    return archive


@contextmanager
def covered(place: str | Path, by: Path, *, read_only: bool = False) -> Iterator[None]:
    """Another file or directory in this place, for this process and its children."""
    mount(os.fsencode(by), os.fsencode(place), b"", _MS_BIND, b"")
    try:
        if read_only:
            mount(b"none", os.fsencode(place), b"", _MS_REMOUNT | _MS_BIND | _MS_RDONLY, b"")
        yield
    finally:
        unmount(os.fsencode(place), lazy=True)


def owners(root: Path, names: Iterable[str]) -> dict[str, str]:
    """`uid:gid` of each of these files below `root`."""
    found = {name: os.lstat(root / name) for name in names}
    return {name: f"{st.st_uid}:{st.st_gid}" for name, st in found.items()}
