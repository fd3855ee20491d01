"""Whiteouts and opaque directories at every position, and the marks of overlays smuggled in as xattrs or devices."""

from __future__ import annotations

from tests.image.tars import CHAR, directory, file, header, link, pax, symlink, xattrs

from .case import Case, contained, refused, too_much

NO_NAME = "a whiteout of no name"
NOTHING_IN = "a whiteout has nothing in it"
W255 = b"w" * 255
PLNK = b".wh..wh.plnk"

CASES: list[Case] = [
    refused("of nothing", NO_NAME, file(b".wh.")),
    refused("of nothing, in a directory", NO_NAME, file(b"d/.wh.")),
    refused("of a dot", NO_NAME, file(b".wh..")),
    refused("of two dots", NO_NAME, file(b".wh...")),
    refused("of two dots, in a directory", NO_NAME, file(b"d/.wh...")),
    refused("with something in it", NOTHING_IN, file(b".wh.x/y", b"x")),
    refused("with something deep in it", NOTHING_IN, file(b"a/.wh.x/y/z", b"x")),
    refused("of a dot with something in it", NOTHING_IN, file(b".wh../x", b"x")),
    refused("of nothing with something in it", NOTHING_IN, file(b".wh./x", b"x")),
    refused("then two dots", "leads out", file(b".wh.a/../../b", b"x")),
    refused("in a whiteout", NOTHING_IN, file(b".wh.a/.wh.b")),
    refused("beneath a file", "is no directory", file(b"a"), file(b"a/.wh.b")),
    refused("opaque file", "is no directory", file(b"a"), file(b"a/.wh..wh..opq")),
    too_much("of 256 bytes", "more than 255 bytes", pax({b"path": b".wh." + W255 + b"w"}), file(b"f")),
    contained("of 255 bytes", {W255: "w"}, pax({b"path": b".wh." + W255}), file(b"f")),
    contained("of one name", {b"d/x": "w"}, file(b"d/.wh.x")),
    contained("with content", {b"x": "w"}, file(b".wh.x", b"content")),
    contained("twice", {b"x": "w"}, file(b".wh.x"), file(b".wh.x")),
    contained("as a directory", {b"x": "w"}, directory(b".wh.x")),
    contained("as a symlink", {b"x": "w"}, symlink(b".wh.x", b"/etc")),
    contained("as a device", {b"x": "w"}, header(b".wh.x", CHAR, device=(1, 3))),
    contained("as a hard link", {b"f": "f:", b"x": "w"}, file(b"f"), link(b".wh.x", b"f")),
    contained("as the kernel's device", {b"x": "w"}, header(b"x", CHAR)),
    contained("as the kernel's device with a name in it", {b"x/y": "w"}, header(b"x/y", CHAR)),
    contained("after its file", {b"x": "f:1"}, file(b"x", b"1"), file(b".wh.x")),
    contained("before its file", {b"x": "f:1"}, file(b".wh.x"), file(b"x", b"1")),
    contained("after its directory", {b"d": "d!", b"d/f": "f:1"}, file(b"d/f", b"1"), file(b".wh.d")),
    contained("before its directory", {b"d": "d!", b"d/f": "f:1"}, file(b".wh.d"), file(b"d/f", b"1")),
    contained("of a directory with whiteouts", {b"d": "d!"}, file(b"d/.wh.x"), file(b".wh.d")),
    contained("of what looks like one", {b"a": "w"}, file(b".wh.a"), file(b".wh..wh.a")),
    contained("whose directory becomes a file", {b"d": "f:1"}, file(b"d/.wh.x"), file(b"d", b"1")),
    contained("whose directory becomes a symlink", {b"d": "l:.."}, file(b"d/.wh.x"), symlink(b"d", b"..")),
    contained("opaque root", {b"": "d!", b"f": "f:1"}, file(b".wh..wh..opq"), file(b"f", b"1")),
    contained("opaque", {b"d": "d!"}, directory(b"d"), file(b"d/.wh..wh..opq")),
    contained("opaque twice", {b"d": "d!"}, file(b"d/.wh..wh..opq"), file(b"d/.wh..wh..opq")),
    contained("opaque with content", {b"d": "d!"}, file(b"d/.wh..wh..opq", b"content")),
    contained("opaque as a directory", {b"d": "d!"}, directory(b"d/.wh..wh..opq")),
    contained("opaque before its directory", {b"d": "d!"}, file(b"d/.wh..wh..opq"), directory(b"d", 0o700)),
    contained("opaque after its entries", {b"d": "d!", b"d/f": "f:1"}, file(b"d/f", b"1"), file(b"d/.wh..wh..opq")),
    contained("opaque with whiteouts", {b"d": "d!"}, file(b"d/.wh.x"), file(b"d/.wh..wh..opq")),
    contained("deep in an opaque directory", {b"d": "d!", b"d/e": "d"}, file(b"d/e/.wh.x"), file(b"d/.wh..wh..opq")),
    contained("opaque whose directory becomes a file", {b"d": "f:1"}, file(b"d/.wh..wh..opq"), file(b"d", b"1")),
    contained("AUFS's own", {}, file(b".wh..wh.aufs"), directory(b".wh..wh.plnk"), file(b".wh..wh.plnk/1.2", b"x")),
    contained("AUFS's own as a symlink", {}, symlink(PLNK, b"/etc"), file(PLNK + b"/1.2", b"x")),
    contained(
        "link into AUFS's own",
        {b"a": "f:x", b"b": "h:a"},
        file(PLNK + b"/1", b"x"),
        link(b"a", PLNK + b"/1"),
        link(b"b", PLNK + b"/1"),
    ),
    contained(
        "link into AUFS's own, replaced",
        {b"a": "f:2", b"b": "f:1"},
        file(PLNK + b"/1", b"1"),
        link(b"a", PLNK + b"/1"),
        link(b"b", b"a"),
        file(b"a", b"2"),
    ),
    contained(
        "link into AUFS's own through a symlink",
        {b"l": "l:" + PLNK.decode(), b"a": "f:x"},
        symlink(b"l", PLNK),
        file(b"l/1", b"x"),
        link(b"a", b"l/1"),
    ),
    contained(
        "link into AUFS's own, twice there",
        {b"a": "f:1", b"b": "f:2"},
        file(PLNK + b"/1", b"1"),
        link(b"a", PLNK + b"/1"),
        file(PLNK + b"/1", b"2"),
        link(b"b", PLNK + b"/1"),
    ),
    contained("whiteout in AUFS's own", {}, file(PLNK + b"/.wh.x"), file(PLNK + b"/.wh..wh..opq")),
    contained("hard link in AUFS's own", {b"f": "f:1"}, file(b"f", b"1"), link(PLNK + b"/1", b"f")),
    refused("link into AUFS's own, of nothing", "into a layer below", link(b"a", PLNK + b"/1")),
    refused("link to AUFS's own itself", "hard link to the directory", file(PLNK + b"/1"), link(b"a", PLNK)),
    contained("AUFS's own through an opaque mark", {}, file(b".wh..wh..opq/x", b"x")),
    contained("AUFS's own, and a symlink", {}, symlink(b".wh..wh.orph", b"/etc"), file(b".wh..wh.orph/evil", b"x")),
    contained("not at the start", {b"a.wh.b": "f:1"}, file(b"a.wh.b", b"1")),
    contained("opaque xattr", {b"d": "d"}, xattrs({b"trusted.overlay.opaque": b"y"}), directory(b"d")),
    contained("opaque xattr of users", {b"d": "d"}, xattrs({b"user.overlay.opaque": b"y"}), directory(b"d")),
    contained("opaque xattr of fuse", {b"d": "d"}, xattrs({b"user.fuseoverlayfs.opaque": b"y"}), directory(b"d")),
    contained("whiteout xattr", {b"f": "f:"}, xattrs({b"trusted.overlay.whiteout": b"y"}), file(b"f")),
    contained("whiteout xattr of users", {b"f": "f:"}, xattrs({b"user.overlay.whiteout": b""}), file(b"f")),
    contained("redirect xattr", {b"d": "d"}, xattrs({b"trusted.overlay.redirect": b"/../../etc"}), directory(b"d")),
    contained("metacopy xattr", {b"f": "f:"}, xattrs({b"trusted.overlay.metacopy": b""}), file(b"f")),
    contained("origin xattr", {b"f": "f:"}, xattrs({b"user.overlay.origin": b"\0\xfb"}), file(b"f")),
    contained(
        "owner xattr", {b"f": "f:"}, xattrs({b"user.containers.override_stat": b"0:0:4777:file"}), file(b"f", uid=1000)
    ),
    contained(
        "owner xattr of the root", {}, xattrs({b"user.containers.override_stat": b"0:0:0777:dir"}), directory(b"./")
    ),
    contained("old owner xattr", {b"f": "f:"}, xattrs({b"user.fuseoverlayfs.override_stat": b"0:0:4777"}), file(b"f")),
    contained(
        "owner xattr of security",
        {b"f": "f:"},
        xattrs({b"security.fuseoverlayfs.override_stat": b"0:0:4777"}),
        file(b"f"),
    ),
]
