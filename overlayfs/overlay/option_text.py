"""How option text is spelled: splitting `-o` lists, escapes, quotes, and the values of single options.

Pure, from text to facts; which option means what is in `option_parser.py`.  Every parser raises ValueError
whose message says what is allowed; the caller puts the option's name and value beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from overlayfs._typing import NamedTuple, TypeVar

Meaning = TypeVar("Meaning")

# 2**32 - 1 is (uid_t)-1, which chown(2) reads as "leave unchanged": never an owner.
MAX_ID = 2**32 - 2


class OptionItem(NamedTuple):
    """One item of an option list, its value as written: quoted and escaped."""

    name: bytes
    value: bytes | None


def split_option_list(text: bytes) -> Iterator[OptionItem]:
    r"""Yield the items of `a,b=c,,d="e,f"`; empty ones are dropped, `\,` and a quoted `,` do not separate.

    A value is quoted if its first byte is `"`: a path with a quote in its middle needs no care.
    """
    start = 0
    while start < len(text):
        end = _item_end(text, start)
        name, equals, value = text[start:end].partition(b"=")
        if name or equals:
            yield OptionItem(name, value if equals else None)
        start = end + 1


def _item_end(text: bytes, start: int) -> int:
    comma = _find_unescaped(text, b",", start)
    opening = text.find(b'="', start) + 1
    if opening and b"," not in text[start:opening] and b"=" not in text[start : opening - 1]:
        closing = _find_unescaped(text, b'"', opening + 1)
        comma = _find_unescaped(text, b",", closing) if closing >= 0 else -1
    return comma if comma >= 0 else len(text)


def _find_unescaped(text: bytes, wanted: bytes, start: int) -> int:
    """Index of the first `wanted` at or after `start` that no backslash escapes, or -1."""
    while (hit := text.find(wanted, start)) >= 0:
        before = text[start:hit]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return hit
        start = hit + 1
    return -1


def unquote(value: bytes) -> bytes:
    """Take the quotes off a quoted value; escapes stay for the parser of the value."""
    if not value.startswith(b'"'):
        return value
    if _find_unescaped(value, b'"', 1) != len(value) - 1:
        raise ValueError("a value that starts with a quote must end with the closing one")
    return value[1:-1]


def unescape(text: bytes) -> bytes:
    """Drop each backslash and keep the byte after it; a lone one at the end stays."""
    if b"\\" not in text:
        return text
    # Of a pair of backslashes one stays, all others go but one at the end.
    *whole, last = text.split(b"\\\\")
    end = b"\\" if last.endswith(b"\\") else b""
    return b"\\".join(part.replace(b"\\", b"") for part in (*whole, last)) + end


def unescape_commas(text: bytes) -> bytes:
    """Undo only what the option list itself needed; every other backslash is the value's own."""
    return text.replace(b"\\,", b",")


def split_layers(value: bytes) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """`A:B::D::E` as (layers A and B, data-only layers D and E), unescaped, top first."""
    lowers: list[bytes] = []
    data: list[bytes] = []
    for path, is_data in _layer_items(value):
        if not path:
            raise ValueError("a path is empty; ':' separates layers, '::' starts a data-only one")
        if data and not is_data:
            raise ValueError("only data-only layers ('::') may follow a data-only layer")
        (data if is_data else lowers).append(unescape(path))
    return tuple(lowers), tuple(data)


def _layer_items(value: bytes) -> Iterator[tuple[bytes, bool]]:
    is_data = value.startswith(b"::")
    start = 2 if is_data else 0
    while (colon := _find_unescaped(value, b":", start)) >= 0:
        yield value[start:colon], is_data
        is_data = value.startswith(b"::", colon)
        start = colon + (2 if is_data else 1)
    yield value[start:], is_data


def single_path(value: bytes) -> bytes:
    """An escaped path, as `upperdir` and `workdir` have."""
    return _not_empty(unescape(value))


def literal_path(value: bytes) -> bytes:
    """A path without escapes, as `lowerdir+` and `datadir+` have."""
    return _not_empty(unescape_commas(value))


def _not_empty(path: bytes) -> bytes:
    if not path:
        raise ValueError("a path is needed")
    return path


def decimal(value: bytes, maximum: int) -> int:
    """A plain decimal number in 0..maximum: no sign, blank or underscore."""
    if value.isdigit() and len(value) <= 20 and int(value) <= maximum:
        return int(value)
    raise ValueError(f"a number from 0 to {maximum} is needed")


def id_number(value: bytes) -> int:
    """A user's or group's number."""
    return decimal(value, MAX_ID)


def _is_digits(text: bytes, most: int) -> bool:
    return text.isdigit() and len(text) <= most


def seconds(value: bytes) -> float:
    """Seconds, zero or more, with or without a fraction."""
    whole, point, fraction = value.partition(b".")
    if not _is_digits(whole, 12) or (point and not _is_digits(fraction, 9)):
        raise ValueError("a number of seconds, 0 or more, is needed")
    return float(value)


def choice(value: bytes, meanings: Mapping[bytes, Meaning]) -> Meaning:
    """The meaning of one of a few words."""
    if value not in meanings:
        raise ValueError("allowed: " + ", ".join(word.decode() for word in meanings))
    return meanings[value]


def on_off(value: bytes) -> bool:
    """The kernel's spelling of a boolean."""
    return choice(value, {b"on": True, b"off": False})


def zero_one(value: bytes) -> bool:
    """fuse-overlayfs's spelling of a boolean."""
    return choice(value, {b"1": True, b"0": False})


def id_triples(value: bytes) -> tuple[tuple[int, int, int], ...]:
    """`disk:shown:size[:disk:shown:size…]`; podman writes an empty item first."""
    items = value.removeprefix(b":").split(b":")
    if len(items) % 3:
        raise ValueError("disk:shown:size is needed, once or several times")
    numbers = [id_number(item) for item in items]
    triples = tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
    for disk, shown, size in triples:
        if not size or max(disk, shown) + size - 1 > MAX_ID:
            raise ValueError(f"a range {disk}:{shown}:{size} is empty or ends above {MAX_ID}")
    _refuse_overlaps("disk", [(disk, size) for disk, _, size in triples])
    _refuse_overlaps("shown", [(shown, size) for _, shown, size in triples])
    return triples


def _refuse_overlaps(side: str, ranges: list[tuple[int, int]]) -> None:
    end = 0
    for first, size in sorted(ranges):
        if first < end:
            raise ValueError(f"{side} id {first} is in two ranges")
        end = first + size
