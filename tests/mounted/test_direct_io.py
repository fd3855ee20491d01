"""Writes past the page cache, beside a reader who keeps pages: nobody sees the old data once the write has ended."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.mounted.held_file import held_file
from tests.mounted.stack import Stack

SIZE = 64 * mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_IO_SETUP, _IO_DESTROY, _IO_GETEVENTS, _IO_SUBMIT, _PWRITE = 206, 207, 208, 209, 1  # x86-64; linux/aio_abi.h
_IOCB = struct.Struct("QIiHhIQQqQII")
_EVENT = struct.Struct("QQqq")


@contextmanager
def _aio() -> Iterator[ctypes.c_ulong]:
    context = ctypes.c_ulong()
    _checked(_libc.syscall(_IO_SETUP, 8, ctypes.byref(context)))
    try:
        yield context
    finally:
        _libc.syscall(_IO_DESTROY, context)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _write_directly(context: ctypes.c_ulong, fd: int, buffer: mmap.mmap) -> None:
    """Submit one asynchronous write of the whole buffer and wait for its end."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    request = ctypes.create_string_buffer(_IOCB.pack(0, 0, 0, _PWRITE, 0, fd, address, len(buffer), 0, 0, 0, 0))
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(request))
    assert _checked(_libc.syscall(_IO_SUBMIT, context, ctypes.c_long(1), pointers)) == 1
    event = ctypes.create_string_buffer(_EVENT.size)
    assert _checked(_libc.syscall(_IO_GETEVENTS, context, ctypes.c_long(1), ctypes.c_long(1), event, None)) == 1
    assert _EVENT.unpack(event.raw)[2] == len(buffer)


@pytest.mark.parametrize("option", ["lane=on", "lane=off", "passthrough=on", "timeout=0", "writeback=1"])
def test_asynchronous_direct_write_that_has_ended_is_what_everybody_reads(option: str, stack: Stack) -> None:
    """The file is read in the middle of the write: after the kernel has dropped the pages of the file, and before it
    has the data, which lie in a file that it has to wait for.

    Pages that are kept then are dropped again where the next reader's GETATTR tells of a new mtime. So that the
    outcome does not depend on whether it is new in this tick of the clock, a chmod tells of it before that.
    """
    path = stack.place / "file"
    old = b"old data" * (SIZE // 8)
    (stack.upper / "file").write_bytes(old)
    stack.mount(option)
    source = stack.base / "source"
    with ExitStack() as at_end:
        held = at_end.enter_context(held_file(source, SIZE))
        reader, writer, new = (
            at_end.enter_context(open(name, mode, buffering=0, opener=opener))
            for name, mode, opener in (
                (path, "rb", None),
                (path, "r+b", lambda name, flags: os.open(name, flags | os.O_DIRECT)),
                (source / "large", "rb", None),
            )
        )
        buffer = at_end.enter_context(mmap.mmap(new.fileno(), SIZE, mmap.MAP_PRIVATE))
        context = at_end.enter_context(_aio())
        writing = threading.Thread(target=_write_directly, args=(context, writer.fileno(), buffer))
        writing.start()
        held.wait_for_read()
        assert os.pread(reader.fileno(), SIZE, 0) == old
        held.allow()
        writing.join()
        os.chmod(path, 0o600)
        assert os.pread(reader.fileno(), SIZE, 0) == bytes(SIZE)
