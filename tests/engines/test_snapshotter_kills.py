"""The snapshotter killed at system calls of its requests while containerd makes them: both agree after its restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.container.small import layer_of
from tests.engines.containerd import OURS, Containerd, containerd_beside, write_oci_archive
from tests.engines.test_containerd import IMAGE, LAYERS, found_again
from tests.snapshotter.service import Client, Service, new_service

POINTS = 40
_DEATH_S = 60
_REPOSITORY = Path(__file__).resolve().parents[2]
_SNAPSHOTS = ("snapshots", "--snapshotter", OURS)
COMMANDS = "cat /etc/kept; echo new >/new; rm /etc/kept"


class Struck:
    """A service that is killed before one system call, or before none and tells which there are."""

    def __init__(self, service: Service, number: int) -> None:
        words = ("--root", service.root, "--address", service.address)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.snapshotter.struck", str(number), *words],
            cwd=_REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self._pidfd = os.pidfd_open(int(self._process.stdout.readline()))

    def ended(self) -> dict[str, Any] | None:
        """What it tells at its end; None where it does not end."""
        try:
            said, _ = self._process.communicate(timeout=_DEATH_S)
        except subprocess.TimeoutExpired:
            return None
        return json.loads(said)  # type: ignore[no-any-return]

    def end(self) -> dict[str, Any]:
        self._send(signal.SIGTERM)
        told = self.ended()
        assert told is not None
        return told

    def close(self) -> None:
        self._send(signal.SIGKILL)
        self._process.wait()
        os.close(self._pidfd)

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)


class Story:
    """What containerd does with the snapshotter, in steps that can be made again if one has failed."""

    def __init__(self, containerd: Containerd, archive: Path) -> None:
        self._containerd, self._archive = containerd, archive
        self.steps = (self.load, self.run, self.commit, self.prepare, self.remove, self.unload)

    def load(self) -> None:
        self._containerd("images", "import", "--snapshotter", OURS, self._archive)

    def run(self) -> None:
        self._forget("containers", "rm", "changed")
        self._forget(*_SNAPSHOTS, "rm", "changed")
        said = self._containerd("run", "--snapshotter", OURS, IMAGE, "changed", "/bin/sh", "-ec", COMMANDS)
        assert said == "kept\n"

    def commit(self) -> None:
        if "committed" not in self._containerd.snapshots(OURS):
            if "changed" not in self._containerd.snapshots(OURS):  # what containerd itself has not recorded
                self.run()
            self._containerd(*_SNAPSHOTS, "commit", "committed", "changed")
        assert self._containerd.diff(OURS, "committed").keys() >= {"new", "etc/.wh.kept"}

    def prepare(self) -> None:
        if "next" not in self._containerd.snapshots(OURS):
            self._containerd(*_SNAPSHOTS, "prepare", "next", "committed")

    def remove(self) -> None:
        for name in ("next", "committed"):
            if name in self._containerd.snapshots(OURS):
                self._containerd(*_SNAPSHOTS, "rm", name)
        self._forget("containers", "rm", "changed")

    def unload(self) -> None:
        self._forget("images", "rm", IMAGE)
        self.collect()

    def collect(self) -> None:
        """Have containerd delete what nothing refers to, and wait for that.

        It compares its records with a snapshotter's only after it has removed a snapshot there.
        """
        self._forget(*_SNAPSHOTS, "rm", "any")
        self._containerd(*_SNAPSHOTS, "prepare", "any")
        self._containerd(*_SNAPSHOTS, "rm", "any")
        self._forget("leases", "create", "--id", "any")
        self._containerd("leases", "rm", "--sync", "any")

    def _forget(self, *words: str) -> None:
        with suppress(AssertionError):  # what is not there
            self._containerd(*words)


@pytest.fixture
def service() -> Iterator[Service]:
    with new_service() as service:
        yield service


@pytest.fixture
def containerd(service: Service) -> Iterator[Containerd]:
    """It has one snapshot from the start: to list none, it needs no service."""
    service.start().close()
    with containerd_beside(service) as containerd:
        write_oci_archive(service.top / "image.tar", IMAGE, [layer_of(files) for files in LAYERS])
        containerd(*_SNAPSHOTS, "prepare", "kept")
        service.end()
        yield containerd


def told(service: Service, containerd: Containerd, number: int) -> dict[str, Any]:
    """Tell the story to a service that is killed at this call, and to its successor; what the first one told."""
    story, ended = Story(containerd, service.top / "image.tar"), None
    with closing(Struck(service, number)) as struck:
        found_again(containerd)
        for step in (*story.steps, partial(expect_same_view, service, containerd)):  # async removals fail unheard
            try:
                step()
            except (AssertionError, grpc.RpcError):
                if ended or not (ended := struck.ended()):
                    raise
                start_again(service, containerd, story)
                step()
        assert containerd.snapshots(OURS) == {"kept": "Active"}
        if ended:
            service.end()
        return ended or struck.end()


def start_again(service: Service, containerd: Containerd, story: Story) -> None:
    """Start the service, and let containerd delete what is left of the request that was struck."""
    service.start().close()
    found_again(containerd)
    story.collect()
    expect_same_view(service, containerd)


def expect_same_view(service: Service, containerd: Containerd) -> None:
    """Every snapshot of ours is one of containerd's, which has no other, and has the one directory of its own."""
    client = Client(service.address)
    names = client.names()
    client.close()
    assert sorted(name.split("/", 2)[2] for name in names) == sorted(containerd.snapshots(OURS))
    assert len(list(service.layers.iterdir())) == len(names)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_both_agree_after_a_kill_at_any_call(service: Service, containerd: Containerd) -> None:
    calls = told(service, containerd, -1)["calls"]
    points = [number for number, (_, _, mutates) in enumerate(calls) if mutates]
    sample = points[:: max(1, len(points) // POINTS)]
    endings = [told(service, containerd, number)["ending"] for number in sample]
    assert endings.count("KILLED") > POINTS // 2  # the service's threads make more or fewer calls from time to time
