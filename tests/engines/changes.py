"""What containers and builds of every engine change, and how the results on our mounts differ from the kernel's."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from tests.contract.tree import Tree, char, directory, fifo, file, hardlink, symlink

Compared = TypeVar("Compared")

# Directories and files that engines mount over are there, so that they make none.
BASE: Final[Tree] = {
    **{name: directory() for name in ("dev", "proc", "run", "sys")},
    **{name: file(b"") for name in ("etc/hosts", "etc/hostname", "etc/resolv.conf", "run/.containerenv", ".dockerenv")},
    "etc/kept": file(b"kept", 0o640, 33, 34),
    "etc/gone": file(b"x"),
    "opaque/old": file(b"old"),
    "moved/deep/file": file(b"deep", 0o600, 7, 8),
    "replaced/by-file": file(b"x"),
    "linked/a": file(b"one"),
    "linked/b": hardlink("linked/a"),
    "setuid": file(b"s", 0o4755),
    "able": file(
        b"c", 0o755, xattrs={"security.capability": bytes.fromhex("0100000200040000000000000000000000000000")}
    ),
    "noted": file(b"n", xattrs={"user.note": b"\0value"}),
    "link": symlink("etc/kept", 1, 2),
    "pipe": fifo(0o620, 3, 4),
    "null": char(1, 3, 0o666),
    "tmp": directory(0o1777),
}
# What engines make and mount over as they please; it is not compared.
ENGINES_OWN: Final = frozenset(
    {
        *(".dockerenv", "dev", "dev/console", "dev/pts", "dev/shm", "etc/hostname", "etc/hosts", "etc/mtab"),
        *("etc/resolv.conf", "proc", "run", "run/.containerenv", "run/.wh..containerenv", "sys"),
    }
)
PROGRAMS: Final = ("chattr", "chmod", "cp", "head", "ls", "mkfifo", "mv", "touch")

_AT: Final = "touch -h -d @1000000000"
# A layer each, in a build. The times of what was made are set, so that they can be compared.
CHANGES: Final = (
    f"rm /etc/gone; rm -r /opaque; mkdir /opaque; echo new >/opaque/new; {_AT} /opaque/new /opaque /etc /",
    f"mv /moved /renamed; echo more >>/renamed/deep/file; rm -r /replaced; echo file >/replaced; "
    f"{_AT} /renamed/deep/file /replaced /",
    f"echo two >>/linked/a; ln /linked/b /linked/c; {_AT} /linked/a /linked/b /linked",
    f"chown 5:6 /etc/kept /setuid; chmod 4711 /setuid; chmod 700 /able; chown -h 9:9 /link; "
    f"cd /etc; ln -s target new-link; mkfifo -m 640 new-pipe; {_AT} new-link new-pipe .",
)
CHANGE: Final = "\n".join(CHANGES)
DOCKERFILE: Final = "\n".join(["FROM base", *(f"RUN {change}" for change in CHANGES)])


class View(Enum):
    """Where an engine shows what a container has changed."""

    INSIDE = "stat(1) in the container"
    EXPORT = "the files of an exported container"
    DIFF = "the engine's diff"
    LAYER = "the layer of a commit"
    MASKED = "stat(1) in a container of rootless podman with force_mask"


_SPLIT = (
    "the kernel's copy-up splits hard links, as engines mount with index=off: what is written to a is not in b and c"
)
_MERGED = "a renamed directory is not copied, so it is still a merged one, with a link count of 1"
_COMPARED = "with a mount program engines compare two mounted trees, and see deleted names instead of an opaque mark"
_NO_XATTR = "podman unpacks symlinks as root's (with fuse-overlayfs, too), as they cannot hold the xattr with the owner"
_NO_MODE = "podman writes neither sticky nor set-id bits into the xattr, and not the mode of the root"

# Every difference between what engines show of our mounts and of the kernel's overlayfs: the file, and why.
DIFFERENCES: Final[Mapping[View, Mapping[str, str]]] = {
    View.INSIDE: {
        **dict.fromkeys(("linked/a", "linked/b", "linked/c"), _SPLIT),
        **dict.fromkeys(("renamed", "renamed/deep"), _MERGED),
    },
    View.EXPORT: {"linked/b": _SPLIT, "linked/c": _SPLIT},
    View.DIFF: {"/opaque": _COMPARED, "/opaque/old": _COMPARED},
    View.LAYER: {
        "linked/b": _SPLIT,
        "linked/c": _SPLIT,
        "opaque/.wh..wh..opq": _COMPARED,
        "opaque/.wh.old": _COMPARED,
    },
    View.MASKED: {"/etc/link": _NO_XATTR, "/link": _NO_XATTR, "/tmp": _NO_MODE, "/": _NO_MODE},
}


def expect_same(view: View, ours: Mapping[str, Compared], kernel_s: Mapping[str, Compared]) -> set[str]:
    """But for `DIFFERENCES`; which of them there are."""
    names = (ours.keys() | kernel_s.keys()) - ENGINES_OWN
    different = {name: (ours.get(name), kernel_s.get(name)) for name in names if ours.get(name) != kernel_s.get(name)}
    assert different.keys() <= DIFFERENCES[view].keys(), different
    return {*different}


class Member(NamedTuple):
    """All that a layer or an export says of a file; the content as a digest."""

    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime: float
    link: str
    device: tuple[int, int]
    xattrs: tuple[tuple[str, str], ...]
    content: str


_WHITEOUT: Final = Member(tarfile.REGTYPE, 0, 0, 0, 0, "", (0, 0), (), "")


def _members(tar: tarfile.TarFile) -> dict[str, Member]:
    return {info.name.removeprefix("./").rstrip("/"): _member(tar, info) for info in tar}


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    if info.name.rpartition("/")[2].startswith(".wh."):  # nothing but its name means anything
        return _WHITEOUT
    opened = tar.extractfile(info) if info.isreg() else None
    return Member(
        info.type,
        info.mode,
        info.uid,
        info.gid,
        info.mtime,
        info.linkname,
        (info.devmajor, info.devminor),
        tuple(sorted(item for item in info.pax_headers.items() if item[0].startswith("SCHILY.xattr."))),
        hashlib.sha256(opened.read()).hexdigest() if opened else "",
    )


def exported(archive: Path) -> dict[str, Member]:
    """The files of a container."""
    with tarfile.open(archive) as tar:
        found = _members(tar)
    found["etc"] = found["etc"]._replace(mtime=0)  # docker makes files there, which it mounts over
    return found


def without_marks(layer: Mapping[str, Member]) -> dict[str, Member]:
    """Rootless podman leaves the marks of the kernel's overlayfs in its layers; there are none of ours."""
    return {
        name: member._replace(xattrs=tuple(item for item in member.xattrs if "user.overlay." not in item[0]))
        for name, member in layer.items()
    }


def layers_of(archive: Path) -> list[dict[str, Member]]:
    """The layers, bottom first, of the one image in a docker archive."""
    with tarfile.open(archive) as saved:
        (image,) = json.loads(_bytes(saved, "manifest.json"))
        found = []
        for name in image["Layers"]:
            with tarfile.open(fileobj=saved.extractfile(name)) as layer:
                found.append(_members(layer))
        return found


def _bytes(tar: tarfile.TarFile, name: str) -> bytes:
    opened = tar.extractfile(name)
    assert opened is not None
    return opened.read()
