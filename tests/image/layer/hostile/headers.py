"""Headers that say too much, too little, or something else to every reader."""

from __future__ import annotations

from overlayfs.image.oci.errors import InvalidError, LimitError
from tests.image.tars import (
    CHAR,
    END,
    FILE,
    GNU,
    V7,
    base256,
    directory,
    extended,
    file,
    gnu_long,
    gnu_sparse,
    header,
    padded,
    pax,
    symlink,
    tar,
    xattrs,
)

from .case import Case, contained, refused, too_much

F = {b"f": "f:x"}
FX = file(b"f", b"x")
MIDDLE = "ends in the middle"


def cut(name: str, words: str, data: bytes) -> Case:
    return Case(name, data, None, InvalidError, words)


def sparse(name: str, words: str, records: dict[bytes, bytes], data: bytes = b"x") -> Case:
    return refused(name, words, pax({b"GNU.sparse.size": b"1000", **records}), file(b"f", data))


def sparse_1_0(name: str, words: str, data: bytes, size: bytes = b"1000") -> Case:
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": size}
    return refused(name, words, pax({b"GNU.sparse.name": b"f", **records}), file(b"g", data))


CASES: list[Case] = [
    refused("wrong checksum", "checksum", header(b"f", checksum=1)),
    refused("no checksum", "checksum", header(b"f", checksum=b"")),
    refused("checksum that is no number", "malformed", header(b"f", checksum=b"xyz")),
    refused("random bytes", "a number in the header is malformed", b"\x13" * 512),
    refused("size that is no number", "malformed", header(b"f", size=b"12x4")),
    refused("size with an underscore", "malformed", header(b"f", size=b"1_0")),
    refused("size with a prefix", "malformed", header(b"f", size=b"0o17")),
    refused("size with a sign", "malformed", header(b"f", size=b"-1")),
    refused("size with an 8", "malformed", header(b"f", size=b"00000000080")),
    refused("negative size", "negative", header(b"f", size=base256(-1, 12))),
    refused("negative size of a second member", "negative", FX, header(b"g", size=base256(-512, 12))),
    refused("negative size of an extended header", "negative", header(b"x", b"x", base256(-512, 12)), FX),
    refused("negative owner", "negative", header(b"f", uid=base256(-1, 8))),
    refused("negative mode", "negative", header(b"f", mode=base256(-1, 8))),
    too_much("size of 2^63", "larger than", header(b"f", size=base256(1 << 63, 12))),
    too_much("size of 2^90", "larger than", header(b"f", size=base256(1 << 90, 12))),
    too_much("size of 8 GiB", "larger than", header(b"f", size=b"77777777777")),
    refused("owner -1", "is no owner", header(b"f", uid=base256((1 << 32) - 1, 8))),
    refused("owner of 2^40", "is no owner", header(b"f", gid=base256(1 << 40, 8))),
    contained("time of 2^80", {b"f": "f:"}, header(b"f", mtime=base256(1 << 80, 12))),
    contained("time of -2^80", {b"f": "f:"}, header(b"f", mtime=base256(-(1 << 80), 12))),
    contained("time before 1970", {b"f": "f:"}, header(b"f", mtime=base256(-100, 12))),
    refused("device of a large number", "no device number", header(b"f", CHAR, device=(base256(1 << 40, 8), 0))),
    cut("header cut short", MIDDLE, tar(FX)[:1100]),
    cut("data cut short", MIDDLE, file(b"f", b"x" * 1000)[:1000]),
    cut("data missing", MIDDLE, header(b"f", size=10)),
    cut("padding cut short", MIDDLE, FX[:700]),
    cut("extended header cut short", MIDDLE, pax({b"path": b"f"})[:600]),
    cut("ends after an extended header", "ends after an extended header", pax({b"path": b"f"})),
    refused("end marker after an extended header", "ends after an extended header", pax({b"path": b"f"})),
    refused("one block of zeros", "a block of zeros", FX, bytes(512), file(b"g")),
    Case("no end marker", FX, F),
    Case("one block of zeros at the end", FX + bytes(512), F),
    Case("nothing", b"", {}),
    Case("members after the end", FX + END + file(b"../evil", b"x"), F),
    Case("rubbish after the end", FX + END + b"\xff" * 1000, F),
    *(refused(f"type {kind!r}", "are unknown", header(b"f", kind)) for kind in (b"A", b"D", b"M", b"V", b"8", b"\xff")),
    contained("contiguous file", F, header(b"f", b"7", 1) + padded(b"x")),
    contained("V7 header", F, file(b"f", b"x", magic=V7)),
    contained("directory", {b"d": "d", **F}, header(b"d", b"5", 0) + FX),
    refused("hard link with data", "checksum", FX, header(b"h", b"1", 512, link=b"f") + b"\xaa" * 512),
    refused("symlink with data", "checksum", header(b"l", b"2", 512, link=b"f") + b"\xaa" * 512),
    too_much("extended header of 8 MiB", "at most", pax({b"path": b"x" * (8 << 20)}), FX),
    too_much("GNU name of 2 MiB", "at most", gnu_long(b"x" * (2 << 20)), FX),
    too_much("global header of 2 MiB", "at most", pax({b"comment": b"x" * (2 << 20)}, b"g"), FX),
    too_much("extended header of 2^62 bytes", "at most", header(b"x", b"x", base256(1 << 62, 12)), FX),
    refused("17 extended headers", "too many extended headers", *[pax({b"comment": b"x"})] * 17, FX),
    contained("16 extended headers", F, *[pax({b"comment": b"x"})] * 16, FX),
    contained("global header with a path", F, pax({b"path": b"../evil", b"size": b"0"}, b"g"), FX),
    contained("extended header with nothing", F, extended(b""), FX),
    contained("empty path", F, pax({b"path": b""}), FX),
    contained("last record counts", F, pax([(b"path", b"../evil"), (b"path", b"f")]), file(b"g", b"x")),
    refused("length of zero", "malformed extended header", extended(b"0 path=f\n"), FX),
    refused("length too small", "malformed", extended(b"3 path=f\n"), FX),
    refused("length too large", "malformed extended header", extended(b"999 path=f\n"), FX),
    refused("length with a sign", "malformed extended header", extended(b"+9 path=f\n"), FX),
    refused("length of a thousand digits", "malformed extended header", extended(b"9" * 1000 + b" a=b\n"), FX),
    refused("no length", "malformed extended header", extended(b"path=f\n"), FX),
    refused("no newline", "malformed extended header", extended(b"8 path=f"), FX),
    refused("no value", "malformed record", extended(b"7 path\n"), FX),
    refused("no key", "malformed record", extended(b"5 =f\n"), FX),
    refused("bytes after the records", "malformed", extended(b"9 path=f\n\0\0\0"), FX),
    refused("size in pax with a sign", "malformed number", pax({b"size": b"-1"}), FX),
    refused("size in pax with an underscore", "malformed number", pax({b"size": b"1_0"}), FX),
    refused("size in pax with a blank", "malformed number", pax({b"size": b" 1"}), FX),
    refused("size in pax of a million digits", "malformed number", pax({b"size": b"9" * 1000000}), FX),
    too_much("size in pax of 2^63", "larger than", pax({b"size": b"9223372036854775808"}), FX),
    refused("size in pax larger than the archive", MIDDLE, pax({b"size": b"100000"}), FX),
    refused("owner in pax", "malformed number", pax({b"uid": b"root"}), FX),
    refused("owner -1 in pax", "is no owner", pax({b"gid": b"4294967295"}), FX),
    contained("time in pax out of range", {b"f": "f:x"}, pax({b"mtime": b"999999999999999999"}), FX),
    contained("time in pax far out of range", {b"f": "f:x"}, pax({b"mtime": b"-" + b"9" * 30}), FX),
    *(
        refused(f"time in pax that is no number: {time!r}", "malformed time", pax({b"mtime": time}), FX)
        for time in (b"nan", b"inf", b"-inf", b"1e9", b"0x1", b"+1", b"--1", b".5", b"1" * 31, b" 1", b"1_0")
    ),
    refused("xattr without a name", "xattr's name", xattrs({b"": b"x"}), FX),
    refused("xattr with NUL", "xattr's name", xattrs({b"user.a\0b": b"x"}), FX),
    refused("xattr with a long name", "xattr's name", xattrs({b"user." + b"x" * 300: b"x"}), FX),
    refused("xattr of 64 KiB and one", "more than 65536 bytes", xattrs({b"user.x": b"x" * 65537}), FX),
    refused("xattr that is no base64", "malformed xattr", pax({b"LIBARCHIVE.xattr.user.x": b"x"}), FX),
    contained("xattr of no namespace", F, xattrs({b"evil": b"x"}), FX),
    contained("xattr of an unknown namespace", F, xattrs({b"os2.evil": b"x"}), FX),
    contained("capability that is none", F, xattrs({b"security.capability": b"x"}), FX),
    contained("ACL that is none", F, xattrs({b"system.posix_acl_access": b"x"}), FX),
    contained("xattr of 64 KiB", F, xattrs({b"user.x": b"x" * 65536}), FX),
    contained("setuid", F, file(b"f", b"x", mode=0o6755)),
    contained("mode of a type", F, file(b"f", b"x", mode=0o120777)),
    sparse("sparse map of one number", "malformed sparse map", {b"GNU.sparse.map": b"0"}),
    sparse("sparse map of letters", "malformed number", {b"GNU.sparse.map": b"x,y"}),
    sparse("sparse map with signs", "malformed number", {b"GNU.sparse.map": b"-1,2"}),
    sparse("sparse extents that overlap", "overlap", {b"GNU.sparse.map": b"0,10,5,10"}, b"x" * 20),
    sparse("sparse extents backwards", "overlap", {b"GNU.sparse.map": b"10,1,0,1"}, b"xx"),
    sparse("sparse extent outside", "overlap", {b"GNU.sparse.map": b"1000,1"}),
    sparse("sparse extent of 2^63", "overlap", {b"GNU.sparse.map": b"0,9223372036854775807"}),
    sparse("sparse data missing", "another amount", {b"GNU.sparse.map": b"0,10"}),
    sparse("sparse data too much", "another amount", {b"GNU.sparse.map": b"0,1"}, b"xx"),
    sparse("sparse map too long", "too long", {b"GNU.sparse.map": b",".join([b"0"] * 202)}),
    refused("sparse map without size", "does not tell its size", pax({b"GNU.sparse.map": b"0,1"}), FX),
    refused(
        "sparse extents in the wrong order",
        "malformed sparse map",
        pax([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.numbytes", b"1"), (b"GNU.sparse.offset", b"0")]),
        FX,
    ),
    too_much(
        "sparse file of 8 EiB",
        "larger than",
        pax({b"GNU.sparse.size": b"9223372036854775807", b"GNU.sparse.map": b"0,1"}),
        FX,
    ),
    sparse_1_0("sparse map cut short", "cut short", b"3\n0\n1\n"),
    sparse_1_0("sparse map without data", "cut short", b""),
    sparse_1_0("sparse map of many", "too long", padded(b"999999999\n0\n1\n")),
    sparse_1_0("sparse map without lines", "malformed", b"1" * 512),
    sparse_1_0("sparse map without numbers", "malformed number", padded(b"x\n0\n1\n")),
    sparse_1_0("sparse map of a negative count", "malformed number", padded(b"-1\n0\n1\n")),
    refused(
        "old sparse file without its map", "malformed|another amount", gnu_sparse(b"f", [(0, 1)], 1000, b"x", more=True)
    ),
    refused("old sparse extents that overlap", "overlap", gnu_sparse(b"f", [(0, 2), (1, 2)], 1000, b"xxxx")),
    too_much("old sparse file of 8 GiB", "larger than", gnu_sparse(b"f", [(0, 1)], (1 << 33) - 1, b"x")),
    contained("old sparse file", {b"f": "f:x\0\0\0"}, gnu_sparse(b"f", [(0, 1)], 4, b"x", more=False)),
    contained(
        "sparse file",
        {b"f": "f:\0x\0y"},
        pax({b"GNU.sparse.size": b"4", b"GNU.sparse.map": b"1,1,3,1"}),
        file(b"f", b"xy"),
    ),
    Case(
        "more members than allowed",
        lambda: tar(*(file(b"%d" % n) for n in range(600))),
        None,
        LimitError,
        "has more than 500",
    ),
    Case(
        "more directories than allowed",
        tar(pax({b"path": b"d/" * 600 + b"f"}), FX),
        None,
        LimitError,
        "files and directories",
    ),
    Case(
        "more bytes than allowed",
        lambda: tar(*[file(b"f", bytes(20 << 20))] * 2),
        None,
        LimitError,
        "larger than|more than",
    ),
    Case(
        "bytes that take more disk than allowed",
        lambda: tar(file(b"f", b"bomb" * (5 << 20))),
        None,
        LimitError,
        "'f' makes it take more than",
    ),
    contained(
        "link flag of GNU's name", {b"l": "l:" + "t" * 200}, gnu_long(b"t" * 200 + b"\0", b"K"), symlink(b"l", b"x")
    ),
    contained("long name of GNU", {b"n" * 200: "f:x"}, gnu_long(b"n" * 200 + b"\0"), file(b"n", b"x", magic=GNU)),
    contained("unused kind", {b"d": "d"}, directory(b"d"), pax({b"comment": FILE}), directory(b"d")),
]
