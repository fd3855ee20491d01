"""Owners that the mount shows otherwise than the disk has them: id maps and squashing.

No map here is its own inverse, so that a map applied the wrong way round fails.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from overlayfs.overlay.options import IdRange

from ..case import EVERYWHERE, MOUNTED, OURS, Case, Step
from ..steps import (
    append_to,
    chmod,
    chown,
    create,
    getxattr,
    make_symlink,
    mkdir,
    mkfifo,
    overwrite,
    read,
    removexattr,
    rename,
    setxattr,
    stat,
)
from ..tree import Tree, acl, directory, fifo, file, symlink

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
CAPABILITY = "security.capability"

# What podman passes for --userns=keep-id of user 1001: uid 0 of the disk shows as 1, 1001 as 0.
UIDS = (IdRange(0, 1, 1001), IdRange(1001, 0, 1), IdRange(1002, 1002, 64535))
# And something else, so that uids and gids cannot be mistaken: gid 0 of the disk shows as 200, 1000 as 0.
GIDS = (IdRange(0, 200, 1000), IdRange(1000, 0, 200), IdRange(1200, 1200, 64000))
MAPPED = {"uid_map": UIDS, "gid_map": GIDS}
# What podman passes for --uidmap 0:100000:65536: root of the host is nobody in there.
SHIFTED = {"uid_map": (IdRange(0, 100000, 65536),), "gid_map": (IdRange(0, 200000, 65536),)}
SQUASHED = {"squash_uid": 7, "squash_gid": 8}
NOBODY = 65534


def owner_case(
    name: str,
    steps: Sequence[Step],
    view: Tree,
    lower: Tree,
    upper_after: Tree | None = None,
    options: dict[str, Any] = MAPPED,
    targets: frozenset[str] = EVERYWHERE,
) -> Case:
    """A case over one lower layer; `lower` and `upper_after` have the owners on disk, `view` those that are shown."""
    root = {} if "" in view else {"": directory(0o755, 1, 200)}
    return Case(
        f"ids-{name}", [lower], {**root, **view}, steps, {}, upper_after or {}, targets=targets, options=options
    )


def capability(root: int | None = None) -> bytes:
    """CAP_NET_RAW as the xattr holds it (linux/capability.h); with `root`, for the user namespace of that root."""
    if root is None:
        return struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    return struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, root)


SHOWN = [
    owner_case(
        "of-every-kind",
        [stat("f", uid=1, gid=200), stat("g", uid=0, gid=0)],
        {"f": file(b"x", 0o644, 1, 200), "g": file(b"x", 0o644, 0, 0), "s": symlink("t", 34, 233), "p": fifo(0o644, 1002, 1), "d": directory(0o755, 1001, 1200)},
        {"f": file(b"x"), "g": file(b"x", 0o644, 1001, 1000), "s": symlink("t", 33, 33), "p": fifo(0o644, 1002, 1001), "d": directory(0o755, 1000, 1200)},
    ),
    owner_case("beyond-the-map-is-nobody", [], {"f": file(b"x", 0o644, NOBODY, NOBODY)}, {"f": file(b"x", 0o644, 70000, 80000)}),
    owner_case("in-acls", [], {"f": file(b"x", 0o640, 1, 200, xattrs={ACCESS: acl(6, 0, 0, 4, {34: 4}, {233: 4})})}, {"f": file(b"x", 0o640, xattrs={ACCESS: acl(6, 0, 0, 4, {33: 4}, {33: 4})})}),
    owner_case("in-capabilities", [getxattr("f", CAPABILITY, capability(34))], {"f": file(b"x", 0o755, 1, 200, xattrs={CAPABILITY: capability(34)})}, {"f": file(b"x", 0o755, xattrs={CAPABILITY: capability(33)})}),
    owner_case("not-in-capabilities-of-all", [getxattr("f", CAPABILITY, capability(1))], {"f": file(b"x", 0o755, 1, 200, xattrs={CAPABILITY: capability(1)})}, {"f": file(b"x", 0o755, xattrs={CAPABILITY: capability()})}),
    owner_case("decide-who-may-read", [read("f", b"x").by(34), read("f", b"x").by(33).fails(13)], {"f": file(b"x", 0o600, 34, 200)}, {"f": file(b"x", 0o600, 33, 0)}, targets=MOUNTED),
    owner_case("decide-what-acls-grant", [read("f", b"x").by(34), read("f", b"x").by(33).fails(13)], {"f": file(b"x", 0o640, 1, 200, xattrs={ACCESS: acl(6, 0, 0, 4, {34: 4})})}, {"f": file(b"x", 0o640, xattrs={ACCESS: acl(6, 0, 0, 4, {33: 4})})}, targets=MOUNTED),
]  # fmt: skip

OPEN = directory(0o777, 1, 200)

WRITTEN = [
    owner_case(
        "of-what-is-new",
        [create("h", "d/f").by(34, 233), mkdir("d/e").by(34, 233), make_symlink("t", "d/s").by(34, 233), mkfifo("d/p").by(0, 0)],
        {"d": OPEN, "d/f": file(b"", 0o644, 34, 233), "d/e": directory(0o755, 34, 233), "d/s": symlink("t", 34, 233), "d/p": fifo(0o644, 0, 0)},
        {"d": directory(0o777)},
        {"d/f": file(b"", 0o644, 33, 33), "d/s": symlink("t", 33, 33), "d/p": fifo(0o644, 1001, 1000)},
    ),
    owner_case("of-a-plain-file-by-root", [create("h", "f")], {"f": file(b"", 0o644, 0, 0)}, {}, {"f": file(b"", 0o644, 1001, 1000)}),
    owner_case("by-chown", [chown("f", 34, 0), chown("s", 0, -1)], {"f": file(b"x", 0o644, 34, 0), "s": symlink("t", 0, 200)}, {"f": file(b"x"), "s": symlink("t")}, {"f": file(b"x", 0o644, 33, 1000), "s": symlink("t", 1001, 0)}),
    owner_case("kept-by-copy-up", [*append_to("d/f", b"+")], {"d": directory(0o755, 34, 233), "d/f": file(b"x+", 0o644, 0, 0)}, {"d": directory(0o755, 33, 33), "d/f": file(b"x", 0o644, 1001, 1000)}, {"d": directory(0o755, 33, 33), "d/f": file(b"x+", 0o644, 1001, 1000)}),
    owner_case("beyond-the-map-kept-by-copy-up", [chmod("f", 0o600)], {"f": file(b"x", 0o600, NOBODY, NOBODY)}, {"f": file(b"x", 0o644, 70000, 80000)}, {"f": file(b"x", 0o600, 70000, 80000)}),
    owner_case("kept-by-rename", [rename("d", "e")], {"e": directory(0o755, 34, 233), "e/f": file(b"x", 0o644, 0, 0)}, {"d": directory(0o755, 33, 33), "d/f": file(b"x", 0o644, 1001, 1000)}, {"e": directory(0o755, 33, 33)}),
    owner_case("of-setgid-directory", [create("h", "d/f").by(34, 1), mkdir("d/e").by(34, 1)], {"d": directory(0o2777, 1, 233), "d/f": file(b"", 0o644, 34, 233), "d/e": directory(0o2755, 34, 233)}, {"d": directory(0o2777, 0, 33)}, {"d/f": file(b"", 0o644, 33, 33)}),
    owner_case("of-setgid-directory-beyond-the-map", [mkdir("d/e").by(34, 1)], {"d": directory(0o2777, 1, NOBODY), "d/e": directory(0o2755, 34, NOBODY)}, {"d": directory(0o2777, 0, 80000)}, {"d/e": directory(0o2755, 33, 80000)}),
    owner_case("in-acls-by-setfacl", [setxattr("f", ACCESS, acl(6, 0, 0, 4, {34: 4}, {0: 4}))], {"f": file(b"x", 0o640, 1, 200, xattrs={ACCESS: acl(6, 0, 0, 4, {34: 4}, {0: 4})})}, {"f": file(b"x")}, {"f": file(b"x", 0o640, xattrs={ACCESS: acl(6, 0, 0, 4, {33: 4}, {1000: 4})})}),
    owner_case("in-default-acls", [create("h", "d/f", 0o666).by(0, 0)], {"d": directory(0o777, 1, 200, xattrs={DEFAULT: acl(7, 5, 0, 7, {34: 7})}), "d/f": file(b"", 0o660, 0, 0, xattrs={ACCESS: acl(6, 5, 0, 6, {34: 7})})}, {"d": directory(0o777, xattrs={DEFAULT: acl(7, 5, 0, 7, {33: 7})})}, {"d/f": file(b"", 0o660, 1001, 1000, xattrs={ACCESS: acl(6, 5, 0, 6, {33: 7})})}),
    owner_case("in-capabilities-by-setcap", [setxattr("f", CAPABILITY, capability(34))], {"f": file(b"x", 0o755, 1, 200, xattrs={CAPABILITY: capability(34)})}, {"f": file(b"x", 0o755)}, {"f": file(b"x", 0o755, xattrs={CAPABILITY: capability(33)})}),
    owner_case("in-capabilities-of-the-root-shown", [setxattr("f", CAPABILITY, capability(1))], {"f": file(b"x", 0o755, 1, 200, xattrs={CAPABILITY: capability(1)})}, {"f": file(b"x", 0o755)}, {"f": file(b"x", 0o755, xattrs={CAPABILITY: capability()})}),
    owner_case("in-capabilities-of-root-by-setcap", [setxattr("f", CAPABILITY, capability())], {"f": file(b"x", 0o755, 1, 200, xattrs={CAPABILITY: capability()})}, {"f": file(b"x", 0o755)}, {"f": file(b"x", 0o755, xattrs={CAPABILITY: capability(1001)})}),
    owner_case("in-capabilities-kept-by-copy-up", [chmod("f", 0o700)], {"f": file(b"x", 0o700, 1, 200, xattrs={CAPABILITY: capability(34)})}, {"f": file(b"x", 0o755, xattrs={CAPABILITY: capability(33)})}, {"f": file(b"x", 0o700, xattrs={CAPABILITY: capability(33)})}),
    owner_case("kept-by-write-and-acl-removal", [removexattr("f", ACCESS), *overwrite("f", b"y")], {"f": file(b"y", 0o640, 34, 233)}, {"f": file(b"x", 0o640, 33, 33, xattrs={ACCESS: acl(6, 0, 0, 4, {33: 4})})}, {"f": file(b"y", 0o640, 33, 33)}),
]  # fmt: skip

SHIFTED_ROOT = {"": directory(0o755, 100000, 200000)}

SPECIAL = [
    owner_case(
        "shifted",
        [create("h", "d/f").by(100033, 200034), chown("g", 100005, 200006)],
        {**SHIFTED_ROOT, "d": directory(0o777, 100000, 200000), "d/f": file(b"", 0o644, 100033, 200034), "g": file(b"x", 0o644, 100005, 200006)},
        {"d": directory(0o777), "g": file(b"x")},
        {"d/f": file(b"", 0o644, 33, 34), "g": file(b"x", 0o644, 5, 6)},
        options=SHIFTED,
        targets=OURS,
    ),
    owner_case("nobody-of-who-is-beyond-the-map", [create("h", "f"), chown("g", 5, 6)], {**SHIFTED_ROOT, "f": file(b"", 0o644, 165534, 265534), "g": file(b"x", 0o644, 165534, 265534)}, {"g": file(b"x")}, {"f": file(b"", 0o644, NOBODY, NOBODY), "g": file(b"x", 0o644, NOBODY, NOBODY)}, options=SHIFTED, targets=OURS),
    owner_case("squashed", [create("h", "d/f").by(34, 34), chown("g", 5, 6)], {"": directory(0o755, 7, 8), "d": directory(0o777, 7, 8), "d/f": file(b"", 0o644, 7, 8), "g": file(b"x", 0o644, 7, 8)}, {"d": directory(0o777, 5, 6), "g": file(b"x", 0o644, 33, 33)}, {"d/f": file(b""), "g": file(b"x")}, options=SQUASHED, targets=OURS),
]  # fmt: skip

CASES = [*SHOWN, *WRITTEN, *SPECIAL]
