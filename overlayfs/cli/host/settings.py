"""One configuration file as text with settings: read, changed at some keys and written back, all else as it was.

TOML keeps its comments and its order (tomlkit). JSON has no comments; its keys keep their order and their indentation.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, MutableMapping
from typing import Any, Final, NamedTuple

import tomlkit
from tomlkit.exceptions import TOMLKitError

from overlayfs.cli.mounts.live import CommandError

Key = tuple[str, ...]
Document = MutableMapping[str, Any]


class Format(NamedTuple):
    """How a file becomes a mapping of mappings, and text again; `read` is the parser that checks what was written.

    `dump` is also given the text of before, for its layout.
    """

    parse: Callable[[str], Document]
    dump: Callable[[Document, str], str]
    read: Callable[[str], Document]


def _dump_toml(document: Document, _before: str) -> str:
    return tomlkit.dumps(document)


def _dump_json(document: Document, before: str) -> str:
    indented = re.search(r"^([ \t]+)\S", before, re.MULTILINE)
    return json.dumps(document, indent=indented[1] if indented else 4, ensure_ascii=False) + "\n"


def _parse_json(text: str) -> Document:
    document = json.loads(text or "{}")
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    return document


TOML: Final = Format(tomlkit.parse, _dump_toml, tomllib.loads)
JSON: Final = Format(_parse_json, _dump_json, json.loads)


def parsed(text: str, form: Format, name: str) -> Document:
    """The document; CommandError where the text is not well-formed, so that nothing is written over it."""
    try:
        return form.parse(text)
    except (ValueError, TOMLKitError) as error:
        raise CommandError(f"{name}: {error}; mend it first") from None


def get(document: Document, key: Key) -> Any:
    """The value, None where there is none."""
    found: Any = document
    for part in key:
        if not isinstance(found, MutableMapping) or part not in found:
            return None
        found = found[part]
    return found


def put(document: Document, key: Key, value: Any) -> None:
    """Set the value; tables on the way are made."""
    table: Any = document
    for part in key[:-1]:
        if part not in table:
            table[part] = tomlkit.table(is_super_table=True) if isinstance(document, tomlkit.TOMLDocument) else {}
        table = table[part]
        if not isinstance(table, MutableMapping):
            raise CommandError(f"{'.'.join(key)} cannot be set: {part} is not a table")
    table[key[-1]] = value


def remove(document: Document, key: Key) -> None:
    """Take the value away, and the tables on the way that are empty then."""
    table = get(document, key[:-1])
    if not isinstance(table, MutableMapping) or key[-1] not in table:
        return
    del table[key[-1]]
    if not table and len(key) > 1:
        remove(document, key[:-1])
