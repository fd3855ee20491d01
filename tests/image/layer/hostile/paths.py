"""Names that lead elsewhere, or nowhere."""

from __future__ import annotations

from tests.image.tars import (
    BLOCK,
    CHAR,
    DIRECTORY,
    FIFO,
    GNU,
    V7,
    directory,
    file,
    gnu_long,
    header,
    pax,
)

from .case import Case, contained, refused, too_much

OUT = "leads out of the layer"
F = {b"f": "f:x"}
NAME_255, NAME_256 = b"n" * 255, b"n" * 256

CASES: list[Case] = [
    refused("two dots", OUT, file(b"../evil", b"x")),
    refused("two dots inside", OUT, directory(b"a"), file(b"a/../../evil", b"x")),
    refused("two dots that come back", OUT, directory(b"a"), file(b"a/../b", b"x")),
    refused("two dots at the end", OUT, directory(b"a"), directory(b"a/..")),
    refused("two dots alone", OUT, directory(b"..")),
    refused("two dots after dots and slashes", OUT, file(b".//../evil", b"x")),
    refused("many two dots", OUT, file(b"../" * 30 + b"evil", b"x")),
    refused("two dots after the root", OUT, file(b"/../evil", b"x")),
    refused("two dots in the prefix", OUT, file(b"evil", b"x", prefix=b"..")),
    refused("two dots in pax", OUT, pax({b"path": b"../evil"}), file(b"f", b"x")),
    refused("two dots in a GNU long name", OUT, gnu_long(b"../evil\0"), file(b"f", b"x", magic=GNU)),
    refused(
        "two dots in a sparse name",
        OUT,
        pax({b"GNU.sparse.name": b"../evil", b"GNU.sparse.map": b"0,1", b"GNU.sparse.size": b"1"}),
        file(b"f", b"x"),
    ),
    refused("device that leads out", OUT, header(b"../evil", CHAR, device=(1, 3))),
    contained("absolute", {b"etc/evil": "f:x"}, file(b"/etc/evil", b"x")),
    contained("absolute with many slashes", {b"etc/evil": "f:x"}, file(b"///etc///evil", b"x")),
    contained("dots", {b"a/b": "f:x"}, file(b"./a/././b", b"x")),
    contained("root with a dot", F, directory(b"/."), file(b"f", b"x")),
    contained("root as a slash", F, directory(b"/"), file(b"f", b"x")),
    contained("root without a name", F, directory(b""), file(b"f", b"x")),
    refused("root as a file", "root of a layer is a directory", file(b".", b"x")),
    refused("root as a fifo", "root of a layer is a directory", header(b"/", FIFO)),
    refused("no name", "root of a layer is a directory", file(b"", b"x")),
    contained("three dots", {b"...": "f:x", b"..a/b": "f:x"}, file(b"...", b"x"), file(b"..a/b", b"x")),
    contained("backslashes", {b"..\\evil": "f:x"}, file(b"..\\evil", b"x")),
    contained("not UTF-8", {b"\xff\xfe\x80": "f:x"}, file(b"\xff\xfe\x80", b"x")),
    contained("control characters", {b"\x1b[2J\n\r\x07": "f:x"}, file(b"\x1b[2J\n\r\x07", b"x")),
    contained("name of 255 bytes", {NAME_255: "f:x"}, pax({b"path": NAME_255}), file(b"f", b"x")),
    too_much("name of 256 bytes", "more than 255 bytes", pax({b"path": NAME_256}), file(b"f", b"x")),
    too_much("directory of 256 bytes", "more than 255 bytes", pax({b"path": NAME_256 + b"/f"}), file(b"f", b"x")),
    too_much("path of 4096 bytes", "more than 4095 bytes", pax({b"path": b"d/" * 2047 + b"fi"}), file(b"f", b"x")),
    too_much("3000 deep", "more than 4095 bytes", pax({b"path": b"d/" * 3000 + b"f"}), file(b"f", b"x")),
    contained("400 deep", {b"d/" * 400 + b"f": "f:x"}, pax({b"path": b"d/" * 400 + b"f"}), file(b"f", b"x")),
    refused("NUL in pax", "NUL", pax({b"path": b"f\0/../evil"}), file(b"f", b"x")),
    refused("NUL in pax target", "NUL", pax({b"linkpath": b"f\0evil"}), header(b"l", b"2", link=b"f")),
    contained("file with a slash is a directory", {b"a": "d"}, file(b"a/", b"")),
    contained("old directory", {b"a": "d"}, header(b"a/", b"\0", magic=V7)),
    refused("beneath a file", "is no directory", file(b"a", b"x"), file(b"a/b", b"x")),
    refused("deep beneath a file", "is no directory", file(b"a", b"x"), file(b"a/b/c/d", b"x")),
    refused("beneath a fifo", "is no directory", header(b"a", FIFO), file(b"a/b", b"x")),
    refused("beneath a device", "is no directory", header(b"a", BLOCK, device=(8, 0)), directory(b"a/b")),
    contained("file, then directory", {b"a/b": "f:x"}, file(b"a", b"1"), directory(b"a"), file(b"a/b", b"x")),
    contained("directory, then file", {b"a": "f:x"}, directory(b"a"), file(b"a/b/c", b"1"), file(b"a", b"x")),
    contained("same file twice", {b"a": "f:2"}, file(b"a", b"1"), file(b"a", b"2")),
    contained("same file, another spelling", {b"a": "f:2"}, file(b"a", b"1"), file(b"/./a", b"2")),
    contained("same directory twice", {b"a/b": "f:x"}, directory(b"a"), file(b"a/b", b"x"), directory(b"a", 0o700)),
    contained("directory without write permission", {b"a/b": "f:x"}, directory(b"a", 0), file(b"a/b", b"x")),
    contained("device, then file", {b"a": "f:x"}, header(b"a", CHAR, device=(1, 3)), file(b"a", b"x")),
    contained("fifo, then file", {b"a": "f:x"}, header(b"a", FIFO), file(b"a", b"x")),
    contained("100 deep, then replaced", {b"d": "f:x"}, pax({b"path": b"d/" * 100}), directory(b"d"), file(b"d", b"x")),
    refused(
        "same kind of root twice as a file", "root of a layer", directory(b"./"), header(b"./", DIRECTORY), file(b"./.")
    ),
]
