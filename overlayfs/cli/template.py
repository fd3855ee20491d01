"""What does `--format` print? The part of Go's templates that people give to docker: members of a document.

`{{.Names}}`, `{{.State.Status}}`, `{{json .Config}}`, `{{index .RepoDigests 0}}` and `{{index .Labels "a.b"}}`; `table`
before them. Values are printed as Go does, `true`, `[a b]`, `map[a:b]`, `<nil>`, but without control characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from overlayfs.cli.output import Cell, print_json, print_table, safe
from overlayfs.image.oci.errors import InvalidError

_JSON: Final = "json"
_TABLE: Final = "table "
_WORDS: Final = re.compile("(?<=[a-z])(?=[A-Z])")
_KEY: Final = re.compile(r"[0-9]+|\"[^\"]*\"")
_ACTION: Final = re.compile(rf"{{{{\s*(?:(json|index)\s+)?(\.|(?:\.\w+)+)((?:\s+(?:{_KEY.pattern}))*)\s*}}}}")
_ESCAPES: Final = {r"\t": "\t", r"\n": "\n"}


def print_documents(documents: Sequence[Mapping[str, Any]], template: str) -> None:
    """All as one JSON document; or one line for each, if a template is given."""
    if template in ("", _JSON):
        print_json(documents)
    else:
        print_filled(template, documents)


def print_filled(template: str, documents: Sequence[Mapping[str, Any]]) -> None:
    """One line for each document; after `table ` tabs part the columns, which have headings."""
    if not template.startswith(_TABLE):
        for document in documents:
            print(filled(template, document))
        return
    template = template.removeprefix(_TABLE)
    rows = [[Cell(text) for text in filled(template, document).split("\t")] for document in documents]
    headings = _text(template, _ACTION.sub(lambda found: _heading(found[2]), template)).split("\t")
    print_table(headings, rows)


def _heading(path: str) -> str:
    """`RUNNING FOR` for `.RunningFor`."""
    return _WORDS.sub(" ", path.rpartition(".")[2]).upper()


def filled(template: str, document: Mapping[str, Any]) -> str:
    r"""The template with members of the document, and `\t` and `\n` replaced. Raises InvalidError for other actions."""
    parts = []
    end = 0
    for found in _ACTION.finditer(template):
        parts += [_text(template, template[end : found.start()]), _value(found, document)]
        end = found.end()
    return "".join([*parts, _text(template, template[end:])])


def _text(template: str, piece: str) -> str:
    if "{{" in piece:
        raise InvalidError(f"format {template!r}: only members such as {{{{.Name}}}}, json and index are known")
    for escape, character in _ESCAPES.items():
        piece = piece.replace(escape, character)
    return piece


def _value(found: re.Match[str], document: Mapping[str, Any]) -> str:
    function, path, keys = found.groups()
    if (function == "index") != bool(keys.strip()):
        raise InvalidError(f"format {found[0]!r}: index, and nothing else, takes a member and keys")
    value: Any = document
    for name in filter(None, path.split(".")):
        value = _member(value, name, found[0])
    for key in _KEY.findall(keys):
        value = _item(value, key)
    return json.dumps(value, separators=(",", ":")) if function == "json" else _as_go(value)


def _member(value: Any, name: str, action: str) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidError(f"format {action!r}: {_as_go(value)} has no member .{name}")
    if name not in value:
        known = ", ".join(f".{safe(known)}" for known in value)
        raise InvalidError(f"format {action!r}: no member .{name}: there are {known or 'none'}")
    return value[name]


def _item(value: Any, key: str) -> Any:
    """Go gives the empty value for a key that a map lacks, and an error for a list that is too short."""
    if isinstance(value, Mapping):
        return value.get(key.strip('"'), "")
    if isinstance(value, list) and key.isdigit() and int(key) < len(value):
        return value[int(key)]
    raise InvalidError(f"format: there is no item {key} in {_as_go(value)}")


def _as_go(value: Any) -> str:
    match value:
        case None:
            return "<nil>"
        case bool():
            return str(value).lower()
        case list():
            return f"[{' '.join(map(_as_go, value))}]"
        case Mapping():
            return f"map[{' '.join(f'{safe(name)}:{_as_go(value[name])}' for name in sorted(value))}]"
    return safe(str(value))
