"""As which user does the program of an image run? The `User` of a configuration is resolved to numbers.

OCI image specification, config.md (User): `user`, `uid`, `user:group`, `uid:gid`, `uid:group`, `user:gid`. Names are
those of the image's own /etc/passwd and /etc/group (passwd(5), group(5)), which are as hostile as the rest of it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..image.oci.errors import InvalidError, NotFoundError
from .root_paths import Inside

PASSWD: Final = b"/etc/passwd"
GROUP: Final = b"/etc/group"
MAX_FILE: Final = 4 << 20
"""Bytes: more than a hundred thousand lines of /etc/passwd."""
_MAX_ID: Final = (1 << 31) - 1
_MAX_GROUPS: Final = 65536  # NGROUPS_MAX


class User(Struct, frozen=True):
    """User and group ids in the image; `groups` are supplementary; `name` is empty for a bare number."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    name: str = ""
    home: str = "/"


def find_user(inside: Inside, text: str) -> User:
    """The user that `text` names in this image; an empty text is root.

    Raises NotFoundError for an unknown name, InvalidError for numbers out of range and for user files that are not
    regular, LimitError for huge ones.
    """
    name, colon, group = text.partition(":")
    user = _find_person(inside, name or "0")
    if colon and group:
        return replace(user, gid=_find_group(inside, group), groups=())
    return user


def with_groups(inside: Inside, user: User, names: Sequence[str]) -> User:
    """The user with these groups, names or numbers, added. Raises as `find_user`."""
    added = {_find_group(inside, name) for name in names}
    return replace(user, groups=tuple(sorted({*user.groups, *added}))[:_MAX_GROUPS]) if added else user


def root_alone(user: User) -> User:
    """Root without supplementary groups, in a namespace with no other user. Raises NotFoundError for other users."""
    if user.uid or user.gid:
        raise no_such_ids(user.uid, user.gid)
    return replace(user, groups=())


def no_such_ids(uid: int, gid: int) -> NotFoundError:
    """What to say where the kernel knows no such user in our namespace (EINVAL of chown(2))."""
    return NotFoundError(
        f"user {uid}:{gid} cannot be here: /etc/subuid and /etc/subgid give you no ids for it (see usermod(8))"
    )


def _find_person(inside: Inside, name: str) -> User:
    number = _number(name)
    for fields in _lines(inside, PASSWD, 7):
        found = _id(fields[2]), _id(fields[3])
        if found[0] is None or found[1] is None:
            continue
        if fields[0] == name or (number is not None and found[0] == number):
            groups = _groups_of(inside, fields[0], found[1])
            return User(found[0], found[1], groups, fields[0], fields[5] or "/")
    if number is None:
        raise NotFoundError(f"the image has no user {name!r} in /etc/passwd: give a number")
    return User(number, 0)


def _find_group(inside: Inside, name: str) -> int:
    number = _number(name)
    if number is not None:
        return number
    for fields in _lines(inside, GROUP, 4):
        found = _id(fields[2])
        if fields[0] == name and found is not None:
            return found
    raise NotFoundError(f"the image has no group {name!r} in /etc/group: give a number")


def _groups_of(inside: Inside, name: str, gid: int) -> tuple[int, ...]:
    found = {
        number
        for fields in _lines(inside, GROUP, 4)
        if name in fields[3].split(",") and (number := _id(fields[2])) is not None
    }
    return tuple(sorted(found - {gid}))[:_MAX_GROUPS]


def _lines(inside: Inside, path: bytes, fields: int) -> Iterator[list[str]]:
    """The lines with so many fields; none if the image has no such file."""
    try:
        data = inside.read(path, MAX_FILE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise InvalidError(f"{path.decode()} in the image cannot be read: {error.strerror}") from None
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        found = line.split(":")
        if len(found) >= fields and not line.startswith("#"):
            yield found


def _id(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 11 and int(text) <= _MAX_ID else None


def _number(text: str) -> int | None:
    """The number, None for a name. Raises InvalidError for a number that is not an id."""
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        return None
    found = _id(text)
    if found is None:
        raise InvalidError(f"{text[:20]} is no user or group: numbers go from 0 to {_MAX_ID}")
    return found
