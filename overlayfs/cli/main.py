"""`overlayfs`: the program for people. Runs the command that is named, and turns an error into one line.

The commands' arguments are declared in `commands`; their work is in modules that are imported when a command is called,
so completion and `--help` wait for none of it.
"""

from __future__ import annotations

import os
import sys

from overlayfs.cli.app import ERROR, OK, USAGE, program_for, store_directory, with_help


def main() -> int:
    """Run the program; the exit status."""
    _have_standard_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        arguments = with_help(sys.argv[1:])
        status = program_for(arguments)(arguments, prog_name="overlayfs", standalone_mode=False)
        sys.stdout.flush()
        _follow_images()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _end_quietly()
    except SystemExit as ended:  # the parser turns a broken pipe into this, although standalone_mode is off
        if isinstance(ended.__context__, BrokenPipeError):
            return _end_quietly()
        raise
    except Exception as error:  # noqa: BLE001 - an error is one line, whatever it is
        return _fail(error)
    return status if isinstance(status, int) else OK


def _follow_images() -> None:
    """Let podman see the images that a command has added or removed; only one that had the store open can have."""
    if "overlayfs.image.store.store" in sys.modules:
        from overlayfs.cli.store.podman import bring_up_to_date

        bring_up_to_date(store_directory())


def _have_standard_streams() -> None:
    """Open closed standard streams on /dev/null, so that the next opened file does not become one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the program runs


def _end_quietly() -> int:
    """End as SIGPIPE would: standard output leads to /dev/null, so that nothing fails at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 128 + 13


def _fail(error: Exception) -> int:
    message, status = _explain(error)
    if message:
        print(f"overlayfs: {message}", file=sys.stderr)
    return status


def _explain(error: Exception) -> tuple[str, int]:
    from overlayfs.cli.mount_program import UsageError
    from overlayfs.cli.mounts.live import CommandError
    from overlayfs.cli.output import explain, safe
    from overlayfs.image.oci.errors import ImageError
    from overlayfs.overlay.options import MountError

    if hasattr(error, "format_message"):  # the parser's own, whose class has no public name in all versions
        return str(error.format_message()), getattr(error, "exit_code", USAGE)
    if isinstance(error, UsageError):
        return str(error), USAGE
    if isinstance(error, ImageError | MountError):
        return safe(str(error)), ERROR
    if isinstance(error, CommandError):
        return str(error), ERROR
    if isinstance(error, OSError):
        return explain(error), ERROR
    return f"{type(error).__name__}: {error} (this is a bug)", ERROR


if __name__ == "__main__":
    sys.exit(main())
