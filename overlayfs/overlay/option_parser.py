"""From the text of `-o` to OverlayOptions: which option means what, and what it may be.

`option_text` knows how lists and values are spelled, `mount_flags` what any filesystem has.  Imports
nothing but the standard library and these neighbours, so that a mount program's start stays short.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from enum import Enum

from overlayfs._typing import Any, NamedTuple
from overlayfs.overlay.mount_flags import (
    FLAG_CHANGES,
    MS_NOATIME,
    MS_RDONLY,
    NOT_A_NEW_MOUNT,
    FlagChange,
    is_for_others,
)
from overlayfs.overlay.option_text import (
    OptionItem,
    choice,
    decimal,
    id_number,
    id_triples,
    literal_path,
    on_off,
    seconds,
    single_path,
    split_layers,
    split_option_list,
    unescape,
    unquote,
    zero_one,
)
from overlayfs.overlay.options import (
    FsyncPolicy,
    IdRange,
    MountError,
    OverlayOptions,
    RedirectDir,
    WhiteoutFormat,
    validate,
)

# fuse-overlayfs's variable, set by those who cannot have device nodes in an upper.
DISABLE_OVERLAY_WHITEOUT = "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT"
_LONGEST_POLL_US = 10_000
# The kernel shows it only when SELinux is enabled.
SELINUX = "/sys/fs/selinux/enforce"


class ParsedOptions(NamedTuple):
    """What all the `-o` texts of one command line say together.

    `flags` are MS_* bits (see mount_flags), `fuse_options` go to FUSE as they stand; `source`,
    `subtype` and `poll_us` (µs) are None when not given; `lane` and `passthrough` say whether those are wanted;
    `warnings` are whole lines for the user, in the order written.
    """

    overlay: OverlayOptions
    flags: int = 0
    fuse_options: tuple[str, ...] = ()
    source: str | None = None
    subtype: str | None = None
    lane: bool = True
    passthrough: bool = False
    poll_us: int | None = None
    warnings: tuple[str, ...] = ()


def parse_options(
    texts: Iterable[str | bytes], cwd: str | bytes, environ: Mapping[str, str] = os.environ
) -> ParsedOptions:
    """Read the texts of any number of `-o`, in order; the later of two contradicting options wins.

    Layer paths become absolute against `cwd`, symlinks resolved (the kernel follows them too); nothing
    is said about paths that do not exist.  Raises MountError.
    """
    draft = _Draft()
    if DISABLE_OVERLAY_WHITEOUT in environ:
        draft.fields["whiteout"] = WhiteoutFormat.OCI
    for text in texts:
        for item in split_option_list(os.fsencode(text)):
            _take(draft, item)
    parsed = _finish(draft, os.fsencode(cwd))
    validate(parsed.overlay)
    return parsed


def changed_flags(texts: Iterable[str | bytes], flags: int) -> int | None:
    """What the MS_* bits of a mount become where the options ask for a remount, None where they do not.

    Whatever else they say is about a new mount, and mount(8) repeats it.
    """
    items = [item for text in texts for item in split_option_list(os.fsencode(text))]
    if {item.name for item in items} & NOT_A_NEW_MOUNT != {b"remount"}:  # of a bind mount it would be another one's
        return None
    for item in items:
        change = FLAG_CHANGES.get(item.name)
        if change is not None and item.value is None:
            flags = flags & ~change.cleared | change.set
    return flags


class _Draft:
    """The options read so far; `fields` holds finished values under their OverlayOptions name."""

    def __init__(self) -> None:
        self.lowers: list[bytes] = []
        self.data_lowers: list[bytes] = []
        self.layer_spelling: str | None = None
        self.fields: dict[str, Any] = {}
        self.squash_to_root = False
        self.flags = 0
        self.fuse: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.lane = True
        self.passthrough = False
        self.poll_us: int | None = None
        self.warnings: list[str] = []


def _take(draft: _Draft, item: OptionItem) -> None:
    if is_for_others(item.name):
        return
    reader = _READERS.get(item.name)
    if reader is None:
        draft.warnings.append(f"unknown option ignored: {_shown(item)}")
        return
    try:
        reader(draft, item)
    except ValueError as error:
        raise MountError(f"bad option {_shown(item)}: {error}") from None


def _finish(draft: _Draft, cwd: bytes) -> ParsedOptions:
    def resolved(path: bytes) -> bytes:
        return os.path.realpath(os.path.join(cwd, path))

    if {"allow_other", "allow_root"} <= draft.fuse.keys():
        raise MountError("allow_other and allow_root exclude each other")
    fields = ({"squash_uid": 0, "squash_gid": 0} if draft.squash_to_root else {}) | draft.fields
    for name in fields.keys() & {"upper", "work"}:
        fields[name] = resolved(fields[name])
    # What cannot be written must be mounted read-only, or each read makes the kernel ask for the atime again.
    flags = draft.flags if "upper" in fields else draft.flags | MS_RDONLY
    overlay = OverlayOptions(
        lowers=tuple(map(resolved, draft.lowers)),
        data_lowers=tuple(map(resolved, draft.data_lowers)),
        read_only=bool(flags & MS_RDONLY),
        noatime=bool(flags & MS_NOATIME),
        **fields,
    )
    return ParsedOptions(
        overlay,
        flags,
        tuple(draft.fuse.values()),
        draft.names.get("fsname"),
        draft.names.get("subtype"),
        draft.lane,
        draft.passthrough,
        draft.poll_us,
        tuple(draft.warnings),
    )


def _shown(item: OptionItem) -> str:
    """The item on one line, whatever bytes it holds, cut where it gets long."""
    whole = item.name if item.value is None else item.name + b"=" + item.value
    text = whole.decode(errors="backslashreplace")
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return line if len(line) <= 120 else line[:119] + "…"


# How each option is read.  A reader raises ValueError saying what is allowed.
_Reader = Callable[[_Draft, OptionItem], None]


def _required(item: OptionItem) -> bytes:
    if item.value is None:
        raise ValueError("a value is needed")
    return unquote(item.value)


def _refuse_value(item: OptionItem) -> None:
    if item.value is not None:
        raise ValueError("it takes no value")


def _valued(name: str, parse: Callable[[bytes], object]) -> _Reader:
    def read(draft: _Draft, item: OptionItem) -> None:
        draft.fields[name] = parse(_required(item))

    return read


def _word(name: str, meaning: object) -> _Reader:
    def read(draft: _Draft, item: OptionItem) -> None:
        _refuse_value(item)
        draft.fields[name] = meaning

    return read


def _switch(name: str, meaning: bool) -> _Reader:
    """`name`, `name=1` and `name=0`, as fuse-overlayfs has them."""

    def read(draft: _Draft, item: OptionItem) -> None:
        on = item.value is None or zero_one(_required(item))
        draft.fields[name] = meaning if on else not meaning

    return read


def _one_of(meanings: type[Enum]) -> Callable[[bytes], Enum]:
    words = {member.value.encode(): member for member in meanings}
    return lambda value: choice(value, words)


def _id_ranges(value: bytes) -> tuple[IdRange, ...]:
    return tuple(IdRange(*triple) for triple in id_triples(value))


def _fsync_policy(value: bytes) -> FsyncPolicy:
    # 0 and 1 are fuse-overlayfs's: 0 leaves out every fsync.
    numbers = {b"0": FsyncPolicy.VOLATILE, b"1": FsyncPolicy.AUTO}
    return choice(value, {policy.value.encode(): policy for policy in FsyncPolicy} | numbers)


def _xattr_permissions(value: bytes) -> int:
    return choice(value, {b"0": 0, b"1": 1, b"2": 2})


def _read_layers(draft: _Draft, item: OptionItem) -> None:
    _spell_layers(draft, "lowerdir=")
    lowers, data_lowers = split_layers(_required(item))
    draft.lowers[:], draft.data_lowers[:] = lowers, data_lowers


def _read_lower(draft: _Draft, item: OptionItem) -> None:
    _spell_layers(draft, "lowerdir+= and datadir+=")
    if draft.data_lowers:
        raise ValueError("lower layers cannot follow data-only ones")
    draft.lowers.append(literal_path(_required(item)))


def _read_data_lower(draft: _Draft, item: OptionItem) -> None:
    _spell_layers(draft, "lowerdir+= and datadir+=")
    draft.data_lowers.append(literal_path(_required(item)))


def _spell_layers(draft: _Draft, spelling: str) -> None:
    """Refuse a mix, of which nobody can say what order was meant, or what is replaced."""
    if draft.layer_spelling not in (None, spelling):
        raise ValueError(f"it cannot be mixed with {draft.layer_spelling}")
    draft.layer_spelling = spelling


def _read_index(draft: _Draft, item: OptionItem) -> None:
    # Asked for, it also means that the upper must go with the lowers; callers who move layers leave it out.
    draft.fields["index"] = draft.fields["verifies_origin"] = on_off(_required(item))


def _read_squash_to_root(draft: _Draft, item: OptionItem) -> None:
    _refuse_value(item)
    draft.squash_to_root = True


def _read_verity(_draft: _Draft, item: OptionItem) -> None:
    # A check that was asked for and is not made must never look as if it had been.
    if choice(_required(item), {b"off": False, b"on": True, b"require": True}):
        raise ValueError("digests of metacopy files cannot be verified yet; allowed: off")


def _read_flag(change: FlagChange) -> _Reader:
    def read(draft: _Draft, item: OptionItem) -> None:
        _refuse_value(item)
        draft.flags = draft.flags & ~change.cleared | change.set

    return read


def _read_no_new_mount(_draft: _Draft, _item: OptionItem) -> None:
    raise ValueError("only a new mount can be made; unmount first")


def _read_fuse_word(draft: _Draft, item: OptionItem) -> None:
    _refuse_value(item)
    draft.fuse[item.name.decode()] = item.name.decode()


def _read_max_read(draft: _Draft, item: OptionItem) -> None:
    draft.fuse["max_read"] = f"max_read={decimal(_required(item), 2**32 - 1)}"


def _read_lane(draft: _Draft, item: OptionItem) -> None:
    draft.lane = on_off(_required(item))


def _read_passthrough(draft: _Draft, item: OptionItem) -> None:
    draft.passthrough = on_off(_required(item))


def _read_poll(draft: _Draft, item: OptionItem) -> None:
    draft.poll_us = decimal(_required(item), _LONGEST_POLL_US)


def _read_name(draft: _Draft, item: OptionItem) -> None:
    draft.names[item.name.decode()] = os.fsdecode(unescape(_required(item)))


def _accept(*values: bytes) -> _Reader:
    """What holds here anyway: bare when no `values` are given, else with one of them."""

    def read(_draft: _Draft, item: OptionItem) -> None:
        if values:
            choice(_required(item), dict.fromkeys(values))
        else:
            _refuse_value(item)

    return read


def _read_without_effect(draft: _Draft, item: OptionItem) -> None:
    draft.warnings.append(f"option without effect: {_shown(item)}")


def _read_context(draft: _Draft, item: OptionItem) -> None:
    # Where SELinux is off, the kernel refuses the whole mount for it.
    if not os.path.exists(SELINUX):
        _read_without_effect(draft, item)
        return
    name = item.name.decode()
    draft.fuse[name] = f'{name}="{os.fsdecode(_required(item))}"'


_READERS: dict[bytes, _Reader] = {
    b"lowerdir": _read_layers,
    b"lowerdir+": _read_lower,
    b"datadir+": _read_data_lower,
    b"upperdir": _valued("upper", single_path),
    b"workdir": _valued("work", single_path),
    b"redirect_dir": _valued("redirect_dir", _one_of(RedirectDir)),
    b"index": _read_index,
    b"metacopy": _valued("metacopy", on_off),
    b"xino": _accept(b"on", b"off", b"auto"),
    b"userxattr": _word("user_xattr", True),
    b"volatile": _word("fsync", FsyncPolicy.VOLATILE),
    b"fsync": _valued("fsync", _fsync_policy),
    b"whiteout": _valued("whiteout", _one_of(WhiteoutFormat)),
    b"verity": _read_verity,
    b"uidmapping": _valued("uid_map", _id_ranges),
    b"gidmapping": _valued("gid_map", _id_ranges),
    b"squash_to_root": _read_squash_to_root,
    b"squash_to_uid": _valued("squash_uid", id_number),
    b"squash_to_gid": _valued("squash_gid", id_number),
    b"xattr_permissions": _valued("xattr_permissions", _xattr_permissions),
    b"timeout": _valued("timeout_s", seconds),
    b"noacl": _switch("acl", False),
    b"noxattrs": _switch("xattrs", False),
    b"lane": _read_lane,
    b"passthrough": _read_passthrough,
    b"poll": _read_poll,
    b"static_nlink": _switch("static_nlink", True),
    b"writeback": _switch("writeback", True),
    b"allow_other": _read_fuse_word,
    b"allow_root": _read_fuse_word,
    b"auto_unmount": _read_fuse_word,
    b"max_read": _read_max_read,
    b"fsname": _read_name,
    b"subtype": _read_name,
    b"default_permissions": _accept(),
    b"nonempty": _accept(),
    b"nomand": _accept(),
    **{name: _read_flag(change) for name, change in FLAG_CHANGES.items()},
    **dict.fromkeys(NOT_A_NEW_MOUNT, _read_no_new_mount),
    **dict.fromkeys(b"context fscontext defcontext rootcontext".split(), _read_context),
    **dict.fromkeys(b"nfs_export uuid threaded fast_ino ino32_t plugins".split(), _read_without_effect),
}
