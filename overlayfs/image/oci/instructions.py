"""How does `--change "ENV A=b"` change a configuration? The Dockerfile instructions that only edit the configuration.

Dockerfile reference (docs.docker.com/reference/dockerfile): quoted words, `$NAME` and `${NAME}` from ENV, JSON ("exec")
or shell form of commands. As in podman, `=` may stand between an instruction and its value.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from .documents import RunConfig
from .errors import InvalidError

_VARIABLE: Final = r"\$(?:(?P<plain>\w+)|\{(?P<braced>\w+)(?::(?P<how>[-+])(?P<word>[^}]*))?\})"
_TOKEN: Final = re.compile(
    rf"""(?P<space>\s+)|'(?P<single>[^']*)'|"(?P<double>(?:\\.|[^"\\])*)"|\\(?P<escaped>.)|{_VARIABLE}|(?P<rest>.)""",
    re.DOTALL,
)
_IN_QUOTES: Final = re.compile(rf"""\\(?P<escaped>["$\\])|{_VARIABLE}""")
_INSTRUCTION: Final = re.compile(r"\s*(?P<name>[A-Za-z]+)(?:\s+|\s*=\s*)(?P<rest>.*)", re.DOTALL)
_PORT: Final = re.compile(r"(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?(?:/(?P<protocol>tcp|udp|sctp))?", re.ASCII)
_DEFAULT_SHELL: Final = ("/bin/sh", "-c")


def apply_changes(config: RunConfig, changes: Iterable[str]) -> RunConfig:
    """The configuration after the instructions. InvalidError names an instruction that is malformed or unknown.

    As in a build, ENTRYPOINT removes the inherited CMD, unless an earlier instruction here set CMD.
    """
    has_command = False
    for change in changes:
        found = _INSTRUCTION.fullmatch(change)
        apply = _APPLY.get(found["name"].upper()) if found else None
        if found is None or apply is None:
            raise InvalidError(f"--change {change!r}: not one of {', '.join(_APPLY)} and what to set")
        try:
            config = apply(config, found["rest"].strip())
        except (ValueError, InvalidError) as error:
            raise InvalidError(f"--change {change!r}: {error}") from None
        has_command = has_command or found["name"].upper() == "CMD"
        if found["name"].upper() == "ENTRYPOINT" and not has_command:
            config = replace(config, cmd=[])
    return config


def environment(config: RunConfig) -> dict[str, str]:
    """ENV as names and values; an item without `=` has no value."""
    return {name: value for name, _, value in (item.partition("=") for item in config.env)}


def _env(config: RunConfig, text: str) -> RunConfig:
    known = environment(config)
    known.update(_pairs(text, known))
    return replace(config, env=[f"{name}={value}" for name, value in known.items()])


def _label(config: RunConfig, text: str) -> RunConfig:
    return replace(config, labels={**config.labels, **_pairs(text, environment(config))})


def _cmd(config: RunConfig, text: str) -> RunConfig:
    return replace(config, cmd=_command(config, text))


def _entrypoint(config: RunConfig, text: str) -> RunConfig:
    return replace(config, entrypoint=_command(config, text))


def _workdir(config: RunConfig, text: str) -> RunConfig:
    (path,) = _words(config, text, 1)
    return replace(config, working_dir=posixpath.normpath(posixpath.join("/", config.working_dir, path)))


def _user(config: RunConfig, text: str) -> RunConfig:
    (user,) = _words(config, text, 1)
    return replace(config, user=user)


def _stop_signal(config: RunConfig, text: str) -> RunConfig:
    (signal,) = _words(config, text, 1)
    return replace(config, stop_signal=signal)


def _expose(config: RunConfig, text: str) -> RunConfig:
    ports = {port: dict[str, object]() for word in _words(config, text) for port in _ports(word)}
    return replace(config, exposed_ports={**config.exposed_ports, **ports})


def _volume(config: RunConfig, text: str) -> RunConfig:
    paths = {path: dict[str, object]() for path in _list(text) or _words(config, text)}
    return replace(config, volumes={**config.volumes, **paths})


_APPLY: Final[Mapping[str, Callable[[RunConfig, str], RunConfig]]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


def _command(config: RunConfig, text: str) -> list[str]:
    """A JSON list is taken as it is, other text is run by the shell; `[]` and empty text remove the command."""
    listed = _list(text)
    if listed is not None:
        return listed
    return [*(config.shell or _DEFAULT_SHELL), text] if text else []


def _list(text: str) -> list[str] | None:
    """The strings of a JSON list; None for text in shell form."""
    if not text.startswith("["):
        return None
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.MsgspecError:
        return None


def _words(config: RunConfig, text: str, count: int | None = None) -> list[str]:
    words = _split(text, environment(config))
    if not words or (count is not None and len(words) != count):
        raise InvalidError("one word is expected" if count else "nothing to set")
    return words


def _pairs(text: str, known: Mapping[str, str]) -> dict[str, str]:
    """`A=b C="d e"`, or `A all that follows`."""
    name, _, value = text.partition(" ")
    if "=" not in name:
        return {name: "".join(part for _, part in _tokens(value.strip(), known))} if value else _no_pair(text)
    words = _split(text, known)
    pairs = {name: value for name, equals, value in (word.partition("=") for word in words) if name and equals}
    return pairs if len(pairs) == len(words) else _no_pair(text)


def _no_pair(text: str) -> dict[str, str]:
    raise InvalidError(f"{text!r} is not NAME=VALUE")


def _ports(word: str) -> list[str]:
    found = _PORT.fullmatch(word)
    first, last = (int(found["first"]), int(found["last"] or found["first"])) if found else (1, 0)
    if found is None or not 1 <= first <= last <= 65535:
        raise InvalidError(f"{word!r} is no port: 80, 53/udp or 8000-8010")
    return [f"{port}/{found['protocol'] or 'tcp'}" for port in range(first, last + 1)]


def _split(text: str, known: Mapping[str, str]) -> list[str]:
    """The words, unquoted, with variables expanded; expanded values are not split again."""
    words: list[str] = []
    is_inside = False
    for is_space, part in _tokens(text, known):
        if not is_space:
            words[-1:] = [words[-1] + part] if is_inside else [*words[-1:], part]
        is_inside = not is_space
    return words


def _tokens(text: str, known: Mapping[str, str]) -> Iterator[tuple[bool, str]]:
    """Pieces of words, and whether each is the space between two."""
    for found in _TOKEN.finditer(text):
        if found["double"] is not None:
            yield False, _IN_QUOTES.sub(lambda inner: inner["escaped"] or _value(inner, known), found["double"])
        elif found["plain"] or found["braced"]:
            yield False, _value(found, known)
        else:
            plain = next(part for part in found.group("space", "single", "escaped", "rest") if part is not None)
            yield found["space"] is not None, plain


def _value(found: re.Match[str], known: Mapping[str, str]) -> str:
    """`$NAME`, `${NAME}`, `${NAME:-word}` or `${NAME:+word}`."""
    current = known.get(found["plain"] or found["braced"], "")
    if found["how"] is None:
        return current
    return (found["word"] if current else "") if found["how"] == "+" else current or found["word"]
