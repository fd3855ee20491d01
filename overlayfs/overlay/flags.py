"""How are the flags of chattr(1) shown and changed?

Those that protect a file never get onto the file in the upper: see protection. All others are its own.
"""

from __future__ import annotations

import errno
import os
import stat

from ..tree import access, fileflags, marks, xattrs
from ..tree.fileflags import FLAG_COMMANDS, READER_OF
from . import copyup, protection
from .inodes import Directory, Inode
from .state import State


def file_flags(state: State, inode: Inode, command: int, argument: bytes) -> bytes:
    """One of FLAG_COMMANDS of ioctl(2): what chattr(1) and lsattr(1) say and show. Copies up to change them."""
    if command not in FLAG_COMMANDS or inode.kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
    if len(argument) != FLAG_COMMANDS[command]:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if command in READER_OF:
        copyup.ensure_upper(state, inode)
    with state.node(inode) as node:
        fd = state.descriptors.open(lambda: fileflags.open_to_control(node))
    try:
        if command in READER_OF:
            _change(state, inode, fd, command, argument)
            return argument
        found = fileflags.control(fd, command, argument)
    finally:
        os.close(fd)
    on_disk = fileflags.protecting_in(command, found)
    return fileflags.with_protecting(command, found, on_disk | protection.flags_of(state, inode))


def _change(state: State, inode: Inode, fd: int, command: int, argument: bytes) -> None:
    """First the flags on disk, as one that protects the file there would keep the xattr from being written."""
    before, wanted = protection.flags_of(state, inode), fileflags.protecting_in(command, argument)
    if wanted and not state.xattrs_work:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    reader = READER_OF[command]
    on_disk = fileflags.control(fd, reader, bytes(FLAG_COMMANDS[reader]))
    fileflags.control(fd, command, fileflags.with_protecting(command, argument, 0))
    inode.attributes = None
    state.descriptors.drop_file(inode.number)  # some filesystems look at the flags only when a file is opened
    try:
        if wanted != before:
            _store(state, fd, wanted)
    except OSError:
        fileflags.control(fd, command, on_disk)
        raise
    inode.protection, inode.xattr_names = wanted, None
    if isinstance(inode, Directory):
        inode.inheritance = None


def _store(state: State, fd: int, flags: int) -> None:
    name = state.prefix + marks.PROTECTION
    if flags:
        access.setxattr(fd, name, marks.protection_value(flags))
    elif xattrs.read_xattr_of_descriptor(fd, name) is not None:
        access.removexattr(fd, name)
