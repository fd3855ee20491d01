"""How is the data of a file copied into another, with its holes?

Callers own all descriptors; offsets stay. Callable from any thread.
"""

from __future__ import annotations

import errno
import fcntl
import os

from overlayfs._typing import Final

_FICLONE: Final = 0x40049409
_COPY_CHUNK: Final = 16 << 20
_READ_CHUNK: Final = 1 << 20


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
