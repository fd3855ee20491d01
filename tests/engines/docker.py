"""A dockerd with storage, a socket and a containerd of its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from overlayfs.tree.syscalls import unmount
from tests.snapshotter.service import mounts_below

_PATIENCE_S = 120


class Docker:
    """A dockerd with this configuration file and PATH. Called with the words of docker(1); the output.

    The path of `top` must be short, as that of a socket must be.
    """

    def __init__(self, top: Path, configuration: Path, path: str) -> None:
        self._top, self._configuration, self._path = top, configuration, path
        self.start()

    def start(self) -> None:
        """Start dockerd and wait until it answers."""
        own = {"--data-root": "root", "--exec-root": "run", "--pidfile": "pid"}
        words = [f"{option}={self._top}/{name}" for option, name in own.items()]
        words += [f"--host=unix://{self._top}/socket", f"--config-file={self._configuration}", "--iptables=false"]
        words += ["--bridge=none", "--exec-opt=native.cgroupdriver=cgroupfs", "--default-ulimit=nofile=1024:1024"]
        with (self._top / "log").open("ab") as log:
            environment = {**os.environ, "PATH": self._path}
            self._process = subprocess.Popen(["dockerd", *words], stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + _PATIENCE_S
        while self._run("version").returncode:
            assert self._process.poll() is None and time.monotonic() < deadline, (self._top / "log").read_text()
            time.sleep(0.05)

    def _run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", f"--host=unix://{self._top}/socket", *words],
            env={"PATH": os.environ["PATH"], "HOME": str(self._top), "DOCKER_BUILDKIT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )

    def __call__(self, *words: str | Path) -> str:
        done = self._run(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(_PATIENCE_S)

    def close(self) -> None:
        """End it and unmount what is left below its storage."""
        self.end()
        for point in mounts_below(self._top):
            unmount(bytes(point), lazy=True)


def docker_with(top: Path, program: Path | None) -> Docker:
    """`program` is found as fuse-overlayfs in dockerd's PATH; the kernel's overlayfs mounts where it is None."""
    (top / "bin").mkdir(parents=True)
    driver = "overlay2"
    if program is not None:
        driver = "fuse-overlayfs"
        (top / "bin/fuse-overlayfs").symlink_to(program)
    (top / "daemon.json").write_text(json.dumps({"storage-driver": driver}))
    return Docker(top, top / "daemon.json", f"{top}/bin:{os.environ['PATH']}")
