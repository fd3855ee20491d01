"""`overlayfs-mount`: the program that container engines, mount(8) and fstab run to make one mount.

Two command lines: `overlayfs-mount -o OPTIONS TARGET` and `overlayfs-mount SOURCE TARGET -o OPTIONS`.
It returns when the mount is live (or, in the foreground, has ended): 0, or 1 after one line on standard
error with nothing mounted.  FUSE is imported last: a version, a usage error or a bad option must not
wait for it, and every container's start waits for this program's own.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

from overlayfs._typing import TYPE_CHECKING, NoReturn
from overlayfs._version import __version__
from overlayfs.overlay.mount_flags import MS_NODEV, MS_NOSUID
from overlayfs.overlay.option_parser import ParsedOptions, changed_flags, parse_options
from overlayfs.overlay.options import MountError

if TYPE_CHECKING:
    from overlayfs.fuse.session import MountOptions

PROGRAM = "overlayfs-mount"
_WORDS = {"debug": "d", "help": "h", "version": "V"}
_IONBF = 2  # <stdio.h>

USAGE = f"""\
usage: {PROGRAM} [-f] [-d] -o OPTIONS TARGET
       {PROGRAM} SOURCE TARGET -o OPTIONS

Mount lower directories, and an upper one that takes all changes, as one tree on TARGET.

  -o OPTIONS     comma-separated, as often as needed:
                   lowerdir=A:B:C            layers, the topmost first
                   upperdir=DIR,workdir=DIR  both on one filesystem; without them the mount is read-only
  -f             stay in the foreground
  -d, --debug    say what is done, on standard error; stays in the foreground
  -V, --version  show versions
  -h, --help     show this text

SOURCE is shown as the mount's source and means nothing else.
Unmount with umount TARGET or fusermount3 -u TARGET.
"""


class UsageError(Exception):
    """A command line that has neither of the two forms."""


class CommandLine:
    """The parsed arguments; option texts are not parsed yet."""

    def __init__(self) -> None:
        self.option_texts: list[str] = []
        self.positionals: list[str] = []
        self.foreground = False
        self.debug = False
        self.asks_help = False
        self.asks_version = False

    @property
    def source(self) -> str | None:
        return self.positionals[0] if len(self.positionals) == 2 else None

    @property
    def target(self) -> str:
        if len(self.positionals) not in (1, 2):
            raise UsageError("one mountpoint is needed, with at most a source before it")
        return self.positionals[-1]


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit status, 0 or 1."""
    try:
        return _run(read_command_line(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        return _fail(f"{error} (see {PROGRAM} --help)")


def end() -> NoReturn:
    """Run the program and end the process. The interpreter is not taken down, as the caller would wait for that."""
    gc.disable()  # what is imported is no garbage; it is enabled when the mount is served
    status = main()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)


def read_command_line(arguments: list[str]) -> CommandLine:
    """Take arguments apart, options and positionals in any order whatever POSIXLY_CORRECT says.

    Done here as getopt's import takes longer than all the rest of reading them.
    """
    line = CommandLine()
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            line.positionals += rest
        elif argument.startswith("--"):
            _take_word(line, argument[2:])
        elif argument.startswith("-") and argument != "-":
            _take_letters(line, argument[1:], rest)
        else:
            line.positionals.append(argument)
    return line


def _take_letters(line: CommandLine, letters: str, rest: Iterator[str]) -> None:
    """Options of one letter, any number of them in one argument; the value of `o` is what follows."""
    for position, letter in enumerate(letters, 1):
        if letter == "o":
            value = letters[position:] or next(rest, None)
            if value is None:
                raise UsageError("option -o requires argument")
            line.option_texts.append(value)
            return
        _take_flag(line, letter)


def _take_word(line: CommandLine, text: str) -> None:
    """An option that is a word, or the beginning of just one."""
    start, equals, _ = text.partition("=")
    words = [word for word in _WORDS if word.startswith(start)]
    if len(words) != 1:
        raise UsageError(f"option --{start} not {'a unique prefix' if words else 'recognized'}")
    if equals:
        raise UsageError(f"option --{words[0]} must not have an argument")
    _take_flag(line, _WORDS[words[0]])


def _take_flag(line: CommandLine, letter: str) -> None:
    match letter:
        case "f":
            line.foreground = True
        case "d":
            line.debug = True
        case "V":
            line.asks_version = True
        case "h":
            line.asks_help = True
        case _:
            raise UsageError(f"option -{letter} not recognized")


def _run(line: CommandLine) -> int:
    if line.asks_help:
        sys.stdout.write(USAGE)
        return 0
    if line.asks_version:
        return _show_version()
    return _mount(line)


def _mount(line: CommandLine) -> int:
    target = line.target
    try:
        if changed_flags(line.option_texts, 0) is None:
            _serve(line, target)
        else:
            from overlayfs.cli.mounts.remount import remount

            remount(target, line.option_texts)
    except MountError as error:
        return _fail(str(error))
    except ImportError as error:
        return _fail(f"a part of the program is missing: {error}")
    except OSError as error:
        from overlayfs.cli.output import explain

        return _fail(explain(error))
    return 0


def _serve(line: CommandLine, target: str) -> None:
    # Not getcwd(): a directory that is gone matters only to those who name relative paths.
    parsed = parse_options(line.option_texts, os.curdir)
    for warning in parsed.warnings:
        _say(warning)
    from overlayfs.fuse.session import serve_in_background, serve_in_foreground

    serve = serve_in_foreground if line.foreground or line.debug else serve_in_background
    serve(parsed.overlay, mount_options(line, parsed, target, is_root=os.geteuid() == 0))


def mount_options(line: CommandLine, parsed: ParsedOptions, target: str, *, is_root: bool) -> MountOptions:
    """What is asked of FUSE: root's mounts serve everyone and honour setuid files and devices."""
    from overlayfs.fuse.session import MountOptions

    fuse_options = parsed.fuse_options
    if is_root and not {"allow_other", "allow_root"} & set(fuse_options):
        fuse_options += ("allow_other",)
    defaults = MountOptions(mountpoint=os.fsencode(os.path.realpath(target)))
    return MountOptions(
        mountpoint=defaults.mountpoint,
        source=parsed.source or line.source or defaults.source,
        flags=parsed.flags if is_root else parsed.flags | MS_NOSUID | MS_NODEV,
        fuse_options=fuse_options,
        subtype=parsed.subtype or defaults.subtype,
        debug=line.debug,
        lane=parsed.lane,
        passthrough=parsed.passthrough,
        poll_us=defaults.poll_us if parsed.poll_us is None else parsed.poll_us,
    )


def _show_version() -> int:
    # Flushed, as libfuse and fusermount3 write their own lines past Python's buffer.
    print(f"{PROGRAM}: version {__version__}", flush=True)
    _show_libfuse_version()
    return 0


def _show_libfuse_version() -> None:
    import ctypes

    try:
        library = ctypes.CDLL("libfuse3.so.3")
    except OSError:
        print("FUSE library not found (libfuse3.so.3)")
        return
    library.fuse_pkgversion.restype = ctypes.c_char_p
    print(f"FUSE library version {library.fuse_pkgversion().decode()}", flush=True)
    c_library = ctypes.CDLL(None)
    # Unbuffered: the next call prints the version of the kernel protocol, then runs fusermount3.
    c_library.setvbuf(ctypes.c_void_p.in_dll(c_library, "stdout"), None, _IONBF, 0)
    library.fuse_lowlevel_version()


def _say(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def _fail(reason: str) -> int:
    _say(reason)
    return 1


if __name__ == "__main__":
    end()
