"""The operations that are struck by faults: each a sequence of engine calls, named for what it does.

A step is one call of a client; a fault within it must leave the tree of before or after it.  Steps resolve
their paths themselves, so that faults in the lookups are within reach, and give every count back.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from overlayfs.overlay import forking
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.values import AttributeChanges, Caller

from .trees import PAGES

ROOT = Caller(uid=0, gid=0)
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2

Step: TypeAlias = Callable[[Overlay], object]


@dataclass(frozen=True, slots=True)
class Operation:
    """Steps in their order; `parents` are the directories whose times a fault may leave in either state.

    So may it those of `moved` directories in the OCI format, which has to make a file in them.  Not `repeatable`
    is what must not succeed after it failed once: an fsync.  Not `for_kernel` is what the kernel does not mount.
    """

    steps: tuple[Step, ...]
    parents: frozenset[bytes]
    metacopy: bool = False
    moved: frozenset[bytes] = frozenset()
    repeatable: bool = True
    for_kernel: bool = True


@contextmanager
def at(overlay: Overlay, path: str) -> Iterator[int]:
    """The inode number at `path`, held for the block."""
    held = []
    ino = 1
    try:
        for name in filter(None, path.split("/")):
            ino = overlay.lookup(ino, name.encode()).ino
            held.append(ino)
        yield ino
    finally:
        for one in held:
            overlay.forget(one, 1)


@contextmanager
def parent_of(overlay: Overlay, path: str) -> Iterator[tuple[int, bytes]]:
    above, _, name = path.rpartition("/")
    with at(overlay, above) as ino:
        yield ino, name.encode()


def write(path: str, data: bytes, offset: int = 0) -> Step:
    def step(overlay: Overlay) -> object:
        with at(overlay, path) as ino:
            overlay.open_file(ino, os.O_WRONLY)
            try:
                return _write_all(overlay, ino, offset, data)
            finally:
                overlay.release(ino)

    return step


def _write_all(overlay: Overlay, ino: int, offset: int, data: bytes) -> int:
    """As a C library does: a short write is followed by another for the rest."""
    done = 0
    while done < len(data):
        done += overlay.write(ino, offset + done, data[done:])
    return done


def change(path: str, changes: AttributeChanges) -> Step:
    def step(overlay: Overlay) -> None:
        with at(overlay, path) as ino:
            overlay.setattr(ino, changes, ROOT)

    return step


def chmod(path: str, mode: int) -> Step:
    return change(path, AttributeChanges(mode=mode))


def truncate(path: str, size: int) -> Step:
    return change(path, AttributeChanges(size=size))


def set_xattr(path: str, name: bytes, value: bytes) -> Step:
    def step(overlay: Overlay) -> None:
        with at(overlay, path) as ino:
            overlay.setxattr(ino, name, value, 0, ROOT)

    return step


def remove_xattr(path: str, name: bytes) -> Step:
    def step(overlay: Overlay) -> None:
        with at(overlay, path) as ino:
            overlay.removexattr(ino, name)

    return step


def rename(old: str, new: str, flags: int = 0) -> Step:
    def step(overlay: Overlay) -> None:
        with parent_of(overlay, old) as source, parent_of(overlay, new) as target:
            overlay.rename(*source, *target, flags)

    return step


def unlink(path: str) -> Step:
    def step(overlay: Overlay) -> None:
        with parent_of(overlay, path) as place:
            overlay.unlink(*place)

    return step


def rmdir(path: str) -> Step:
    def step(overlay: Overlay) -> None:
        with parent_of(overlay, path) as place:
            overlay.rmdir(*place)

    return step


def mkdir(path: str, mode: int = 0o755) -> Step:
    def step(overlay: Overlay) -> None:
        with parent_of(overlay, path) as place:
            overlay.forget(overlay.mkdir(*place, mode, ROOT).ino, 1)

    return step


def create(path: str, mode: int = 0o644) -> Step:
    def step(overlay: Overlay) -> None:
        with parent_of(overlay, path) as place:
            ino = overlay.create(*place, mode, os.O_WRONLY | os.O_EXCL, ROOT).ino
            overlay.release(ino)
            overlay.forget(ino, 1)

    return step


def make_symlink(path: str, target: bytes) -> Step:
    def step(overlay: Overlay) -> None:
        with parent_of(overlay, path) as place:
            overlay.forget(overlay.symlink(*place, target, ROOT).ino, 1)

    return step


def make_node(path: str, mode: int) -> Step:
    def step(overlay: Overlay) -> None:
        with parent_of(overlay, path) as place:
            overlay.forget(overlay.mknod(*place, mode, 0, ROOT).ino, 1)

    return step


def link(old: str, new: str) -> Step:
    def step(overlay: Overlay) -> None:
        with at(overlay, old) as ino, parent_of(overlay, new) as place:
            overlay.forget(overlay.link(ino, *place).ino, 1)

    return step


def make_tmpfile_and_link(path: str, data: bytes) -> Step:
    def step(overlay: Overlay) -> None:
        with parent_of(overlay, path) as place:
            ino = overlay.tmpfile(place[0], 0o644, os.O_RDWR, ROOT).ino
            try:
                _write_all(overlay, ino, 0, data)
                overlay.forget(overlay.link(ino, *place).ino, 1)
            finally:
                overlay.release(ino)
                overlay.forget(ino, 1)

    return step


def sync(path: str) -> Step:
    def step(overlay: Overlay) -> None:
        with at(overlay, path) as ino:
            overlay.fsync(ino, False)

    return step


def sync_data(path: str) -> Step:
    def step(overlay: Overlay) -> None:
        with at(overlay, path) as ino:
            overlay.fsync(ino, True)

    return step


def sync_directory(path: str) -> Step:
    def step(overlay: Overlay) -> None:
        with at(overlay, path) as ino:
            overlay.fsyncdir(ino)

    return step


def list_directory(path: str) -> Step:
    def step(overlay: Overlay) -> object:
        with at(overlay, path) as ino:
            handle = overlay.opendir(ino)
            try:
                return sorted((entry.name, stat.S_IFMT(entry.attributes.mode)) for entry in overlay.readdir(handle, 0))
            finally:
                overlay.releasedir(handle)

    return step


def read(path: str) -> Step:
    def step(overlay: Overlay) -> object:
        with at(overlay, path) as ino:
            overlay.open_file(ino, os.O_RDONLY)
            try:
                return overlay.read(ino, 0, 1 << 20)
            finally:
                overlay.release(ino)

    return step


def read_attributes(path: str) -> Step:
    def step(overlay: Overlay) -> object:
        with at(overlay, path) as ino:
            seen = overlay.getattr(ino)
            xattrs = sorted((name, overlay.getxattr(ino, name)) for name in overlay.listxattr(ino))
            return seen.mode, seen.uid, seen.size, seen.mtime_ns, seen.nlink, xattrs

    return step


def read_link(path: str) -> Step:
    def step(overlay: Overlay) -> object:
        with at(overlay, path) as ino:
            return overlay.readlink(ino)

    return step


def read_space(path: str) -> Step:
    def step(overlay: Overlay) -> object:
        return overlay.statfs().f_namemax

    return step


def snapshot(name: str) -> Step:
    def step(overlay: Overlay) -> None:
        overlay.snapshot(name)

    return step


def roll_back(name: str, *, drop: bool = False) -> Step:
    def step(overlay: Overlay) -> None:
        overlay.roll_back(name, drop=drop)

    return step


def reset(overlay: Overlay, *places: bytes) -> None:
    """Drop all changes, but for these places, and remove them."""
    overlay.reset(places)
    if (remove := overlay.take_waste()) is not None:
        remove()


def reset_around(*places: str) -> Step:
    def step(overlay: Overlay) -> None:
        reset(overlay, *map(os.fsencode, places))

    return step


def fork(name: str) -> Step:
    """Make all that a fork needs on disk; the next mount removes it."""

    def step(overlay: Overlay) -> None:
        make_fork(overlay, name)

    return step


def make_fork(overlay: Overlay, name: str) -> bytes:
    upper, work = overlay.options.upper, overlay.options.work
    assert upper is not None and work is not None
    return forking.make(upper, work, name, overlay.state.prefix)


def _operation(
    parents: str, *steps: Step, metacopy: bool = False, moved: str = "", repeatable: bool = True
) -> Operation:
    """`parents`: the changed directories, blank-separated; the root is one always.  `moved` likewise."""
    return Operation(steps, _paths(parents) | {b"."}, metacopy, _paths(moved), repeatable)


def _paths(names: str) -> frozenset[bytes]:
    return frozenset(b"./" + name.encode() for name in names.split())


ACCESS_ACL = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000400ffffffff")

MUTATIONS: dict[str, Operation] = {
    "write to lower file": _operation("dir", write("dir/file", b"new")),
    "append to big lower file": _operation("", write("big", b"appended", len(PAGES))),
    "truncate lower file": _operation("dir", truncate("dir/file", 10)),
    "truncate big lower file to nothing": _operation("", truncate("big", 0)),
    "chmod lower file": _operation("dir", chmod("dir/file", 0o600)),
    "chmod lower directory": _operation("", chmod("dir", 0o700)),
    "chmod merged directory": _operation("", chmod("merged", 0o700)),
    "chown lower file": _operation("", change("big", AttributeChanges(uid=5, gid=6))),
    "set times of lower file": _operation("dir", change("dir/file", AttributeChanges(mtime_ns=77 * 10**9, atime_ns=1))),
    "chmod with metacopy then write": _operation("", chmod("big", 0o600), write("big", b"new"), metacopy=True),
    "setxattr lower file": _operation("dir", set_xattr("dir/file", b"user.new", b"value")),
    "removexattr lower file": _operation("dir", remove_xattr("dir/file", b"user.gone")),
    "set ACL of lower file": _operation("", set_xattr("big", b"system.posix_acl_access", ACCESS_ACL)),
    "setxattr lower directory": _operation("dir", set_xattr("dir/sub", b"user.new", b"value")),
    "chown symlink": _operation("", change("pointer", AttributeChanges(uid=3))),
    "chmod fifo": _operation("", chmod("pipe", 0o600)),
    "rename lower file": _operation("dir", rename("dir/file", "dir/renamed")),
    "rename lower file elsewhere": _operation("dir merged", rename("dir/file", "merged/moved")),
    "rename lower file over lower": _operation("dir merged", rename("dir/file", "merged/both")),
    "rename upper file over lower": _operation("dir", rename("mine", "dir/file")),
    "rename upper file over whiteout": _operation("", rename("mine", "deleted")),
    "rename without replacing": _operation("dir", rename("big", "dir/big", RENAME_NOREPLACE)),
    "rename lower directory": _operation("", rename("lowtree", "moved"), moved="lowtree lowtree/b moved moved/b"),
    "rename lower directory elsewhere": _operation(
        "merged lowtree", rename("lowtree/b", "merged/b"), moved="lowtree/b merged/b"
    ),
    "rename merged directory": _operation("", rename("merged", "combined"), moved="merged combined"),
    "rename merged directory into lower one": _operation(
        "dir dir/sub", rename("merged", "dir/sub/merged"), moved="merged dir/sub/merged"
    ),
    "rename merged directory over empty one": _operation("", rename("merged", "empty"), moved="merged empty"),
    "rename upper directory over whiteout": _operation("", rename("myown", "gone"), moved="myown gone"),
    "rename directory twice": _operation(
        "",
        rename("lowtree", "second"),
        rename("second", "third"),
        moved="lowtree lowtree/b second second/b third third/b",
    ),
    "unlink a name of a hard-linked lower file": _operation("", unlink("one"), unlink("two")),
    "unlink lower file": _operation("dir", unlink("dir/file")),
    "unlink upper file": _operation("", unlink("mine")),
    "unlink merged file": _operation("merged", unlink("merged/both"), unlink("merged/upper")),
    "rmdir lower directory": _operation("", rmdir("empty")),
    "rmdir merged directory of whiteouts": _operation("doomed", rmdir("doomed")),
    "delete lower tree": _operation(
        "lowtree lowtree/b", unlink("lowtree/b/c"), rmdir("lowtree/b"), unlink("lowtree/a"), rmdir("lowtree")
    ),
    "mkdir": _operation("dir", mkdir("dir/new")),
    "mkdir over whiteout": _operation("", mkdir("gone")),
    "mkdir over file whiteout": _operation("", mkdir("deleted", 0o2775)),
    "create": _operation("dir/sub dir", create("dir/sub/new"), write("dir/sub/new", b"content")),
    "create over whiteout": _operation("", create("deleted", mode=0o600), write("deleted", b"content")),
    "symlink": _operation("dir", make_symlink("dir/new", b"target")),
    "symlink over whiteout": _operation("", make_symlink("deleted", b"target")),
    "mkfifo over whiteout": _operation("", make_node("gone", stat.S_IFIFO | 0o644)),
    "tmpfile then link": _operation("dir", make_tmpfile_and_link("dir/linked", b"content")),
    "link lower file": _operation("dir", link("big", "dir/big")),
    "link over whiteout": _operation("", link("mine", "deleted")),
    "replace lower file by rename": _operation(
        "dir", create("dir/.tmp"), write("dir/.tmp", b"the new version"), rename("dir/.tmp", "dir/file")
    ),
    "exchange lower and upper file": _operation("dir", rename("dir/file", "mine", RENAME_EXCHANGE)),
    "exchange lower and upper directory": _operation(
        "", rename("lowtree", "myown", RENAME_EXCHANGE), moved="lowtree lowtree/b myown myown/b"
    ),
    "exchange lower file and merged directory": _operation(
        "", rename("big", "merged", RENAME_EXCHANGE), moved="merged big"
    ),
    "rename upper file": _operation("", rename("mine", "gone2")),
    "write to hard-linked lower file": _operation("", write("one", b"LINKED"), write("two", b"TWICE", 7)),
    "chmod and unlink hard-linked file": _operation("", chmod("two", 0o600), unlink("one")),
    "link hard-linked file again": _operation("dir", link("one", "dir/three"), rename("two", "four")),
    "fsync lower file after write": _operation("dir", write("dir/file", b"new"), sync("dir/file"), repeatable=False),
    "fsync directory after unlink": _operation("dir", unlink("dir/file"), sync_directory("dir")),
}

OBSERVATIONS: dict[str, Operation] = {
    "list merged directory": _operation("", list_directory("merged")),
    "list root": _operation("", list_directory("")),
    "list lower directory": _operation("", list_directory("dir/sub")),
    "list directory with whiteouts": _operation("", list_directory("doomed")),
    "read lower file": _operation("", read("dir/file")),
    "read upper file": _operation("", read("merged/upper")),
    "read file hidden by a layer": _operation("", read("merged/both")),
    "attributes of lower file": _operation("", read_attributes("dir/file")),
    "attributes of upper file": _operation("", read_attributes("mine")),
    "attributes of merged directory": _operation("", read_attributes("merged")),
    "attributes of linked file": _operation("", read_attributes("two")),
    "readlink": _operation("", read_link("pointer")),
    "statfs": _operation("", read_space("")),
}
