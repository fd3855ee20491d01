"""Whose namespaces does the program enter? Those of its user only."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from overlayfs.container.namespaces import enter_namespaces_of, in_user_namespace_of
from overlayfs.image.oci.errors import ImageError
from overlayfs.image.store.uses import Process

OTHER = 4711


@contextmanager
def in_namespaces_of_its_own(user: int) -> Iterator[Process]:
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "echo; exec cat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, user=user, group=user, extra_groups=[], stdin=pipe, stdout=pipe, cwd="/") as one:
        assert one.stdout is not None and one.stdout.readline() == b"\n"
        yield Process.of(one.pid)
        one.terminate()


def entering(process: Process) -> int:
    """0, or the errno for which a child of ours could not enter."""
    child = os.fork()
    if not child:
        try:
            enter_namespaces_of(process)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_owner_of_a_user_namespace_gets_no_process_of_another_user_in_it() -> None:
    with in_namespaces_of_its_own(OTHER) as process:
        assert entering(process) == errno.EPERM
        with pytest.raises(ImageError, match="of another user"):
            in_user_namespace_of(process.pid)


def test_namespaces_are_entered_of_the_very_process() -> None:
    with in_namespaces_of_its_own(os.geteuid()) as process:
        assert entering(process) == 0
        assert in_user_namespace_of(process.pid)[1:3] == ["--target", str(process.pid)]
        assert entering(replace(process, started=process.started + 1)) == errno.ESRCH
        assert entering(replace(process, pid_namespace=1)) == errno.ESRCH
