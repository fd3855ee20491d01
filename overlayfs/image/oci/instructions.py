"""How does `--change "ENV A=b"` change a configuration? The Dockerfile instructions that only edit the configuration.

Dockerfile reference (docs.docker.com/reference/dockerfile): words and variables as in words.py, JSON ("exec") or
shell form of commands. As in podman, `=` may stand between an instruction and its value. A build applies the same
instructions one by one, with its ARGs besides ENV.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from .documents import RunConfig
from .errors import InvalidError
from .signals import signal_of
from .words import Lexer

_INSTRUCTION: Final = re.compile(r"\s*(?P<name>[A-Za-z]+)(?:\s+|\s*=\s*)(?P<rest>.*)", re.DOTALL)
_PORT: Final = re.compile(r"(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?(?:/(?P<protocol>tcp|udp|sctp))?", re.ASCII)
DEFAULT_SHELL: Final = ("/bin/sh", "-c")


def apply_changes(config: RunConfig, changes: Iterable[str]) -> RunConfig:
    """The configuration after the instructions. InvalidError names an instruction that is malformed or unknown.

    As in a build, ENTRYPOINT removes the inherited CMD, unless an earlier instruction here set CMD.
    """
    has_command = False
    for change in changes:
        found = _INSTRUCTION.fullmatch(change)
        name = found["name"].upper() if found else ""
        if found is None or name not in INSTRUCTIONS:
            raise InvalidError(f"--change {change!r}: not one of {', '.join(INSTRUCTIONS)} and what to set")
        try:
            config = apply_instruction(config, name, found["rest"].strip(), Lexer(environment(config)))
        except (ValueError, InvalidError) as error:
            raise InvalidError(f"--change {change!r}: {error}") from None
        has_command = has_command or name == "CMD"
        if name == "ENTRYPOINT" and not has_command:
            config = replace(config, cmd=[])
    return config


def apply_instruction(config: RunConfig, name: str, text: str, lexer: Lexer) -> RunConfig:
    """The configuration after one of `INSTRUCTIONS`. Raises InvalidError or ValueError for a bad text."""
    return INSTRUCTIONS[name](config, text, lexer)


def environment(config: RunConfig) -> dict[str, str]:
    """ENV as names and values; an item without `=` has no value."""
    return {name: value for name, _, value in (item.partition("=") for item in config.env)}


def _env(config: RunConfig, text: str, lexer: Lexer) -> RunConfig:
    known = {**environment(config), **_pairs(text, lexer)}
    return replace(config, env=[f"{name}={value}" for name, value in known.items()])


def _label(config: RunConfig, text: str, lexer: Lexer) -> RunConfig:
    return replace(config, labels={**config.labels, **_pairs(text, lexer)})


def _cmd(config: RunConfig, text: str, _: Lexer) -> RunConfig:
    return replace(config, cmd=_command(config, text))


def _entrypoint(config: RunConfig, text: str, _: Lexer) -> RunConfig:
    return replace(config, entrypoint=_command(config, text))


def _workdir(config: RunConfig, text: str, lexer: Lexer) -> RunConfig:
    path = posixpath.join("/", config.working_dir, _whole(text, lexer))
    return replace(config, working_dir=posixpath.normpath(path))


def _user(config: RunConfig, text: str, lexer: Lexer) -> RunConfig:
    return replace(config, user=_whole(text, lexer))


def _stop_signal(config: RunConfig, text: str, lexer: Lexer) -> RunConfig:
    name = _whole(text, lexer)
    signal_of(name)
    return replace(config, stop_signal=name)


def _shell(config: RunConfig, text: str, _: Lexer) -> RunConfig:
    words = json_list(text)
    if not words:
        raise InvalidError('the shell is a JSON list, as ["/bin/bash", "-c"]')
    return replace(config, shell=words)


def _expose(config: RunConfig, text: str, lexer: Lexer) -> RunConfig:
    words = [part for word in _words(text, lexer) for part in word.split()]
    ports = {port: dict[str, object]() for word in words for port in _ports(word)}
    return replace(config, exposed_ports={**config.exposed_ports, **ports})


def _volume(config: RunConfig, text: str, lexer: Lexer) -> RunConfig:
    listed = json_list(text)
    paths = {path: dict[str, object]() for path in (map(lexer.expand, listed) if listed else _words(text, lexer))}
    return replace(config, volumes={**config.volumes, **paths})


INSTRUCTIONS: Final[Mapping[str, Callable[[RunConfig, str, Lexer], RunConfig]]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


def _command(config: RunConfig, text: str) -> list[str]:
    """A JSON list is taken as it is, other text is run by the shell; `[]` and empty text remove the command."""
    listed = json_list(text)
    if listed is not None:
        return listed
    return [*(config.shell or DEFAULT_SHELL), text] if text else []


def json_list(text: str) -> list[str] | None:
    """The strings of a JSON list; None for text in shell form. Raises InvalidError for a list of anything else."""
    if not text.startswith("["):
        return None
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.ValidationError:
        raise InvalidError(f"{text[:60]!r}: a JSON list holds strings and nothing else") from None
    except msgspec.MsgspecError:
        return None


def _whole(text: str, lexer: Lexer) -> str:
    """The text as one word, with its spaces."""
    word = lexer.expand(text)
    if not word:
        raise InvalidError("nothing to set")
    return word


def _words(text: str, lexer: Lexer) -> list[str]:
    words = lexer.split(text)
    if not words:
        raise InvalidError("nothing to set")
    return words


def _pairs(text: str, lexer: Lexer) -> dict[str, str]:
    """`A=b C="d e"`, or `A all that follows`."""
    name, *value = text.split(maxsplit=1) or [""]
    if "=" not in name:
        return {name: lexer.expand(value[0].strip())} if value else _no_pair(text)
    words = lexer.split(text)
    pairs = {name: value for name, equals, value in (word.partition("=") for word in words) if name and equals}
    return pairs if len(pairs) == len(words) else _no_pair(text)


def _no_pair(text: str) -> dict[str, str]:
    raise InvalidError(f"{text!r} is not NAME=VALUE")


def _ports(word: str) -> list[str]:
    found = _PORT.fullmatch(word.lower())
    first, last = (int(found["first"]), int(found["last"] or found["first"])) if found else (1, 0)
    if found is None or not 1 <= first <= last <= 65535:
        raise InvalidError(f"{word!r} is no port: 80, 53/udp or 8000-8010")
    return [f"{port}/{found['protocol'] or 'tcp'}" for port in range(first, last + 1)]
