"""Which options was the overlay mounted with?

How they are spelled in `-o` text is `option_parser`'s; checks that need a filesystem are the engine's.
"""

from __future__ import annotations

from enum import Enum

from overlayfs._typing import Any, NamedTuple


class MountError(Exception):
    """A mount that cannot be made; `str(error)` is the one line for the user."""


class RedirectDir(Enum):
    """Whether renamed directories are recorded (`ON`) and read (`ON`, `FOLLOW`)."""

    ON = "on"
    FOLLOW = "follow"
    NOFOLLOW = "nofollow"
    OFF = "off"


class FsyncPolicy(Enum):
    """When the mount itself syncs: for safe copy-ups, after every change, or never."""

    AUTO = "auto"
    STRICT = "strict"
    VOLATILE = "volatile"


class WhiteoutFormat(Enum):
    """How deletions and opaque directories are written into the upper."""

    OVERLAY = "overlay"
    OVERLAY_XATTR = "overlay-xattr"
    OCI = "oci"


class IdRange(NamedTuple):
    """`size` ids in a row: `disk` is the first one in the layers, `shown` the same one in the mount."""

    disk: int
    shown: int
    size: int


class OverlayOptions(NamedTuple):
    """One overlay as asked for; all paths absolute.

    `lowers` is top first.  `whiteout` None means: probe.  `timeout_s` None means for ever, 0 that the
    lower layers may change under the mount.  `user_xattr` puts marks under `user.overlay.` even where
    `trusted.overlay.` is allowed.  `verifies_origin` refuses an upper that was first mounted on other
    lowers.  `read_only` is what was asked; a mount without upper is so too.  With `noatime` no reading
    moves an access time in the upper either.
    """

    lowers: tuple[bytes, ...]
    data_lowers: tuple[bytes, ...] = ()
    upper: bytes | None = None
    work: bytes | None = None
    redirect_dir: RedirectDir = RedirectDir.ON
    index: bool = True  # type: ignore[assignment] # tuple's method of this name is not used
    verifies_origin: bool = False
    metacopy: bool = False
    user_xattr: bool = False
    fsync: FsyncPolicy = FsyncPolicy.AUTO
    whiteout: WhiteoutFormat | None = None
    uid_map: tuple[IdRange, ...] = ()
    gid_map: tuple[IdRange, ...] = ()
    squash_uid: int | None = None
    squash_gid: int | None = None
    xattr_permissions: int = 0
    timeout_s: float | None = None
    acl: bool = True
    xattrs: bool = True
    static_nlink: bool = False
    writeback: bool = False
    read_only: bool = False
    noatime: bool = False


_PATHS = ("lowers", "data_lowers", "upper", "work")
_ENUMS: dict[str, type[Enum]] = {"redirect_dir": RedirectDir, "fsync": FsyncPolicy, "whiteout": WhiteoutFormat}
_ID_MAPS = ("uid_map", "gid_map")


def to_facts(options: OverlayOptions) -> dict[str, Any]:
    """All but the paths, as JSON can have it."""
    values = {name: value for name, value in options._asdict().items() if name not in _PATHS}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


def from_facts(facts: dict[str, Any], options: OverlayOptions) -> OverlayOptions:
    """These options with everything that `to_facts` has told of others. ValueError, TypeError for anything else."""
    values = dict(facts)
    for name, kind in _ENUMS.items():
        values[name] = None if values[name] is None else kind(values[name])
    for name in _ID_MAPS:
        values[name] = tuple(IdRange(*map(int, numbers)) for numbers in values[name])
    return options._replace(**values)


def validate(options: OverlayOptions) -> None:
    """Refuse what no filesystem could make right; raises MountError.  Looks at no file."""
    if not options.lowers:
        raise MountError("no lower layer: lowerdir= is missing")
    if options.upper and not options.work:
        raise MountError("upperdir= needs workdir=, an empty directory of the same filesystem")
    if options.work and not options.upper:
        raise MountError("workdir= is of no use without upperdir=")
    if options.data_lowers and options.redirect_dir not in (RedirectDir.ON, RedirectDir.FOLLOW):
        raise MountError("data-only layers ('::', datadir+=) need redirect_dir=on or redirect_dir=follow")
