"""What does `run` start? The image's configuration, and what the command line says instead of it.

OCI image specification, config.md, and docker's rules: --entrypoint takes the image's Cmd away with its Entrypoint; the
environment gets PATH, HOME and HOSTNAME where nobody says otherwise.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

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


class CannotRunError(ImageError):
    """The program is there but cannot be executed, or is not there (`NotThereError`)."""


class NotThereError(CannotRunError):
    """The program is not there."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says in place of the configuration; None and empty: nothing.

    `environment` are `NAME=VALUE`, or `NAME` for the caller's own value. An empty `entrypoint` takes the image's away.
    """

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    environment: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """What is executed in a container: `arguments` with the program's absolute path in front."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    user: User


def check_hostname(text: str) -> None:
    """RFC 1123, section 2.1, with the `_` that names of containers may have. Raises InvalidError."""
    if len(text) > _LONGEST_HOSTNAME or not _HOSTNAME.fullmatch(text):
        raise InvalidError(
            f"{text[:100]!r} is no host name: at most {_LONGEST_HOSTNAME} letters, digits, - and _, with dots between"
        )


def command_of(config: RunConfig, overrides: Overrides) -> tuple[str, ...]:
    """The words to execute. Raises InvalidError where nobody says any."""
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
    """What to execute in the image `inside`; `caller` is the environment of who runs it, `volumes` are by target.

    Raises InvalidError, NotFoundError; NotThereError or CannotRunError of a program that cannot be executed.
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
    """The absolute path, in the image, of the program that `name` means there, as execvp(3) looks for it.

    A path stays as it is written: some programs look at the name that they are called by. It may lie in a volume.
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
    """Of what will be at a path; a symlink of a volume that leads nowhere on the host may do so in the container."""
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
