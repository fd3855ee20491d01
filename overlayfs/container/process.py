"""Which process does `run` start? The configuration of the image, with the overrides of the command line.

OCI image specification, config.md, and docker's rules: --entrypoint drops the image's Cmd along with its Entrypoint;
PATH, HOME and HOSTNAME get defaults.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from ..image.oci.documents import RunConfig
from ..image.oci.errors import ImageError, InvalidError
from .root_paths import Inside
from .users import User, find_user

_NO_VOLUMES: Final[Mapping[str, Path]] = MappingProxyType({})
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9_-]*[a-zA-Z0-9])?"
_HOSTNAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_LONGEST_HOSTNAME: Final = 64
"""__NEW_UTS_LEN of linux/utsname.h."""


FAILED: Final = 125
"""The exit status where a program was not begun, as docker has it; a `CannotRunError` has its own."""


class CannotRunError(ImageError):
    """The program cannot be executed, or does not exist (`NotThereError`)."""

    exit_status = 126


class NotThereError(CannotRunError):
    """The program does not exist in the image."""

    exit_status = 127


def failure_status(error: Exception) -> int:
    """The exit status where a program was not begun because of this error."""
    return error.exit_status if isinstance(error, CannotRunError) else FAILED


class Overrides(Struct, frozen=True):
    """Values of the command line that replace those of the configuration; None and empty values replace nothing.

    `environment` has `NAME=VALUE`, or `NAME` for the value of the caller. An empty `entrypoint` removes the image's.
    """

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    environment: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""


class Process(Struct, frozen=True):
    """The process of a container; the first of `arguments` is the absolute path of the program."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    user: User


def check_hostname(text: str) -> None:
    """Raises InvalidError for a name that violates RFC 1123, section 2.1; `_` is allowed, as in names of containers."""
    if len(text) > _LONGEST_HOSTNAME or not _HOSTNAME.fullmatch(text):
        raise InvalidError(
            f"{text[:100]!r} is no host name: at most {_LONGEST_HOSTNAME} letters, digits, - and _, with dots between"
        )


def command_of(config: RunConfig, overrides: Overrides) -> tuple[str, ...]:
    """The command to execute. Raises InvalidError if neither image nor command line has one."""
    command = overrides.command
    if overrides.entrypoint is not None:
        entrypoint: Sequence[str] = (overrides.entrypoint,) if overrides.entrypoint else ()
    else:
        entrypoint = config.entrypoint
        command = command or tuple(config.cmd)
    words = (*entrypoint, *command)
    if not words:
        raise InvalidError("the image has no command of its own: say what to run")
    if any("\0" in word for word in words):
        raise InvalidError("the image's command has a NUL character in it")
    return words


def process_of(
    config: RunConfig,
    overrides: Overrides,
    inside: Inside,
    hostname: str,
    caller: Mapping[str, str],
    volumes: Mapping[str, Path] = _NO_VOLUMES,
) -> Process:
    """The process to run in the image `inside`; `caller` is the environment of the caller, `volumes` are by target.

    Raises InvalidError, NotFoundError; NotThereError or CannotRunError for the program.
    """
    words = command_of(config, overrides)
    user = find_user(inside, overrides.user or config.user)
    environment = _environment(config, overrides, user, hostname, caller)
    directory = posixpath.normpath(posixpath.join("/", overrides.working_directory or config.working_dir or "/"))
    directory = "/" + directory.lstrip("/")
    if "\0" in directory:
        raise InvalidError("the image's working directory has a NUL character in it")
    program = find_program(inside, words[0], environment.get("PATH", ""), directory, volumes)
    return Process((program, *words[1:]), environment, directory, user)


def _environment(
    config: RunConfig, overrides: Overrides, user: User, hostname: str, caller: Mapping[str, str]
) -> dict[str, str]:
    environment = {"PATH": DEFAULT_PATH, "HOME": user.home, "HOSTNAME": hostname}
    if "TERM" in caller:
        environment["TERM"] = caller["TERM"]
    for item in (*filter(None, config.env), *overrides.environment):
        name, equals, value = item.partition("=")
        if not name or "\0" in item:
            raise InvalidError(f"{item[:100]!r} is no environment variable: NAME=VALUE")
        if equals:
            environment[name] = value
        elif name in caller:
            environment[name] = caller[name]
    return environment


def find_program(
    inside: Inside, name: str, path: str, directory: str, volumes: Mapping[str, Path] = _NO_VOLUMES
) -> str:
    """The absolute path of a program in the image, searched for as execvp(3) does.

    A path is kept as written, as some programs check the name by which they are called. It may be in a volume.
    """
    problem: CannotRunError = NotThereError(
        f"{name!r} is not in the image" + ("" if "/" in name else f" (PATH={path})")
    )
    for candidate in _candidates(name, path, directory):
        try:
            found = _stat(inside, candidate, volumes)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                problem = CannotRunError(f"{candidate} in the image cannot be executed: {error.strerror}")
            continue
        if stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_mode & 0o111):
            return candidate
        what = "is a directory" if stat.S_ISDIR(found.st_mode) else "is not executable"
        problem = CannotRunError(f"{candidate} in the image {what}")
    raise problem


def _stat(inside: Inside, path: str, volumes: Mapping[str, Path]) -> os.stat_result:
    """The stat of a path in the container; of a symlink in a volume itself if its target is missing here."""
    plain = posixpath.normpath(path)
    covering = [target for target in volumes if plain == target or plain.startswith(target + "/")]
    if not covering:
        return inside.stat(os.fsencode(path))
    target = max(covering, key=len)
    place = volumes[target] / plain.removeprefix(target).lstrip("/")
    try:
        return place.stat()
    except FileNotFoundError:
        return place.lstat()


def _candidates(name: str, path: str, directory: str) -> Iterator[str]:
    if not name:
        return
    if "/" in name:
        yield posixpath.join(directory, name)
        return
    for place in path.split(":"):
        yield posixpath.join(directory, place or ".", name)
