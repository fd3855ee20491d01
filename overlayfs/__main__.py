"""`overlayfs`, and `python -m overlayfs`: the program, quiet when Ctrl-C comes while it is being loaded."""

from __future__ import annotations

import gc
import os
import sys

from overlayfs._typing import NoReturn


def main() -> NoReturn:
    """Run the program and end the process. The interpreter is not taken down, as the caller would wait for that."""
    gc.disable()  # what is imported is no garbage, and looking for some takes a fifth of a start
    status = _run()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            pass  # the command has said so, or there is nobody to tell
    os._exit(status)


def _run() -> int:
    if _is_remount(sys.argv[1:]):
        from overlayfs.cli.mount_program import main as mount

        return mount()
    try:
        if _will_mount(sys.argv[1:2]):
            from overlayfs.fuse import ahead

            ahead.load()
        from overlayfs.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)  # what a command imports is none either
    gc.enable()
    return run()


def _will_mount(words: list[str]) -> bool:
    """Whether the engine is to be loaded ahead. An ordinary user's containers are in a user namespace, where the child
    would have no rights."""
    return words in (["mount"], ["fork"]) or (words == ["run"] and os.geteuid() == 0)


def _is_remount(words: list[str]) -> bool:
    """Whether mount(8) calls: for `mount -o remount,… MNT` it runs what the type of the filesystem is named after, as
    `overlayfs SOURCE MNT -o OPTIONS`."""
    return len(words) == 4 and words[2] == "-o" and "remount" in words[3].split(",")


if __name__ == "__main__":
    main()
