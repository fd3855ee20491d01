"""What is a layer, and what can its filesystem do?

A layer is held by a descriptor of its root; every access goes beneath it.

Reads leave access times alone in lower layers, and in every layer of a read-only or `noatime` mount. Where we may copy
the layer's mount (root, also of a user namespace), the copy has the mount flags for that. Elsewhere files and
directories are opened with O_NOATIME, which the kernel allows for files of our own user; reads of symlinks and of other
users' files then move the access time as the flags of the disk's mount say: mostly once a day (relatime), never if it
is read-only or noatime. In an upper without `noatime` those flags decide for every read that reaches the disk's
filesystem; a read that the kernel answers from its cache (pages, symlinks, listings) moves no access time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from enum import Enum, auto

from overlayfs._typing import NamedTuple

from ..tree import access, marks, syscalls
from ..tree.syscalls import Stat, stat_of
from .inodes import stable_number
from .ownership import override_name

_FS_IOC_GETFSUUID = 0x80111500  # linux/fs.h, Linux 6.9: struct fsuuid2 {u8 len; u8 uuid[16]}
UPPER_INDEX = -1


class Location(NamedTuple):
    """A file in a layer; `path` is relative to the layer's root and empty for the root itself."""

    layer: int
    path: bytes

    def child(self, name: bytes) -> Location:
        return Location(self.layer, b"%s/%s" % (self.path, name) if self.path else name)


class Layer(NamedTuple):
    """One directory tree. Invariant: `root_fd` stays open as long as the overlay is."""

    index: int  # type: ignore[assignment] # tuple's method of this name is not used
    path: bytes
    root_fd: int
    device: int
    identity: bytes
    spelling: marks.Spelling
    data_only: bool = False
    apart: bool = False  # held in a private copy of its mount, so that no later mount is met in it
    opens_quietly: bool = True  # only O_NOATIME keeps a read from moving an access time
    reads_move_times: bool = False  # and may: it is an upper on a disk that keeps access times
    override: bytes | None = None  # the xattr that holds owner and mode of this layer's files, if one does
    hides_below: bool = False  # by an OCI opaque file in its root

    def spelled(self, prefix: bytes) -> Layer:
        """As the layer is read by a mount whose own marks have this prefix."""
        return self._replace(spelling=marks.spelling(prefix, self.spelling.is_upper))

    def as_upper(self) -> Layer:
        """As the layer is read where it is the upper."""
        return self._replace(spelling=marks.spelling(self.spelling.prefix, is_upper=True))

    def number(self, st: Stat) -> int:
        """As `stable_number`, of a file of this layer."""
        return stable_number(self.identity, self.device, st)


def open_layer(index: int, path: bytes, data_only: bool = False) -> Layer:
    """Hold the directory `path` as a layer; OSError where it cannot be opened or is no directory.

    It is read as by a mount that this process makes: `Layer.spelled` says otherwise.
    """
    fd = access.open_directory(path)
    try:
        return describe(index, path, fd, data_only)
    except OSError:
        os.close(fd)
        raise


def open_to_read(index: int, path: bytes, data_only: bool = False) -> Layer:
    """As `open_layer`, for who looks at a layer and leaves it as it is, access times included."""
    return hold_apart([open_layer(index, path, data_only)], Access.READS)[0]


def describe(index: int, path: bytes, fd: int, data_only: bool = False) -> Layer:
    """The directory behind a descriptor as a layer."""
    st = stat_of(fd)
    filesystem = os.fstatvfs(fd).f_fsid or st.st_dev
    identity = struct.pack("<QQ", filesystem & 0xFFFF_FFFF_FFFF_FFFF, st.st_ino)
    override = override_name(fd)
    spelling = marks.spelling(marks.own_prefix(fd), is_upper=index <= UPPER_INDEX)
    return Layer(
        index, path, fd, st.st_dev, identity, spelling, data_only, override=override, hides_below=_hides_below(fd)
    )


def _hides_below(fd: int) -> bool:
    try:
        access.stat_at(fd, marks.OPAQUE_NAME)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    return True


class Access(Enum):
    """What the mount does to a layer."""

    READS = auto()
    WRITES = auto()
    WRITES_NOATIME = auto()


def hold_apart(layers: Sequence[Layer], access: Access) -> list[Layer]:
    """Hold layers in private copies of the mounts that they lie on, as few as possible; in none where that cannot be.

    A mountpoint inside a layer would otherwise lead the daemon into its own mount. The copy of layers that are only
    read is a read-only mount, so that no mistake of ours can change them. Upper and workdir share a copy, as nothing
    can be renamed from one to another.
    """
    held = _hold_in_one_copy([_with_atime_policy(layer, access) for layer in layers], access)
    if access is Access.READS:
        held = [layer if layer.apart else _hold_in_one_copy([layer], access)[0] for layer in held]
    return held


def _with_atime_policy(layer: Layer, access: Access) -> Layer:
    """As the layer is where no copy of its mount sees to access times."""
    if access is not Access.WRITES:
        return layer._replace(opens_quietly=True, reads_move_times=False)
    keeps_times = bool(os.fstatvfs(layer.root_fd).f_flag & os.ST_NOATIME)
    return layer._replace(opens_quietly=False, reads_move_times=not keeps_times)


def _hold_in_one_copy(layers: Sequence[Layer], access: Access) -> list[Layer]:
    """Copy the mount once, from the directory that all the layers lie in. Each copy costs the kernel milliseconds."""
    paths = [os.path.realpath(layer.path) for layer in layers]
    top = os.path.commonpath(paths)
    try:
        tree_fd = syscalls.open_apart(top)
    except OSError:
        return list(layers)
    try:
        opens_quietly = not _keeps_access_times(tree_fd, access)
        return [
            _hold_beneath(tree_fd, os.path.relpath(path, top), layer, opens_quietly)
            for layer, path in zip(layers, paths, strict=True)
        ]
    finally:
        os.close(tree_fd)


def _keeps_access_times(tree_fd: int, access: Access) -> bool:
    """Make a copied mount what `access` needs; whether that does all there is to do about access times."""
    if access is Access.WRITES:
        return True
    try:
        syscalls.change_mount(tree_fd, syscalls.MOUNT_READ_ONLY if access is Access.READS else syscalls.MOUNT_NOATIME)
    except OSError:
        return False
    return True


def _hold_beneath(tree_fd: int, path: bytes, layer: Layer, opens_quietly: bool) -> Layer:
    """The layer with its descriptor, of the same number, led into the copy; unchanged where that shows another file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree_fd)
    except OSError:
        return layer
    try:
        if not stat_of(fd).is_same_file(stat_of(layer.root_fd)):  # another mount lies between
            return layer
        os.dup2(fd, layer.root_fd, inheritable=False)
    finally:
        os.close(fd)
    return layer._replace(apart=True, opens_quietly=opens_quietly)


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
