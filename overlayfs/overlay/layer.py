"""What is a layer, and what can its filesystem do?

A layer is held by a descriptor of its root; every access goes beneath it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import xxhash

from ..tree import access, syscalls
from .ownership import override_name

_FS_IOC_GETFSUUID = 0x80111500  # linux/fs.h, Linux 6.9: struct fsuuid2 {u8 len; u8 uuid[16]}
UPPER_INDEX = -1
_KEY = struct.Struct("<qQ")


class Location(NamedTuple):
    """A file in a layer; `path` is relative to the layer's root and empty for the root itself."""

    layer: int
    path: bytes

    def child(self, name: bytes) -> Location:
        return Location(self.layer, b"%s/%s" % (self.path, name) if self.path else name)


@dataclass(frozen=True, slots=True)
class Layer:
    """One directory tree. Invariant: `root_fd` stays open as long as the overlay is."""

    index: int
    path: bytes
    root_fd: int
    device: int
    identity: bytes
    data_only: bool = False
    apart: bool = False  # held in a private copy of its mount, so that no later mount is met in it
    override: bytes | None = None  # the xattr that holds owner and mode of this layer's files, if one does

    def number(self, st: os.stat_result) -> int:
        """The inode number of a file of this layer in the merged tree: the same at every mount of the layer.

        Derived from the filesystem's identity, the layer's root and the file, so that layers on different
        filesystems, or hard-linked with each other, never share a number but by chance (xxh3-64).
        """
        key = _KEY.pack(st.st_dev - self.device, st.st_ino)
        return xxhash.xxh3_64_intdigest(self.identity + key) & 0x7FFF_FFFF_FFFF_FFFF


def open_layer(index: int, path: bytes, data_only: bool = False) -> Layer:
    """Hold the directory `path` as a layer; OSError where it cannot be opened or is no directory."""
    fd = access.open_directory(path)
    try:
        return _describe(index, path, fd, data_only)
    except OSError:
        os.close(fd)
        raise


def _describe(index: int, path: bytes, fd: int, data_only: bool) -> Layer:
    st = os.fstat(fd)
    filesystem = os.fstatvfs(fd).f_fsid or st.st_dev
    identity = struct.pack("<QQ", filesystem & 0xFFFF_FFFF_FFFF_FFFF, st.st_ino)
    override = override_name(fd)
    return Layer(index, path, fd, st.st_dev, identity, data_only, override=override)


def hold_apart(lowers: Sequence[Layer], writable: Sequence[Layer]) -> tuple[list[Layer], list[Layer]]:
    """Hold layers in private copies of the mounts that they lie on, as few as possible; unchanged where that cannot be.

    A mountpoint inside a layer would otherwise lead the daemon into its own mount. The writable layers share a copy,
    as nothing can be renamed from one copy to another.
    """
    held = _hold_in_one_copy([*lowers, *writable])
    below, above = held[: len(lowers)], held[len(lowers) :]
    below = [layer if layer.apart else _hold_in_one_copy([layer])[0] for layer in below]
    if not all(layer.apart for layer in above):
        above = _hold_in_one_copy(above)
    return below, above


def _hold_in_one_copy(layers: Sequence[Layer]) -> list[Layer]:
    """Copy the mount once, from the directory that all the layers lie in. Each copy costs the kernel milliseconds."""
    paths = [os.path.realpath(layer.path) for layer in layers]
    top = os.path.commonpath(paths)
    try:
        tree_fd = syscalls.open_apart(top)
    except OSError:
        return list(layers)
    try:
        return [
            _hold_beneath(tree_fd, os.path.relpath(path, top), layer) for layer, path in zip(layers, paths, strict=True)
        ]
    finally:
        os.close(tree_fd)


def _hold_beneath(tree_fd: int, path: bytes, layer: Layer) -> Layer:
    """The layer with its descriptor, of the same number, led into the copy; unchanged where that shows another file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree_fd)
    except OSError:
        return layer
    try:
        if not os.path.samestat(os.fstat(fd), os.fstat(layer.root_fd)):  # another mount lies between
            return layer
        os.dup2(fd, layer.root_fd, inheritable=False)
    finally:
        os.close(fd)
    return replace(layer, apart=True)


def filesystem_uuid(fd: int) -> bytes:
    """The UUID by which the kernel's overlayfs knows a filesystem in origin xattrs; zeros where it cannot be told."""
    buffer = bytearray(17)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, buffer)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ENOSYS):
            raise
        return bytes(16)
    return bytes(buffer[1:]) if buffer[0] == 16 else bytes(16)


def mount_id(fd: int) -> int | None:
    """Which mount the descriptor lies on, None where the filesystem has no file handles."""
    handle = syscalls.file_handle(fd)
    return None if handle is None else handle.mount_id
