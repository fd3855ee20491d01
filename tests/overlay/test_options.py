"""Option text in, facts out: a case per option, per spelling and per malformed value."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayfs.overlay import mount_flags as ms
from overlayfs.overlay import option_parser
from overlayfs.overlay.mount_flags import MS_NOEXEC, MS_NOSUID, MS_RDONLY
from overlayfs.overlay.option_parser import ParsedOptions, changed_flags, parse_options
from overlayfs.overlay.option_text import OptionItem, split_option_list, unescape
from overlayfs.overlay.options import (
    FsyncPolicy,
    IdRange,
    MountError,
    OverlayOptions,
    RedirectDir,
    WhiteoutFormat,
    validate,
)

words = str.split

UPPER = "upperdir=/u,workdir=/w"


def parse(*texts: str | bytes, **environ: str) -> ParsedOptions:
    return parse_options(texts, "/cwd", environ)


def overlay_with(text: str, **environ: str) -> OverlayOptions:
    return parse(f"lowerdir=/l,{UPPER},{text}", **environ).overlay


FIELDS: list[tuple[str, str, Any]] = [
    ("redirect_dir=on", "redirect_dir", RedirectDir.ON),
    ("redirect_dir=follow", "redirect_dir", RedirectDir.FOLLOW),
    ("redirect_dir=nofollow", "redirect_dir", RedirectDir.NOFOLLOW),
    ("redirect_dir=off", "redirect_dir", RedirectDir.OFF),
    ("index=on", "index", True),
    ("index=off", "index", False),
    ("metacopy=on", "metacopy", True),
    ("metacopy=off", "metacopy", False),
    ("userxattr", "user_xattr", True),
    ("volatile", "fsync", FsyncPolicy.VOLATILE),
    ("fsync=auto", "fsync", FsyncPolicy.AUTO),
    ("fsync=strict", "fsync", FsyncPolicy.STRICT),
    ("fsync=volatile", "fsync", FsyncPolicy.VOLATILE),
    ("fsync=0", "fsync", FsyncPolicy.VOLATILE),
    ("fsync=1", "fsync", FsyncPolicy.AUTO),
    ("whiteout=overlay", "whiteout", WhiteoutFormat.OVERLAY),
    ("whiteout=overlay-xattr", "whiteout", WhiteoutFormat.OVERLAY_XATTR),
    ("whiteout=oci", "whiteout", WhiteoutFormat.OCI),
    ("squash_to_uid=7", "squash_uid", 7),
    ("squash_to_gid=4294967294", "squash_gid", 4294967294),
    ("xattr_permissions=0", "xattr_permissions", 0),
    ("xattr_permissions=1", "xattr_permissions", 1),
    ("xattr_permissions=2", "xattr_permissions", 2),
    ("noatime", "noatime", True),
    ("noatime,relatime", "noatime", False),
    ("timeout=0", "timeout_s", 0.0),
    ("timeout=1.5", "timeout_s", 1.5),
    ("timeout=1000000000", "timeout_s", 1e9),
    ("noacl", "acl", False),
    ("noxattrs", "xattrs", False),
    ("noxattrs=1", "xattrs", False),
    ("noxattrs=0", "xattrs", True),
    ("static_nlink", "static_nlink", True),
    ("writeback", "writeback", True),
    ("writeback=1", "writeback", True),
    ("writeback=0", "writeback", False),
    ("ro", "read_only", True),
    ("ro,rw", "read_only", False),
    ("uidmapping=0:100000:65536", "uid_map", (IdRange(disk=0, shown=100000, size=65536),)),
    ("uidmapping=:0:100000:65536", "uid_map", (IdRange(0, 100000, 65536),)),
    (
        "uidmapping=:0:1:1001:1001:0:1:1002:1002:64535",
        "uid_map",
        (IdRange(0, 1, 1001), IdRange(1001, 0, 1), IdRange(1002, 1002, 64535)),
    ),
    ("gidmapping=:0:0:1:1:100000:65536", "gid_map", (IdRange(0, 0, 1), IdRange(1, 100000, 65536))),
]


@pytest.mark.parametrize(("text", "name", "expected"), FIELDS, ids=[text for text, _, _ in FIELDS])
def test_option_sets_its_field_without_a_warning(text: str, name: str, expected: object) -> None:
    parsed = parse(f"lowerdir=/l,{UPPER},{text}")
    assert getattr(parsed.overlay, name) == expected
    assert parsed.warnings == ()


@pytest.mark.parametrize(("text", "name", "expected"), FIELDS, ids=[text for text, _, _ in FIELDS])
def test_option_touches_no_other_field(text: str, name: str, expected: object) -> None:
    changed = {
        field
        for field in OverlayOptions._fields
        if getattr(overlay_with(text), field) != getattr(overlay_with(""), field)
    }
    assert changed <= {name, *(["verifies_origin"] if name == "index" else [])}


@pytest.mark.parametrize(("text", "expected"), [("index=on", True), ("index=on,index=off", False), ("ro", False)])
def test_upper_must_go_with_the_lowers_where_an_index_is_asked_for(text: str, expected: bool) -> None:
    assert overlay_with(text).verifies_origin is expected


LANES = [
    ("lane=on", True, None),
    ("lane=off", False, None),
    ("lane=off,lane=on", True, None),
    ("poll=0", True, 0),
    ("poll=10000", True, 10_000),
    ("poll=7,lane=off,poll=8", False, 8),
]


@pytest.mark.parametrize(("text", "lane", "poll_us"), LANES)
def test_how_requests_are_answered(text: str, lane: bool, poll_us: int | None) -> None:
    parsed = parse(f"lowerdir=/l,{UPPER},{text}")
    assert (parsed.lane, parsed.poll_us) == (lane, poll_us)
    assert parsed.overlay == overlay_with("")


def test_defaults() -> None:
    parsed = parse(f"lowerdir=/l,{UPPER}")
    assert parsed == ParsedOptions(OverlayOptions(lowers=(b"/l",), upper=b"/u", work=b"/w"))


def test_without_upper_the_mount_is_read_only() -> None:
    for text in ("lowerdir=/l", "lowerdir=/l,rw"):
        parsed = parse(text)
        assert parsed.overlay.read_only
        assert parsed.flags == ms.MS_RDONLY


SQUASHED = [
    ("squash_to_root", 0, 0),
    ("squash_to_root,squash_to_uid=5", 5, 0),
    ("squash_to_gid=6,squash_to_root", 0, 6),
    ("squash_to_uid=5", 5, None),
]


@pytest.mark.parametrize(("text", "uid", "gid"), SQUASHED)
def test_squash_to_root_yields_to_a_named_owner(text: str, uid: int | None, gid: int | None) -> None:
    options = overlay_with(text)
    assert (options.squash_uid, options.squash_gid) == (uid, gid)


def test_environment_asks_for_oci_whiteouts_unless_the_option_says_otherwise() -> None:
    variable = {"FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT": ""}
    assert overlay_with("", **variable).whiteout is WhiteoutFormat.OCI
    assert overlay_with("whiteout=overlay", **variable).whiteout is WhiteoutFormat.OVERLAY
    assert overlay_with("").whiteout is None


LAYERS: list[tuple[str | bytes, tuple[bytes, ...], tuple[bytes, ...]]] = [
    ("lowerdir=/a:/b:/c", (b"/a", b"/b", b"/c"), ()),
    ("lowerdir=/a::/d", (b"/a",), (b"/d",)),
    ("lowerdir=/a:/b::/d::/e", (b"/a", b"/b"), (b"/d", b"/e")),
    (r"lowerdir=/a\:b:/c\\d", (b"/a:b", b"/c\\d"), ()),
    (r"lowerdir=/a\::/b", (b"/a:", b"/b"), ()),
    (r"lowerdir=/a\\:/b", (b"/a\\", b"/b"), ()),
    (r"lowerdir=/a\\\::/b", (b"/a\\:", b"/b"), ()),
    (r"lowerdir=/a\,b:/c", (b"/a,b", b"/c"), ()),
    (r"lowerdir=/a\b", (b"/ab",), ()),
    ('lowerdir="/a,b:/c"', (b"/a,b", b"/c"), ()),
    (r'lowerdir="/a\"b,c"', (b'/a"b,c',), ()),
    ('lowerdir=/a"b:/c"d', (b'/a"b', b'/c"d'), ()),
    (b"lowerdir=/\xff:/\xc3\xa9", (b"/\xff", b"/\xc3\xa9"), ()),
    ("lowerdir=/a=b:/c", (b"/a=b", b"/c"), ()),
    ("lowerdir+=/a,lowerdir+=/b", (b"/a", b"/b"), ()),
    ("lowerdir+=/a:b", (b"/a:b",), ()),
    (r"lowerdir+=/a\b\\c", (rb"/a\b\\c",), ()),
    (r"lowerdir+=/a\,b", (b"/a,b",), ()),
    ('lowerdir+="/a,b"', (b"/a,b",), ()),
    ("lowerdir=/x,lowerdir=/a", (b"/a",), ()),
    ("lowerdir=/x::/y,lowerdir=/a", (b"/a",), ()),
    ("lowerdir+=/a,datadir+=/d,datadir+=/e", (b"/a",), (b"/d", b"/e")),
    ("lowerdir=a:./b:../c:/d/../e", (b"/cwd/a", b"/cwd/b", b"/c", b"/e"), ()),
    ("lowerdir=/a/://b//c", (b"/a", b"/b/c"), ()),
]


@pytest.mark.parametrize(("text", "lowers", "data"), LAYERS, ids=[str(case[0]) for case in LAYERS])
def test_layer_paths(text: str | bytes, lowers: tuple[bytes, ...], data: tuple[bytes, ...]) -> None:
    options = parse(text).overlay
    assert (options.lowers, options.data_lowers) == (lowers, data)


@pytest.mark.parametrize("kind", ["upperdir", "workdir"])
@pytest.mark.parametrize(
    ("written", "path"),
    [
        (r"/a\:b\\c", rb"/a:b\c"),
        ("/a:b", b"/a:b"),
        (r"/a\,b", b"/a,b"),
        ('"/a,b"', b"/a,b"),
        ("x", b"/cwd/x"),
    ],
)
def test_upper_and_work_paths(kind: str, written: str, path: bytes) -> None:
    other = "workdir=/other" if kind == "upperdir" else "upperdir=/other"
    options = parse(f"lowerdir=/l,{other},{kind}={written}").overlay
    assert {"upperdir": options.upper, "workdir": options.work}[kind] == path


paths = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name and name not in (b".", b".."))
layer_names = paths.map(lambda name: name.replace(b"/", b"_"))


def escaped(path: bytes) -> bytes:
    return re.sub(rb'([\\:,"])', rb"\\\1", path)


@settings(deadline=None)
@given(st.lists(layer_names, min_size=1, max_size=6), st.lists(layer_names, max_size=3), layer_names)
def test_escaped_paths_come_back(lowers: list[bytes], data: list[bytes], upper: bytes) -> None:
    lowers, data = [b"/none/" + name for name in lowers], [b"/none/" + name for name in data]
    layers = b":".join(map(escaped, lowers)) + b"".join(b"::" + escaped(path) for path in data)
    text = b"ro,lowerdir=" + layers + b",upperdir=/none/" + escaped(upper) + b",workdir=/w"
    options = parse(text).overlay
    wanted = [os.path.normpath(path) for path in [*lowers, *data, b"/none/" + upper]]
    assert [*options.lowers, *options.data_lowers, options.upper] == wanted


@settings(deadline=None)
@given(st.lists(layer_names, min_size=1))
def test_quoted_values_come_back(names: list[bytes]) -> None:
    quoted = [b'a="' + re.sub(rb'([\\"])', rb"\\\1", name) + b'"' for name in names]
    items = list(split_option_list(b",".join(quoted)))
    assert [item.name for item in items] == [b"a"] * len(names)
    assert [item.value for item in items] == [text[2:] for text in quoted]


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_text_is_facts_or_one_line(text: bytes) -> None:
    try:
        parsed = parse(b"lowerdir=/l," + text.replace(b"\0", b""))
    except MountError as error:
        lines = [str(error)]
    else:
        lines = [*parsed.warnings]
    assert all(line.isprintable() for line in lines)


def test_items_split() -> None:
    text = rb',,a,b=c,=,d=,e="f,g",h=\,i,j="k\",l",m=n"o,p'
    assert list(split_option_list(text)) == [
        OptionItem(b"a", None),
        OptionItem(b"b", b"c"),
        OptionItem(b"", b""),
        OptionItem(b"d", b""),
        OptionItem(b"e", b'"f,g"'),
        OptionItem(b"h", rb"\,i"),
        OptionItem(b"j", rb'"k\",l"'),
        OptionItem(b"m", b'n"o'),
        OptionItem(b"p", None),
    ]


def test_several_texts_and_empty_items_in_any_order() -> None:
    parsed = parse(",workdir=/w,,", "", "volatile,", ",upperdir=/u", "lowerdir=/a:/b,private")
    assert parsed.overlay == OverlayOptions((b"/a", b"/b"), upper=b"/u", work=b"/w", fsync=FsyncPolicy.VOLATILE)
    assert parsed.warnings == ()


FLAGS = [
    ("ro", ms.MS_RDONLY),
    ("rw", 0),
    ("nosuid", ms.MS_NOSUID),
    ("suid", 0),
    ("nodev", ms.MS_NODEV),
    ("dev", 0),
    ("noexec", ms.MS_NOEXEC),
    ("exec", 0),
    ("noatime", ms.MS_NOATIME),
    ("atime", 0),
    ("relatime", ms.MS_RELATIME),
    ("norelatime", 0),
    ("strictatime", ms.MS_STRICTATIME),
    ("nodiratime", ms.MS_NODIRATIME),
    ("lazytime", ms.MS_LAZYTIME),
    ("sync", ms.MS_SYNCHRONOUS),
    ("async", 0),
    ("dirsync", ms.MS_DIRSYNC),
    ("iversion", ms.MS_I_VERSION),
    ("silent", ms.MS_SILENT),
    ("nosuid,nodev,noexec", ms.MS_NOSUID | ms.MS_NODEV | ms.MS_NOEXEC),
    ("nosuid,suid", 0),
    ("suid,nosuid", ms.MS_NOSUID),
    ("relatime,noatime", ms.MS_NOATIME),
    ("noatime,relatime", ms.MS_RELATIME),
    ("strictatime,noatime", ms.MS_NOATIME),
    ("sync,async,dirsync", ms.MS_DIRSYNC),
]


@pytest.mark.parametrize(("text", "flags"), FLAGS)
def test_generic_options_become_mount_flags(text: str, flags: int) -> None:
    parsed = parse(f"lowerdir=/l,{UPPER},{text}")
    assert (parsed.flags, parsed.warnings) == (flags, ())


def test_mount_flags_are_the_c_library_s() -> None:
    shared = ("RDONLY", "NOSUID", "NODEV", "NOEXEC", "SYNCHRONOUS", "NOATIME", "NODIRATIME")
    assert {name: getattr(ms, f"MS_{name}") for name in shared} == {name: getattr(os, f"ST_{name}") for name in shared}


SILENT = words(
    "defaults auto noauto nofail user user=joe nouser users owner group _netdev comment=x x-systemd.automount"
    " x-gvfs-show X-mount.mkdir=0755 private rprivate shared rshared slave unbindable default_permissions"
    " nonempty nomand xino=on xino=off xino=auto verity=off"
)


@pytest.mark.parametrize("text", SILENT)
def test_option_that_asks_nothing_of_us_is_accepted_silently(text: str) -> None:
    assert parse(f"lowerdir=/l,{UPPER},{text}") == parse(f"lowerdir=/l,{UPPER}")


NO_EFFECT = words(
    "nfs_export=on uuid=auto threaded threaded=1 fast_ino fast_ino=1 ino32_t plugins=/p"
    " context=system_u:object_r:tmp_t:s0"
)


@pytest.mark.parametrize("text", NO_EFFECT)
def test_option_without_effect_warns(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(option_parser, "SELINUX", "/nonexistent")
    assert parse(f"lowerdir=/l,{UPPER},{text}").warnings == (f"option without effect: {text}",)


def test_context_reaches_the_kernel_where_selinux_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(option_parser, "SELINUX", "/proc/self/status")
    parsed = parse('lowerdir=/l,context="u:r:t:s0:c1,c2"')
    assert (parsed.fuse_options, parsed.warnings) == (('context="u:r:t:s0:c1,c2"',), ())


UNKNOWN = [
    ("nosuchthing", "nosuchthing"),
    ("foo=bar", "foo=bar"),
    ("mand", "mand"),
    ('foo="a,b"', 'foo="a,b"'),
    ("Lowerdir=/x", "Lowerdir=/x"),
    ("=x", "=x"),
    ("a\nb", "a\\nb"),
    ("z" * 200, "z" * 119 + "…"),
    (b"\xff=1", "\\xff=1"),
]


@pytest.mark.parametrize(("text", "shown"), UNKNOWN)
def test_unknown_option_is_a_warning(text: str | bytes, shown: str) -> None:
    parsed = parse("lowerdir=/l", UPPER, text)
    assert parsed.warnings == (f"unknown option ignored: {shown}",)
    assert parsed.overlay == overlay_with("")


FUSE: list[tuple[str, tuple[str, ...]]] = [
    ("allow_other", ("allow_other",)),
    ("allow_root", ("allow_root",)),
    ("auto_unmount", ("auto_unmount",)),
    ("max_read=65536", ("max_read=65536",)),
    ("allow_other,max_read=1,allow_other,max_read=2", ("allow_other", "max_read=2")),
]


@pytest.mark.parametrize(("text", "options"), FUSE)
def test_options_passed_to_fuse(text: str, options: tuple[str, ...]) -> None:
    parsed = parse(f"lowerdir=/l,{text}")
    assert (parsed.fuse_options, parsed.warnings) == (options, ())


def test_source_and_subtype() -> None:
    parsed = parse(r"lowerdir=/l,fsname=a\,b,subtype=image")
    assert (parsed.source, parsed.subtype) == ("a,b", "image")
    assert (parse("lowerdir=/l").source, parse("lowerdir=/l").subtype) == (None, None)


MALFORMED = [
    *(f"{name}={value}" for name in ("index", "metacopy") for value in ("", "1", "yes", "ON", "onn")),
    *(f"redirect_dir={value}" for value in ("", "1", "always", "On")),
    *(f"xino={value}" for value in ("", "1", "maybe")),
    *(f"fsync={value}" for value in ("", "2", "never")),
    *(f"whiteout={value}" for value in ("", "aufs", "OCI")),
    *(f"verity={value}" for value in ("", "on", "require", "maybe")),
    *(f"xattr_permissions={value}" for value in ("", "3", "-1", "on")),
    *(f"{name}={value}" for name in ("writeback", "noxattrs", "static_nlink") for value in ("", "2", "on")),
    *(f"timeout={value}" for value in ("", "-1", "nan", "inf", "1e9", "1s", ".5", "1.", "9" * 20)),
    *(
        f"squash_to_{who}={value}"
        for who in ("uid", "gid")
        for value in ("", "-1", "root", "4294967295", "1_0", "+1", " 1", "9" * 30)
    ),
    *(
        f"{name}={value}"
        for name in ("uidmapping", "gidmapping")
        for value in (
            "",
            ":",
            "0:0",
            "0:0:1:2",
            "0:0:0",
            "a:0:1",
            "0:-1:1",
            "0::1",
            "::0:0:1",
            "0:0:4294967296",
            "4294967294:0:2",
            "0:4294967294:2",
            "0:0:10:9:100:1",
            "0:0:10:10:9:1",
        )
    ),
    *(
        f"lowerdir={value}"
        for value in ("", ":", "/a:", ":/a", "/a::", "/a:::/d", "/a::/d:/b", "/a::::/d", '"/a', '"/a"b', '"')
    ),
    "lowerdir+=",
    "datadir+=",
    "upperdir=",
    "workdir=",
    'upperdir="/u',
    *words(
        "lowerdir lowerdir+ datadir+ upperdir workdir redirect_dir index metacopy xino fsync whiteout verity"
        " uidmapping gidmapping squash_to_uid squash_to_gid xattr_permissions timeout max_read fsname subtype lane poll"
    ),
    *(f"max_read={value}" for value in ("", "-1", "64k", "4294967296")),
    *(f"lane={value}" for value in ("", "1", "auto")),
    *(f"poll={value}" for value in ("", "-1", "1.5", "10001")),
    *(
        f"{name}=1"
        for name in words(
            "ro rw nosuid suid dev noexec noatime relatime sync dirsync userxattr volatile squash_to_root"
            " allow_other allow_root auto_unmount default_permissions"
        )
    ),
    *words("remount bind rbind move"),
]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_value_is_refused_in_one_line_that_names_it(text: str) -> None:
    with pytest.raises(MountError) as refusal:
        parse("lowerdir=/l", UPPER, text)
    line = str(refusal.value)
    assert line.startswith(f"bad option {text}: ")
    assert line.isprintable()
    assert len(line) > len(f"bad option {text}: ") + 10


ALLOWED = [
    ("index=maybe", "bad option index=maybe: allowed: on, off"),
    ("redirect_dir=x", "bad option redirect_dir=x: allowed: on, follow, nofollow, off"),
    ("fsync=x", "bad option fsync=x: allowed: auto, strict, volatile, 0, 1"),
    ("whiteout=x", "bad option whiteout=x: allowed: overlay, overlay-xattr, oci"),
    ("squash_to_uid=x", "bad option squash_to_uid=x: a number from 0 to 4294967294 is needed"),
    ("uidmapping=1:2", "bad option uidmapping=1:2: disk:shown:size is needed, once or several times"),
    ("uidmapping=0:0:2:1:5:1", "bad option uidmapping=0:0:2:1:5:1: disk id 1 is in two ranges"),
    ("upperdir", "bad option upperdir: a value is needed"),
    ("ro=1", "bad option ro=1: it takes no value"),
    ("index=a\nb", "bad option index=a\\nb: allowed: on, off"),
]


@pytest.mark.parametrize(("text", "line"), ALLOWED)
def test_refusal_says_what_is_allowed(text: str, line: str) -> None:
    with pytest.raises(MountError, match=f"^{re.escape(line)}$"):
        parse("lowerdir=/l", text)


CONTRADICTIONS = [
    ("", "lowerdir= is missing"),
    ("datadir+=/d", "lowerdir= is missing"),
    ("lowerdir=::/d", "lowerdir= is missing"),
    (UPPER, "lowerdir= is missing"),
    ("lowerdir=/l,upperdir=/u", "upperdir= needs workdir="),
    ("lowerdir=/l,workdir=/w", "workdir= is of no use without upperdir="),
    ("lowerdir=/l,allow_other,allow_root", "exclude each other"),
    ("lowerdir=/a,lowerdir+=/b", r"bad option lowerdir\+=/b: it cannot be mixed with lowerdir="),
    ("lowerdir=/a,datadir+=/b", r"bad option datadir\+=/b: it cannot be mixed with lowerdir="),
    ("lowerdir+=/a,lowerdir=/b", r"bad option lowerdir=/b: it cannot be mixed with lowerdir\+= and datadir\+="),
    ("datadir+=/d,lowerdir+=/a", "lower layers cannot follow data-only ones"),
    ("lowerdir=/l::/d,redirect_dir=off", "need redirect_dir="),
    ("lowerdir=/l::/d,redirect_dir=nofollow", "need redirect_dir="),
]


@pytest.mark.parametrize(("text", "reason"), CONTRADICTIONS)
def test_contradictions_are_refused(text: str, reason: str) -> None:
    with pytest.raises(MountError, match=reason) as refusal:
        parse(text)
    assert "\n" not in str(refusal.value)


def test_validate_refuses_facts_that_no_text_made() -> None:
    with pytest.raises(MountError, match="lowerdir"):
        validate(OverlayOptions(lowers=()))
    validate(OverlayOptions(lowers=(b"/l",), data_lowers=(b"/d",), redirect_dir=RedirectDir.FOLLOW))


PODMAN = {
    "new container": (
        ["lowerdir=l/A:l/B,upperdir=ID/diff,workdir=ID/w,,volatile"],
        OverlayOptions(
            (b"/cwd/l/A", b"/cwd/l/B"), upper=b"/cwd/ID/diff", work=b"/cwd/ID/w", fsync=FsyncPolicy.VOLATILE
        ),
    ),
    "restart, diff, commit": (
        ["lowerdir=l/A:l/B,upperdir=ID/diff,workdir=ID/w,"],
        OverlayOptions((b"/cwd/l/A", b"/cwd/l/B"), upper=b"/cwd/ID/diff", work=b"/cwd/ID/w"),
    ),
    "read-only": (
        ["lowerdir=ID/diff:l/B"],
        OverlayOptions((b"/cwd/ID/diff", b"/cwd/l/B"), read_only=True),
    ),
    "overlay volume": (
        ["lowerdir=/d,upperdir=/u,workdir=/w,private"],
        OverlayOptions((b"/d",), upper=b"/u", work=b"/w"),
    ),
    "user namespace": (
        [
            "lowerdir=l/A,upperdir=/u,workdir=/w,uidmapping=:0:1:1001:1001:0:1:1002:1002:64535,"
            "gidmapping=:0:100000:65536"
        ],
        OverlayOptions(
            (b"/cwd/l/A",),
            upper=b"/u",
            work=b"/w",
            uid_map=(IdRange(0, 1, 1001), IdRange(1001, 0, 1), IdRange(1002, 1002, 64535)),
            gid_map=(IdRange(0, 100000, 65536),),
        ),
    ),
    "force_mask": (
        ["lowerdir=l/A,upperdir=/u,workdir=/w,,xattr_permissions=2"],
        OverlayOptions((b"/cwd/l/A",), upper=b"/u", work=b"/w", xattr_permissions=2),
    ),
}


@pytest.mark.parametrize("name", PODMAN)
def test_podman_s_command_lines(name: str) -> None:
    texts, expected = PODMAN[name]
    parsed = parse(*texts)
    assert parsed.overlay == expected
    assert parsed.warnings == ()


def test_symlinks_of_layers_are_resolved_against_the_directory_given(tmp_path: Path) -> None:
    (tmp_path / "l").mkdir()
    links = [f"l/{number:03}" for number in range(500)]
    for number, link in enumerate(links):
        (tmp_path / f"layer{number}").mkdir()
        (tmp_path / link).symlink_to(f"../layer{number}")
    (tmp_path / "up").symlink_to("layer0")
    text = f"lowerdir={':'.join(links)},upperdir=up/./u,workdir=up/../w"
    options = parse_options([text], str(tmp_path), {}).overlay
    base = os.fsencode(tmp_path.resolve())
    assert options.lowers == tuple(base + b"/layer%d" % number for number in range(500))
    assert (options.upper, options.work) == (base + b"/layer0/u", base + b"/w")


def test_parser_imports_nothing_of_fuse() -> None:
    script = (
        "import sys, overlayfs.overlay.option_parser;"
        "print(sorted({'pyfuse3', 'trio', 'rich', 'xxhash', 'ctypes', 'typer'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("texts", "flags"),
    [
        (["ro"], None),
        (["remount,bind,ro"], None),
        (["remount"], MS_RDONLY | MS_NOSUID),
        (["remount,rw"], MS_NOSUID),
        (["rw,remount", "lowerdir=/l,user_id=0,unheard-of,noexec"], MS_NOSUID | MS_NOEXEC),
        (["remount,suid,ro"], MS_RDONLY),
    ],
)
def test_remount_changes_what_it_names(texts: list[str], flags: int | None) -> None:
    assert changed_flags(texts, MS_RDONLY | MS_NOSUID) == flags


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (rb"a\:b", b"a:b"),
        (rb"a\\b", rb"a\b"),
        (rb"a\\\,b", rb"a\,b"),
        (b"a\\", b"a\\"),
        (b"a\\\\\\", b"a\\\\"),
        (b"a\\\nb", b"a\nb"),
    ],
)
def test_backslash_keeps_the_byte_after_it(text: bytes, meaning: bytes) -> None:
    assert unescape(text) == meaning
