"""Which system calls do we need that the standard library does not have?

Everything that uses ctypes is here, and nothing else is. All functions take directory descriptors and names, so
that callers never resolve a path outside a layer's root. Thread-safe: no state but libc's handle.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from contextlib import suppress

from overlayfs._typing import Final, NamedTuple

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

O_PATH = os.O_PATH
# A descriptor that names a directory and nothing else, never through a symlink.
OPEN_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A descriptor that names any file, the symlink itself included.
OPEN_NODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_SYS_OPEN_TREE = 428  # Linux 5.2
_OPEN_TREE_CLONE = 1
_SYS_MOUNT_SETATTR = 442
# struct mount_attr: set, clear, propagation, userns_fd
_MAKE_PRIVATE = struct.pack("4Q", 0, 0, 1 << 18, 0)
MOUNT_READ_ONLY = struct.pack("4Q", 0x01, 0, 0, 0)
MOUNT_NOATIME = struct.pack("4Q", 0x10, 0x70, 0, 0)  # an access time policy takes the place of another
_TIMES = struct.Struct("4l")  # struct timespec[2]: atime, mtime
_UTIME_OMIT = (1 << 30) - 2
_SYS_OPENAT2 = 437  # the same on every architecture (Linux 5.6)
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10
_RESOLVE = struct.pack("Q", _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
_RESOLVE_AS_CHROOT = struct.pack("Q", _RESOLVE_NO_MAGICLINKS | _RESOLVE_IN_ROOT)
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x0002_0000, 0x1000_0000, 0x2000_0000
_PR_SET_DUMPABLE = 4
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_FICLONE = 0x40049409
_TMPFS_MAGIC, _RAMFS_MAGIC = 0x01021994, 0x858458F6
_STATX_BTIME = 0x800
_STX_ATTRIBUTES_OFFSET, _STX_BTIME_OFFSET = 8, 80
_AT_SYMLINK_NOFOLLOW = 0x100
_MAX_HANDLE_SIZE = 128
_LONGEST_PATH = 4000  # below PATH_MAX, with room for the terminating NUL
_COPY_CHUNK = 16 << 20
_READ_CHUNK = 1 << 20

# io_setup, io_destroy, io_submit, io_getevents; on other machines nobody needs them so much.
_AIO_CALLS = {("x86_64", 8): (206, 207, 209, 208), ("aarch64", 8): (0, 1, 2, 4)}.get(
    (os.uname().machine, struct.calcsize("P"))
)
# struct iocb (linux/aio_abi.h): data, key, rw_flags, opcode, priority, descriptor, buffer, bytes, offset, reserved,
# flags, eventfd. struct io_event: data, iocb, result, result2. struct timespec.
_IOCB = struct.Struct("QIiHhIQQqQII")
_IO_EVENT = struct.Struct("QQqq")
_TIMESPEC = struct.Struct("qq")
_IOCB_FSYNC, _IOCB_FDSYNC, _IOCB_TELLS_EVENTFD = 2, 3, 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


# struct file_handle: how much room there is, the type, the handle.
_HANDLE_HEAD = struct.Struct("Ii")
_NO_HANDLE = _HANDLE_HEAD.pack(_MAX_HANDLE_SIZE, 0) + bytes(_MAX_HANDLE_SIZE)
_HandleBuffer = ctypes.c_char * len(_NO_HANDLE)


class FileHandle(NamedTuple):
    """What name_to_handle_at(2) says of a file: stable as long as the filesystem lives."""

    type: int
    bytes: bytes
    mount_id: int


def _raise_errno(name: bytes) -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), name)


def descriptor_path(fd: int) -> bytes:
    """A path that names what `fd` refers to, for calls that take no descriptor (xattrs, scandir, chmod of O_PATH)."""
    return b"/proc/self/fd/%d" % fd


def entry_path(dir_fd: int, name: bytes) -> bytes:
    """A path of `name` in the directory `dir_fd`; safe with calls that do not follow a final symlink."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


def open_beneath(root_fd: int, path: bytes, flags: int) -> int:
    """Open `path` below `root_fd` without following any symlink; an empty path is the root itself.

    Raises ELOOP or ENOTDIR where a component is a symlink, EXDEV where the path would lead out. Paths longer than
    PATH_MAX are walked in pieces. The caller owns the descriptor.
    """
    if not path:
        path = b"."
    if len(path) <= _LONGEST_PATH:
        return _openat2(root_fd, path, flags | os.O_CLOEXEC)
    head, tail = _cut(path)
    fd = _openat2(root_fd, head, OPEN_DIRECTORY)
    try:
        return open_beneath(fd, tail, flags)
    finally:
        os.close(fd)


def _cut(path: bytes) -> tuple[bytes, bytes]:
    slash = path.rfind(b"/", 0, _LONGEST_PATH)
    if slash <= 0:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    return path[:slash], path[slash + 1 :]


def open_in_root(root_fd: int, path: bytes, flags: int) -> int:
    """Open `path` as a process would whose root directory is `root_fd`: no symlink and no `..` leads out.

    Needs Linux 5.6, ENOSYS without. The caller owns the descriptor.
    """
    return _resolve(root_fd, path, flags | os.O_CLOEXEC, _RESOLVE_AS_CHROOT)


def _openat2(dir_fd: int, path: bytes, flags: int) -> int:
    try:
        return _resolve(dir_fd, path, flags, _RESOLVE)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return _walk_open(dir_fd, path, flags)


def _resolve(dir_fd: int, path: bytes, flags: int, resolution: bytes) -> int:
    """openat2(2)."""
    how = struct.pack("QQ", flags, 0) + resolution
    while True:
        fd = _libc.syscall(_SYS_OPENAT2, dir_fd, path, how, len(how))
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: a concurrent rename, try again (openat2(2))
            raise OSError(code, os.strerror(code), path)


def _walk_open(dir_fd: int, path: bytes, flags: int) -> int:
    """openat2 for kernels and sandboxes without it: one component at a time, never through a symlink."""
    *parents, last = [part for part in path.split(b"/") if part] or [b"."]
    if b".." in (*parents, last):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    here = os.dup(dir_fd)
    try:
        for part in parents:
            below = os.open(part, OPEN_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        return os.open(last, flags | os.O_NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)


def open_apart(path: bytes) -> int:
    """Open the directory `path` in a private copy of its mount: what is mounted over or in it is not seen there, now
    or later. Needs CAP_SYS_ADMIN and Linux 5.12; raises OSError without. The caller owns the descriptor (O_PATH)."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    fd = int(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, path, ctypes.c_uint(flags)))
    if fd < 0:
        _raise_errno(path)
    try:  # else what is mounted in the original later would be propagated
        change_mount(fd, _MAKE_PRIVATE)
    except OSError:
        os.close(fd)
        raise
    return fd


def change_mount(fd: int, attributes: bytes) -> None:
    """mount_setattr(2) of the mount whose root `fd` is: MOUNT_READ_ONLY or MOUNT_NOATIME. In a user namespace EPERM
    where a mount of its parent gets another access time policy."""
    if _libc.syscall(_SYS_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, attributes, len(attributes)) != 0:
        _raise_errno(b"")


def renameat2(src_dir_fd: int, src: bytes, dst_dir_fd: int, dst: bytes, flags: int = 0) -> None:
    """renameat2(2) with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    if _libc.renameat2(src_dir_fd, src, dst_dir_fd, dst, flags) != 0:
        _raise_errno(src)


def link_descriptor(fd: int, dst_dir_fd: int, dst: bytes) -> None:
    """Give the file of `fd` (O_TMPFILE, or any node with a link left) the name `dst`; EEXIST where it is taken."""
    os.link(descriptor_path(fd), dst, dst_dir_fd=dst_dir_fd, follow_symlinks=True)


def file_handle(fd: int) -> FileHandle | None:
    """The handle of the file that `fd` refers to, None where the filesystem has no handles."""
    handle, mount_id = _HandleBuffer.from_buffer_copy(_NO_HANDLE), ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", handle, ctypes.byref(mount_id), _AT_EMPTY_PATH) != 0:
        if ctypes.get_errno() in (errno.EOPNOTSUPP, errno.EOVERFLOW, errno.ENOSYS, errno.EPERM):
            return None
        _raise_errno(b"")
    length, kind = _HANDLE_HEAD.unpack_from(handle)
    return FileHandle(kind, handle.raw[_HANDLE_HEAD.size : _HANDLE_HEAD.size + length], mount_id.value)


def set_times(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set one or both times, in ns since the epoch, of the node that `fd` (O_PATH is enough) refers to."""
    if atime_ns is not None and mtime_ns is not None:
        os.utime(descriptor_path(fd), ns=(atime_ns, mtime_ns))
        return
    times = _TIMES.pack(*_timespec(atime_ns), *_timespec(mtime_ns))
    if _libc.utimensat(_AT_FDCWD, descriptor_path(fd), times, 0) != 0:
        _raise_errno(b"")


def _timespec(time_ns: int | None) -> tuple[int, int]:
    if time_ns is None:
        return 0, _UTIME_OMIT
    return divmod(time_ns, 1_000_000_000)


def unmount(path: bytes, lazy: bool = False) -> None:
    """umount2(2), never through a final symlink; `lazy` detaches a busy mount at once."""
    if _libc.umount2(path, _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) != 0:
        _raise_errno(path)


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """mount(2)."""
    if _libc.mount(source, target, kind, ctypes.c_ulong(flags), data) != 0:
        _raise_errno(target)


def unshare(namespaces: int) -> None:
    """unshare(2) with CLONE_NEW* flags; a new pid namespace is for the children to come. No threads may run."""
    if _libc.unshare(namespaces) != 0:
        _raise_errno(b"")


def let_be_inspected() -> None:
    """Let those who may trace this process use its files in /proc again, which a change of its ids had taken from them:
    prctl(2), PR_SET_DUMPABLE."""
    if _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) != 0:
        _raise_errno(b"")


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with any mode."""
    if _libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        _raise_errno(b"")


def birth_time(fd: int) -> int | None:
    """When the file was made, in ns since the epoch; None where the filesystem does not tell (statx(2))."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) != 0:
        _raise_errno(b"")
    (mask,) = struct.unpack_from("I", buffer)
    seconds, nanoseconds = struct.unpack_from("qI", buffer, _STX_BTIME_OFFSET)
    return seconds * 1_000_000_000 + nanoseconds if mask & _STATX_BTIME else None


def file_attributes(dir_fd: int, name: bytes) -> int:
    """The STATX_ATTR_* bits of `name` in `dir_fd`, never of what a symlink leads to (statx(2))."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(dir_fd, name, _AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH, 0, buffer) != 0:
        _raise_errno(name)
    (attributes,) = struct.unpack_from("Q", buffer, _STX_ATTRIBUTES_OFFSET)
    return int(attributes)


def is_in_memory(fd: int) -> bool:
    """True where it is known (statfs(2)) that nothing ever waits for a disk: on tmpfs and ramfs."""
    buffer = ctypes.create_string_buffer(256)
    known = _libc.fstatfs(fd, buffer) == 0
    return known and struct.unpack_from("q", buffer)[0] in (_TMPFS_MAGIC, _RAMFS_MAGIC)


def trim_memory() -> None:
    """Give free memory of the C heap back to the system (glibc's malloc_trim(3); nothing elsewhere)."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def sync_filesystem(fd: int) -> None:
    """syncfs(2): write out everything of the filesystem that `fd` lies on."""
    if _libc.syncfs(fd) != 0:
        _raise_errno(b"")


class SyncQueue:
    """fsync(2) by the kernel's own threads: io_submit(2) and its kin. `event_fd` is readable when one has ended.

    Raises OSError where the machine or the sandbox has no such calls.
    """

    _MOST: Final = 64  # at once

    def __init__(self) -> None:
        if _AIO_CALLS is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._setup, self._destroy, self._submit, self._get_events = _AIO_CALLS
        self._events = ctypes.create_string_buffer(_IO_EVENT.size * self._MOST)
        context = ctypes.c_ulong(0)
        self._call(self._setup, self._MOST, ctypes.byref(context))
        self._context = context
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @staticmethod
    def _call(number: int, *arguments: object) -> int:
        result = int(_libc.syscall(number, *arguments))
        if result < 0:
            _raise_errno(b"")
        return result

    def submit(self, fd: int, data_only: bool, token: int) -> None:
        """Begin an fsync, or an fdatasync; EAGAIN where too many are under way. `fd` may be closed at once."""
        opcode = _IOCB_FDSYNC if data_only else _IOCB_FSYNC
        block = ctypes.create_string_buffer(
            _IOCB.pack(token, 0, 0, opcode, 0, fd, 0, 0, 0, 0, _IOCB_TELLS_EVENTFD, self.event_fd), _IOCB.size
        )
        self._call(self._submit, self._context, 1, ctypes.byref(ctypes.c_void_p(ctypes.addressof(block))))

    def ended(self, wait_ns: int = 0) -> list[tuple[int, int]]:
        """Those that have ended, each with its token and an errno or 0; waits so long for one."""
        ended = self._take(wait_ns)
        if ended or not wait_ns:
            with suppress(BlockingIOError):
                os.eventfd_read(self.event_fd)
            while more := self._take(0):  # what ended before that would not make it readable again
                ended += more
        return ended

    def _take(self, wait_ns: int) -> list[tuple[int, int]]:
        timeout = _TIMESPEC.pack(0, wait_ns)
        try:
            count = self._call(self._get_events, self._context, min(wait_ns, 1), self._MOST, self._events, timeout)
        except InterruptedError:
            count = 0
        events = _IO_EVENT.iter_unpack(self._events.raw[: count * _IO_EVENT.size])
        return [(token, -result) for token, _, result, _ in events]

    def close(self) -> None:
        """Waits for what is under way."""
        self._call(self._destroy, self._context)
        os.close(self.event_fd)


def copy_data(source: int, target: int, size: int, *, has_holes: bool) -> None:
    """Copy the first `size` bytes of `source` into the empty file `target`, keeping holes where there are some.

    Callers own both descriptors; offsets stay. Raises EIO where the source is shorter.
    """
    if not has_holes:
        _copy_range(source, target, 0, size)
        return
    os.ftruncate(target, size)
    position = 0
    while position < size:
        start, end = _next_extent(source, position, size)
        _copy_range(source, target, start, end)
        position = end


def clone(source: int, target: int) -> None:
    """Let `target` share all data of `source` (ioctl_ficlone(2)); OSError where that cannot be."""
    fcntl.ioctl(target, _FICLONE, source)


def _next_extent(source: int, position: int, size: int) -> tuple[int, int]:
    """The next run of data as (start, end); (size, size) where only a hole is left."""
    try:
        start = os.lseek(source, position, os.SEEK_DATA)
        end = os.lseek(source, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            if os.fstat(source).st_size < size:
                raise OSError(errno.EIO, "the file shrank while it was copied") from None
            return size, size
        if error.errno == errno.EINVAL:
            return position, size
        raise
    return min(start, size), min(end, size)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    in_kernel = True
    while start < end:
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, min(end - start, _COPY_CHUNK), start, start)
            except OSError as error:
                if error.errno not in (
                    errno.EXDEV,
                    errno.EINVAL,
                    errno.EOPNOTSUPP,
                    errno.ENOSYS,
                    errno.EPERM,
                    errno.ETXTBSY,
                ):
                    raise
                copied = 0
            in_kernel = copied > 0
        else:
            copied = write_all(target, os.pread(source, min(end - start, _READ_CHUNK), start), start)
            if not copied:
                raise OSError(errno.EIO, "the file shrank while it was copied")
        start += copied


def write_all(fd: int, data: bytes, offset: int) -> int:
    """pwrite(2) until all of `data` is written; raises where nothing more goes in. Returns len(data)."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view = view[written:]
        offset += written
    return len(data)
