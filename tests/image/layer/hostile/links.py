"""Symlinks and hard links: to leave by, to write through, to come back to."""

from __future__ import annotations

from tests.image.tars import CHAR, FIFO, GNU, directory, file, gnu_long, header, link, pax, symlink, xattrs

from .case import Case, contained, refused

THROUGH = "is no directory"
OUT = "leads out of the layer"
NOWHERE = "hard link"
OUTSIDE = b"../outside"  # a directory beside the layer's root that has a canary
LEAVING, LEFT = symlink(b"l", OUTSIDE), {b"l": "l:../outside"}

CASES: list[Case] = [
    contained("through a symlink", {**LEFT, b"outside/f": "f:x"}, LEAVING, file(b"l/f", b"x")),
    contained("through a symlink, deep", {**LEFT, b"outside/a/b/f": "f:x"}, LEAVING, file(b"l/a/b/f", b"x")),
    contained("through a symlink to two dots", {b"l": "l:..", b"f": "f:x"}, symlink(b"l", b".."), file(b"l/f", b"x")),
    contained(
        "through a symlink to the root", {b"l": "l:/", b"tmp/f": "f:x"}, symlink(b"l", b"/"), file(b"l/tmp/f", b"x")
    ),
    contained("through a symlink to itself", {b"l": "l:.", b"f": "f:x"}, symlink(b"l", b"."), file(b"l/f", b"x")),
    contained(
        "through two symlinks",
        {b"a": "l:l", **LEFT, b"outside/f": "f:x"},
        symlink(b"a", b"l"),
        LEAVING,
        file(b"a/f", b"x"),
    ),
    contained(
        "through a nested symlink",
        {b"d/l": "l:../../../outside/d", b"outside/d/f": "f:x"},
        symlink(b"d/l", b"../../../outside/d"),
        file(b"d/l/f", b"x"),
    ),
    contained(
        "through /proc",
        {b"l": "l:/proc/self/cwd", b"proc/self/cwd/f": "f:x"},
        symlink(b"l", b"/proc/self/cwd"),
        file(b"l/f", b"x"),
    ),
    contained(
        "through a symlink inside",
        {b"d/f": "f:x", b"l": "l:d"},
        directory(b"d"),
        symlink(b"l", b"d"),
        file(b"l/f", b"x"),
    ),
    contained(
        "through a hard link to a symlink",
        {b"d/f": "f:x", b"l": "l:d", b"m": "h:l"},
        symlink(b"l", b"d"),
        link(b"m", b"l"),
        file(b"m/f", b"x"),
    ),
    contained(
        "through a symlink to what comes later",
        {b"l": "l:d", b"d/f": "f:x"},
        symlink(b"l", b"d"),
        file(b"l/f", b"x"),
        directory(b"d"),
    ),
    contained("directory through a symlink", {**LEFT, b"outside/d": "d"}, LEAVING, directory(b"l/d")),
    contained("symlink through a symlink", {**LEFT, b"outside/m": "l:x"}, LEAVING, symlink(b"l/m", b"x")),
    contained("fifo through a symlink", {**LEFT, b"outside/p": "p"}, LEAVING, header(b"l/p", FIFO)),
    contained("device through a symlink", {**LEFT, b"outside/c": "c"}, LEAVING, header(b"l/c", CHAR, device=(1, 3))),
    contained(
        "hard link through a symlink",
        {b"f": "f:", **LEFT, b"outside/g": "h:f", b"outside/h": "h:f"},
        file(b"f"),
        LEAVING,
        link(b"l/g", b"f"),
        link(b"l/h", b"l/g"),
    ),
    contained("whiteout through a symlink", {**LEFT, b"outside/canary": "w"}, LEAVING, file(b"l/.wh.canary")),
    contained("opaque through a symlink", {**LEFT, b"outside": "d!"}, LEAVING, file(b"l/.wh..wh..opq")),
    contained(
        "replaced through a symlink",
        {**LEFT, b"outside/f": "f:2"},
        LEAVING,
        file(b"outside/f", b"1"),
        file(b"l/f", b"2"),
    ),
    refused("through a symlink to a file", THROUGH, file(b"f"), symlink(b"l", b"f"), file(b"l/g", b"x")),
    refused("through a symlink to a whiteout", "nothing in it", symlink(b"l", b".wh.f"), file(b"l/g", b"x")),
    refused(
        "through a symlink to a long name",
        "name that is too long",
        pax({b"linkpath": b"n" * 256}),
        symlink(b"l", b"n"),
        file(b"l/f", b"x"),
    ),
    refused("through a loop", "lead on and on", symlink(b"l", b"l"), file(b"l/evil", b"x")),
    refused(
        "through a loop of two", "lead on and on", symlink(b"a", b"b"), symlink(b"b", b"./a/.."), file(b"a/evil", b"x")
    ),
    refused(
        "through a loop that grows",
        "lead on and on",
        pax({b"linkpath": b"l/" + b"x/" * 2000}),
        symlink(b"l", b"l"),
        file(b"l/evil", b"x"),
    ),
    refused(
        "through symlinks to a path that is too long",
        "path or name that is too long",
        pax({b"linkpath": (b"n" * 200 + b"/") * 12}),
        symlink(b"l", b"l"),
        pax({b"linkpath": (b"n" * 200 + b"/") * 12}),
        symlink(b"l/l", b"l"),
        file(b"l/l/evil", b"x"),
    ),
    contained(
        "directory becomes a symlink midway",
        {b"d": "l:../outside", b"outside/f": "f:x"},
        directory(b"d"),
        file(b"d/a", b"1"),
        symlink(b"d", OUTSIDE),
        file(b"d/f", b"x"),
    ),
    contained(
        "parent becomes a symlink midway",
        {b"a": "l:../outside", b"outside/b/f": "f:x"},
        file(b"a/b/c", b"1"),
        symlink(b"a", OUTSIDE),
        file(b"a/b/f", b"x"),
    ),
    contained("directory becomes a symlink", {b"d": "l:../outside"}, file(b"d/a", b"1"), symlink(b"d", b"../outside")),
    contained(
        "symlink becomes a directory", {b"l/f": "f:x"}, symlink(b"l", OUTSIDE), directory(b"l"), file(b"l/f", b"x")
    ),
    contained("symlink becomes a file", {b"l": "f:x"}, symlink(b"l", OUTSIDE + b"/canary"), file(b"l", b"x")),
    contained("symlink becomes a fifo", {b"l": "p"}, symlink(b"l", OUTSIDE + b"/canary"), header(b"l", FIFO)),
    contained("mode through a symlink", {b"l": "d"}, symlink(b"l", OUTSIDE), directory(b"l", 0o777)),
    contained(
        "time and owner through a symlink",
        {b"l": "f:"},
        symlink(b"l", OUTSIDE + b"/canary"),
        file(b"l", uid=12345, mtime=1),
    ),
    contained("symlink to a device", {b"l": "l:/dev/sda"}, symlink(b"l", b"/dev/sda")),
    contained(
        "xattrs on a symlink",
        {b"l": "l:../outside/canary"},
        xattrs({b"user.evil": b"1"}),
        symlink(b"l", b"../outside/canary"),
    ),
    refused("symlink to nothing", "1 to 4095 bytes", symlink(b"l", b"")),
    refused("symlink to 4096 bytes", "1 to 4095 bytes", pax({b"linkpath": b"x" * 4096}), symlink(b"l", b"x")),
    refused("root as a symlink", "root of a layer is a directory", symlink(b"./", OUTSIDE)),
    refused("root as a hard link", "root of a layer is a directory", file(b"f"), link(b".", b"f")),
    refused("hard link to two dots", OUT, link(b"h", b"../outside/canary")),
    refused("hard link to two dots inside", OUT, directory(b"a"), link(b"h", b"a/../../outside/canary")),
    refused("hard link to two dots in pax", OUT, pax({b"linkpath": b"../outside/canary"}), link(b"h", b"f")),
    refused("hard link to two dots in GNU", OUT, gnu_long(b"../outside/canary\0", b"K"), header(b"h", b"1", magic=GNU)),
    refused("hard link to an absolute path", NOWHERE, link(b"h", b"/etc/passwd")),
    refused("hard link to nothing", NOWHERE, link(b"h", b"f")),
    refused("hard link without a target", "a hard link to the root", link(b"h", b"")),
    refused("hard link to the root", "a hard link to the root", link(b"h", b"/")),
    refused("hard link to itself", "to itself", link(b"h", b"h")),
    refused("hard link to itself that exists", "to itself", file(b"h", b"1"), link(b"h", b"./h")),
    refused("hard links in a circle", NOWHERE, link(b"a", b"b"), link(b"b", b"a")),
    refused("hard link to a directory", "to the directory", directory(b"d"), link(b"h", b"d")),
    refused("hard link in a directory to it", "to the directory", directory(b"d"), link(b"d/h", b"d")),
    refused("hard link target behind a symlink", NOWHERE, symlink(b"l", OUTSIDE), link(b"h", b"l/canary")),
    refused("hard link to a whiteout", NOWHERE, file(b".wh.f"), link(b"h", b".wh.f")),
    refused("hard link to what is whited out", NOWHERE, file(b".wh.f"), link(b"h", b"f")),
    refused("hard link that replaces its target's directory", NOWHERE, file(b"d/f", b"1"), link(b"d", b"d/f")),
    contained(
        "hard link to a symlink",
        {b"l": "l:../outside/canary", b"h": "h:l"},
        symlink(b"l", b"../outside/canary"),
        link(b"h", b"l"),
    ),
    contained(
        "hard link to a symlink, written to",
        {b"l": "l:../outside/canary", b"h": "f:x"},
        symlink(b"l", b"../outside/canary"),
        link(b"h", b"l"),
        file(b"h", b"x"),
    ),
    contained(
        "hard link, then its target again",
        {b"f": "f:2", b"h": "f:1", b"i": "h:h"},
        file(b"f", b"1"),
        link(b"h", b"f"),
        link(b"i", b"f"),
        file(b"f", b"2"),
    ),
    contained(
        "hard link, written to", {b"f": "f:1", b"h": "f:2"}, file(b"f", b"1"), link(b"h", b"f"), file(b"h", b"2")
    ),
    contained("hard link to a fifo", {b"p": "p", b"h": "h:p"}, header(b"p", FIFO), link(b"h", b"p")),
    contained("hard link to an absolute name", {b"f": "f:1", b"h": "h:f"}, file(b"f", b"1"), link(b"h", b"/./f")),
    contained(
        "hard link to a hard link",
        {b"f": "f:1", b"h": "h:f", b"i": "h:f"},
        file(b"f", b"1"),
        link(b"h", b"f"),
        link(b"i", b"h"),
    ),
    contained(
        "hard link with owner and mode of its own",
        {b"f": "f:1", b"h": "h:f"},
        file(b"f", b"1"),
        header(b"h", b"1", link=b"f", mode=0o4777, uid=0),
    ),
]
