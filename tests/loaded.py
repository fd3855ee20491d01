"""A process that has both programs loaded and forks for each call: `python -m tests.loaded [USER]`.

It reads requests from its standard input, JSON lines as `Prepared` writes them, and answers each with the exit status.
It has one thread, so that a fork may have namespaces of its own, and may be another user's.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable
from importlib import import_module

import typer.main

import overlayfs
from overlayfs.cli.app import app
from overlayfs.tree.syscalls import let_be_inspected

# What is imported late beside the package itself: where the interpreter lies, perhaps only root may look.
LATE = (
    *("concurrent.futures.thread", "encodings.ascii", "encodings.idna", "httpx", "msgspec.json", "platformdirs"),
    *("pwd", "pyfuse3", "rich.box", "rich.console", "rich.table", "trio", "unicodedata", "zstandard"),
)


def load() -> dict[str, Callable[[], int]]:
    """Import everything; the programs by name."""
    for name in (*LATE, *(module.name for module in pkgutil.walk_packages(overlayfs.__path__, "overlayfs."))):
        import_module(name)
    command = typer.main.get_command(app)  # a third of a call's time, and always the same
    typer.main.get_command = lambda typer_instance: command
    gc.freeze()
    modules = {"overlayfs": "overlayfs.cli.main", "overlayfs-mount": "overlayfs.cli.mount_program"}
    return {program: import_module(module).main for program, module in modules.items()}


def become(user: int) -> None:
    """As a program is that the user starts."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    let_be_inspected()


def call(
    main: Callable[[], int], words: list[str], streams: list[str], directory: str, environ: dict[str, str], umask: int
) -> None:
    """Be the program until it ends; `streams` are the files that become standard input, output and error."""
    for number, (name, flags) in enumerate(zip(streams, (os.O_RDONLY, *[os.O_WRONLY | os.O_TRUNC] * 2), strict=True)):
        opened = os.open(name, flags)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(directory)
    os.umask(umask)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv[1:] = words
    status = 1
    try:
        status = main()
    except BaseException:  # noqa: BLE001 - it ends the process, as it would end the program
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    programs = load()
    if len(sys.argv) > 1:
        become(int(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            call(programs[request.pop("program")], **request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
