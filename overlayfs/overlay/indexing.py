# cython: language_level=3, annotation_typing=False
"""How do the names of a hard-linked lower file stay one file when it is copied up?

As in the kernel's overlayfs with `index=on`: the copy lives in the workdir's `index` directory under the hex form of
its origin, and the names in the upper are hard links of it. A lower name is led to the copy through the index. How
many of the links on disk are no names in the merged tree is kept in the nlink xattr.

Compiled; C types are in indexing.pxd.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from overlayfs._log import Log

from ..tree import access, marks, syscalls
from ..tree.syscalls import Stat, stat_of
from . import attributes, copyup_directory, impure, linked, lookup, publishing
from .drafts import Draft, afterwards, note_changed, unseen
from .inodes import Directory, Inode
from .layer import UPPER_INDEX
from .merge import Kind
from .scanning import scan
from .state import State

log = Log(__name__)

_INDEX = b"index"
_LINKS = b"overlayfs-links"
_LONGEST_TARGET = 4095
_LONGEST_COUNT = 10
_NUMBER_SIZE = 8


def publish(state: State, inode: Inode, draft: Draft, st: Stat) -> None:
    """Publish the copy of a lower file, of which `st` is the stat: the one place that decides what it is from now on.

    One file under all its names where it may have some that nobody looked up: those find it through the index. Else,
    or where no index is kept, one file under its known names; without any it is kept by its descriptor.
    """
    named = inode.parent is not None
    names_left = inode.names_left(st)  # more than one link on disk may be left of a copy that only the index has
    is_linked = max(st.st_nlink, names_left) > 1 and (named or names_left > 0) and _can_index(state, inode)
    index_name = linked.entry_name(state, inode.lower) if is_linked and inode.lower is not None else None
    if index_name is not None:
        _publish_in_index(state, inode, draft, index_name, st)
    else:
        if named:
            if st.st_nlink > 1:
                _forget_number(state, draft)
            _publish_under_known_names(state, inode, draft)
        else:
            state.unshare(inode)
            state.orphans[inode.number] = draft.keep_descriptor()
        inode.lost_links = 0


def _publish_in_index(state: State, inode: Inode, draft: Draft, index_name: bytes, st: Stat) -> None:
    index_fd, fd = _index_fd(state), draft.fd
    made = stat_of(fd)
    access.setxattr(fd, state.prefix + marks.LOWER_LINKS, marks.integer_value(st.st_nlink))
    _count_from_lower(state, fd, -inode.lost_links)
    draft.publish(index_fd, index_name)
    state.index_names.add(index_name)
    inode.index_name = index_name
    state.share(inode, UPPER_INDEX, made)
    remaining = max(inode.names_left(st), 1)
    with afterwards():  # names that cannot be linked are led to the copy by the index all the same
        for parent, name in inode.names():
            _link_name(state, index_fd, index_name, parent, name)
    with afterwards():
        inode.lost_links = stat_of(fd).st_nlink - remaining
        _count_from_upper(state, fd, inode.lost_links)
        _forget_deleted_names(state, inode)


def _forget_number(state: State, draft: Draft) -> None:
    """What stays linked below keeps the number that the file had."""
    try:
        access.removexattr(draft.fd, state.prefix + marks.NUMBER)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            raise


def _publish_under_known_names(state: State, inode: Inode, draft: Draft) -> None:
    (parent, name), *others = inode.names()
    copyup_directory.ensure_upper_directory(state, parent)
    publishing.publish_name(state, draft, parent, name)
    state.unshare(inode)  # names that are not known go on naming the lower file
    for other_parent, other in others:
        try:
            _link_name(state, state.upper_fd(parent), name, other_parent, other)
        except OSError as error:
            log.warning("%r is no longer the file it was linked with: %s", other, error)
            inode.remove_name(other_parent, other)
            del other_parent.children[other]
    if others:
        state.share(inode, UPPER_INDEX, stat_of(draft.fd))


def has_one_name(state: State, inode: Inode) -> bool:
    """True for a file in the upper whose only link is the name that we know."""
    return inode.index_name is None and inode.parent is not None and attributes.real_stat(state, inode).st_nlink == 1


def _can_index(state: State, inode: Inode) -> bool:
    takes_xattrs = inode.kind == stat.S_IFREG or state.prefix == marks.TRUSTED
    return state.options.index and state.xattrs_work and takes_xattrs


def _link_name(state: State, dir_fd: int, source: bytes, parent: Directory, name: bytes) -> None:
    """Link a copy into the upper under a name that it has in the merged tree already."""
    copyup_directory.ensure_upper_directory(state, parent)
    to_fd = state.upper_fd(parent)
    with unseen(to_fd):
        impure.mark(state, parent)
        access.link(dir_fd, source, to_fd, name)
    lookup.note(parent, name, Kind.FILE)
    note_changed(state, parent)


def link_lower_name(state: State, inode: Inode, parent: Directory, name: bytes) -> None:
    """Have a file of the index in the upper under one more of its lower names."""
    if inode.index_name is None or inode.lower is None:  # its copy could not get this name
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
    links_below = _stat(*state.lower_place(inode.lower)).st_nlink
    with state.upper_node(inode) as fd:
        _count_from_lower(state, fd, inode.names_left(stat_of(fd)) - links_below)
        dir_fd, source = state.place(inode)
        _link_name(state, dir_fd, source, parent, name)
        inode.lost_links += 1
        inode.attributes = None
        _count_from_upper(state, fd, inode.lost_links)


def link_known_names(state: State, inode: Inode) -> None:
    """Have a file of the index, which is about to change, in the upper under all lower names that were looked up.

    The kernel links each name by which the file is opened for writing; whoever reads the upper alone finds it there.
    """
    state.names_to_link.discard(inode.number)
    for parent, name in list(inode.names()):
        with afterwards():  # a name that cannot be linked is led to the copy by the index all the same
            if name not in lookup.above(state, parent):
                link_lower_name(state, inode, parent, name)


def before_linking(state: State, inode: Inode) -> None:
    """A name in the upper is about to be made or deleted: have the count on disk follow that by itself."""
    if inode.index_name is not None:
        with state.upper_node(inode) as fd:
            _count_from_upper(state, fd, inode.lost_links)


def _count_from_lower(state: State, fd: int, difference: int) -> None:
    """Say how many names the file has in a way that linking it to names it has already does not change."""
    access.setxattr(fd, state.prefix + marks.NLINK, b"L%+d" % difference)


def _count_from_upper(state: State, fd: int, lost_links: int) -> None:
    """Say how many names the file has in a way that link and unlink keep right by themselves."""
    access.setxattr(fd, state.prefix + marks.NLINK, b"U%+d" % -lost_links)


def _index_fd(state: State) -> int:
    if state.index_fd is None:
        state.index_fd = _subdirectory(state, _INDEX)
    return state.index_fd


def _subdirectory(state: State, name: bytes) -> int:
    parent_fd = state.workdir_fd
    assert parent_fd is not None
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)


def remove(state: State, inode: Inode) -> None:
    """Remove the index entry of a file that lost its last name."""
    if inode.index_name is None or state.index_fd is None:
        return
    inode.lower = inode.lower if inode.metacopy else None
    with afterwards():
        os.unlink(inode.index_name, dir_fd=state.index_fd)
    state.index_names.discard(inode.index_name)
    inode.index_name = None
    inode.lost_links = 0


# -- names of lower files that were deleted without a copy-up


def about_to_delete_name(state: State, inode: Inode, directory: Directory, name: bytes) -> None:
    """Remember beyond this mount that a lower hard-linked file is losing a name; `deleted_name` confirms it.

    What is written first also names the place, so that after a crash the whiteout there tells which count is right.
    """
    _write_count(state, inode.number, b"%d %s" % (inode.lost_links + 1, _path_of(directory, name)))


def deleted_name(state: State, inode: Inode) -> None:
    inode.lost_links += 1
    inode.attributes = None
    state.lost_links[inode.number] = inode.lost_links
    with afterwards():  # the name is gone, whatever fails here
        if inode.names_left(attributes.real_stat(state, inode)):
            _write_count(state, inode.number, b"%d" % inode.lost_links)
        else:
            _forget_deleted_names(state, inode)


def _write_count(state: State, number: int, text: bytes) -> None:
    if state.links_fd is None:
        state.links_fd = _subdirectory(state, _LINKS)
    draft = state.draft_name()
    os.symlink(text[:_LONGEST_TARGET], draft, dir_fd=state.work_fd)
    try:
        os.rename(draft, b"%016x" % number, src_dir_fd=state.work_fd, dst_dir_fd=state.links_fd)
    except OSError:
        with afterwards():
            os.unlink(draft, dir_fd=state.work_fd)
        raise


def _path_of(directory: Directory, name: bytes) -> bytes:
    parts = [name]
    here: Directory | None = directory
    while here is not None and here.parent is not None:
        parts.append(here.name)
        here = here.parent
    return b"/".join(reversed(parts))


def _forget_deleted_names(state: State, inode: Inode) -> None:
    if state.lost_links.pop(inode.number, None) is not None and state.links_fd is not None:
        with afterwards(), suppress(FileNotFoundError):
            os.unlink(b"%016x" % inode.number, dir_fd=state.links_fd)


def load(state: State) -> None:
    """Read what earlier mounts left in the workdir."""
    assert state.workdir_fd is not None
    state.index_fd, state.index_names = open_index(state.workdir_fd)
    for name in _present(state, _LINKS):
        if state.links_fd is None:
            state.links_fd = _subdirectory(state, _LINKS)
        with suppress(OSError, ValueError):  # anything but what we wrote counts for nothing
            count, _, place = os.readlink(name, dir_fd=state.links_fd).partition(b" ")
            unfinished = bool(place) and not _is_hidden(state, place)
            number, lost = read_number(name), read_count(count) - unfinished
            state.lost_links[number] = lost
            if place:  # a crash came before or after the name was hidden; later it may be hidden for another reason
                _write_count(state, number, b"%d" % lost)


def read_number(name: bytes) -> int:
    """The inode number that a record of deleted names is named by; ValueError where no record of ours has that name."""
    raw = bytes.fromhex(name.decode("ascii"))
    if len(raw) != _NUMBER_SIZE or raw.hex().encode() != name:
        raise ValueError("not a number")
    return int.from_bytes(raw, "big")


def read_count(text: bytes) -> int:
    """How many names a record of deleted names counts; ValueError where that is no count."""
    if len(text) > _LONGEST_COUNT:
        raise ValueError("not a count")
    return int(text)


def open_index(workdir: int | bytes) -> tuple[int | None, set[bytes]]:
    """A descriptor of the index in a directory, None where there is none, and the names of the copies in it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        if isinstance(workdir, bytes):
            fd = os.open(os.path.join(workdir, _INDEX), flags)
        else:
            fd = os.open(_INDEX, flags, dir_fd=workdir)
    except FileNotFoundError:
        return None, set()
    try:
        return fd, {name for name in map(os.fsencode, os.listdir(fd)) if _is_copy(fd, name)}
    except OSError:
        os.close(fd)
        raise


def _is_copy(index_fd: int, name: bytes) -> bool:
    """The kernel keeps directories and deletions in the index too (nfs_export)."""
    st = os.stat(name, dir_fd=index_fd, follow_symlinks=False)
    return not stat.S_ISDIR(st.st_mode) and not marks.is_whiteout_device(st)


def _is_hidden(state: State, path: bytes) -> bool:
    """True where the upper has a whiteout at `path`."""
    assert state.upper is not None
    directory, _, name = path.rpartition(b"/")
    try:
        fd = access.open_beneath(state.upper.root_fd, directory, syscalls.OPEN_DIRECTORY)
    except OSError:
        return False
    try:
        spelling = state.upper.spelling
        kind = scan(fd, marks.read_marks_of_descriptor(fd, spelling).opacity, spelling).kinds.get(name)
        return kind is Kind.WHITEOUT
    finally:
        os.close(fd)


def _stat(dir_fd: int, name: bytes) -> Stat:
    return access.stat_at(dir_fd, name)


def _present(state: State, name: bytes) -> list[bytes]:
    assert state.workdir_fd is not None
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state.workdir_fd)
    except FileNotFoundError:
        return []
    try:
        return [os.fsencode(entry) for entry in os.listdir(fd)]
    finally:
        os.close(fd)
