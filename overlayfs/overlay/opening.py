"""How is an overlay opened: open and check the layers, lock, clean up, probe the features of the upper?

Every refusal is a MountError of one line that says what is wrong; nothing is changed on disk before all checks passed.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

from overlayfs._log import Log

from ..tree import marks, syscalls
from ..tree.mount_table import mount_entries, unescape
from ..tree.syscalls import descriptor_path
from . import drafts, indexing, redirects
from .belonging import verify_origin
from .claim import claim
from .drafts import is_draft_name
from .layer import UPPER_INDEX, Access, Layer, hold_apart, mount_id, open_layer
from .options import FsyncPolicy, MountError, OverlayOptions, WhiteoutFormat
from .state import State

log = Log(__name__)

_WORK = b"work"
_INCOMPAT = b"incompat"
_SNAPSHOTS = b"overlayfs-snapshots"  # of the workdir, and below incompat: see history
_VOLATILE_MARK = _INCOMPAT + b"/volatile"  # as the kernel's overlayfs
_OVERRIDE_ROOT = b"0:0:755:dir"


def open_state(options: OverlayOptions) -> State:
    """All layers open and checked, upper and workdir locked and clean."""
    try:
        return _open_state(options)
    except OSError as error:
        where = f"{_text(error.filename)}: " if isinstance(error.filename, bytes) and error.filename else ""
        raise MountError(f"cannot open the layers: {where}{error.strerror}") from None


def _open_state(options: OverlayOptions) -> State:
    limit = _raise_descriptor_limit()
    with ExitStack() as undo:
        if (options.upper is None) != (options.work is None):
            raise MountError("upperdir and workdir go together: give both or neither")
        if options.upper is None or options.work is None:
            layers = _open_lowers(options, undo)
            state = State(options, hold_apart(layers, Access.READS), None, limit)
            _choose_prefix_to_read(state)
        elif options.read_only:
            state = _open_to_look(options, limit, undo)
        else:
            layers = _open_lowers(options, undo)
            state = _open_writable(options, layers, limit, undo)
        redirects.show_roots(state)
        undo.pop_all()
    return state


def _raise_descriptor_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def _text(path: bytes) -> str:
    return os.fsdecode(path)


def _open(option: str, path: bytes, undo: ExitStack, index: int, data_only: bool = False) -> Layer:
    try:
        layer = open_layer(index, path, data_only)
    except FileNotFoundError:
        raise MountError(f"{option}: {_text(path)} does not exist") from None
    except NotADirectoryError:
        raise MountError(f"{option}: {_text(path)} is not a directory") from None
    except OSError as error:
        raise MountError(f"{option}: cannot open {_text(path)}: {error.strerror}") from None
    undo.callback(os.close, layer.root_fd)
    return layer


def _open_lowers(options: OverlayOptions, undo: ExitStack, first: int = 0) -> list[Layer]:
    """The lower layers, numbered from `first` on, then the data-only ones."""
    if not options.lowers:
        raise MountError("lowerdir: at least one directory is needed")
    layers = [_open("lowerdir", path, undo, index) for index, path in enumerate(options.lowers, first)]
    first += len(layers)
    layers += [_open("lowerdir", path, undo, index, True) for index, path in enumerate(options.data_lowers, first)]
    _refuse_overlapping(layers)
    return layers


def _refuse_overlapping(lowers: list[Layer]) -> None:
    """No lower layer is, or lies in, another one, as for the kernel's overlayfs (ELOOP)."""
    roots: dict[tuple[int, int], Layer] = {}
    for layer in lowers:
        st = os.fstat(layer.root_fd)
        other = roots.setdefault((st.st_dev, st.st_ino), layer)
        if other is not layer:
            raise MountError(f"lowerdir: {_text(other.path)} and {_text(layer.path)} are the same directory")
    for layer in lowers:
        for above in _directories_above(os.path.realpath(layer.path)):
            st = os.stat(above)
            outer = roots.get((st.st_dev, st.st_ino))
            if outer is not None:
                raise MountError(f"lowerdir: {_text(layer.path)} lies in {_text(outer.path)}, another lower layer")


def _directories_above(path: bytes) -> Iterator[bytes]:
    while (above := os.path.dirname(path)) != path:
        yield above
        path = above


def _open_to_look(options: OverlayOptions, limit: int, undo: ExitStack) -> State:
    """A read-only mount of an upper: another mount may write to it all the while, as container engines take a running
    container's changes. So it takes no lock, and the upper is the topmost of the layers that change under the mount.
    """
    assert options.upper is not None and options.work is not None
    with ExitStack() as checked:
        work = _open("workdir", options.work, checked, UPPER_INDEX)
        upper = _open("upperdir", options.upper, checked, UPPER_INDEX)
        paths = _uppers(options.upper, options.work, work)
        uppers = [_open("upperdir", path, undo, index).as_upper() for index, path in enumerate(paths)]
        layers = _open_lowers(options, undo, first=len(uppers))
        _check_same_filesystem(upper, work)
        _check_overlap(upper, work, layers)
    layers = hold_apart([*uppers, *layers], Access.READS)
    state = State(options._replace(timeout_s=0.0), layers, None, limit)
    if len(uppers) > 1:
        from . import resuming

        resuming.look_at_indexes(state, uppers[1:], undo)
    _choose_prefix_to_read(state)
    return state


def _uppers(upper: bytes, workdir: bytes, work: Layer) -> list[bytes]:
    """All layers of the writable side, top first: the upper, and those that snapshots made."""
    if not _has(work, _SNAPSHOTS):
        return [upper]
    from . import history

    return [path for _, path in reversed(history.uppers(upper, workdir))]


def _open_writable(options: OverlayOptions, layers: list[Layer], limit: int, undo: ExitStack) -> State:
    assert options.upper is not None and options.work is not None
    upper = _open("upperdir", options.upper, undo, UPPER_INDEX)
    work = _open("workdir", options.work, undo, UPPER_INDEX)
    _check_same_filesystem(upper, work)
    _check_overlap(upper, work, layers)
    layers = hold_apart(layers, Access.READS)
    upper, work = hold_apart((upper, work), Access.WRITES_NOATIME if options.noatime else Access.WRITES)
    for option, layer in (("upperdir", upper), ("workdir", work)):
        _check_writable(option, layer)
        refuse_kernel_mounts(option, layer)
    held = claim(upper, work)
    undo.callback(held.release)
    state = State(options, layers, upper, limit)
    state.claim, state.descriptors.last_resort = held, held.stop_listening
    state.workdir_fd = work.root_fd
    _refuse_volatile_leftover(options, work)
    state.work_fd = _clean_workdir(work, undo, volatile=options.fsync is FsyncPolicy.VOLATILE)
    _probe(state)
    verify_origin(state)
    if _has(work, _SNAPSHOTS):
        _stack_up(state, work, undo)
    if options.fsync is FsyncPolicy.VOLATILE:
        _leave_volatile_mark(work)
    indexing.load(state)
    return state


def _has(work: Layer, name: bytes) -> bool:
    return os.access(name, os.F_OK, dir_fd=work.root_fd, follow_symlinks=False)


def _stack_up(state: State, work: Layer, undo: ExitStack) -> None:
    """Go on where a mount with snapshots ended: in the last of its layers, on the others."""
    from . import history, resuming  # few mounts have any

    stacked = history.load(work.root_fd)
    if stacked is None:  # the first snapshot was not finished
        drafts.remove(work.root_fd, _SNAPSHOTS)
        with suppress(OSError):  # there are no layers that it would keep the kernel's overlayfs from
            os.rmdir(_WORK + b"/" + _INCOMPAT + b"/" + _SNAPSHOTS, dir_fd=work.root_fd)
            os.rmdir(_WORK + b"/" + _INCOMPAT, dir_fd=work.root_fd)
        return
    assert state.work_fd is not None
    undo.callback(os.close, stacked.fd)
    assert state.upper is not None
    stacked.upperdir_fd = state.upper.root_fd
    stacked.guard(state.work_fd)  # before all that may refuse the mount
    resuming.resume(state, stacked, undo)
    stacked.remove_leftovers()


def _check_same_filesystem(upper: Layer, work: Layer) -> None:
    if upper.device != work.device or mount_id(upper.root_fd) != mount_id(work.root_fd):
        raise MountError(
            f"workdir: {_text(work.path)} is not on the same filesystem and mount as upperdir {_text(upper.path)}"
        )


def _check_overlap(upper: Layer, work: Layer, lowers: list[Layer]) -> None:
    if _contains(upper, work) or _contains(work, upper):
        raise MountError(
            f"workdir: {_text(work.path)} and upperdir {_text(upper.path)} overlap; use separate directories"
        )
    for option, layer in (("upperdir", upper), ("workdir", work)):
        for lower in lowers:
            if _contains(lower, layer) or _contains(layer, lower):
                raise MountError(f"{option}: {_text(layer.path)} and lowerdir {_text(lower.path)} overlap")


def _contains(outer: Layer, inner: Layer) -> bool:
    """True where `inner` is `outer` or lies below it, however either is spelled."""
    return _is_inside(os.path.realpath(inner.path), outer)


def _is_inside(path: bytes, outer: Layer) -> bool:
    wanted = os.fstat(outer.root_fd)
    return any(os.path.samestat(os.stat(here), wanted) for here in (path, *_directories_above(path)))


def _check_writable(option: str, layer: Layer) -> None:
    if os.fstatvfs(layer.root_fd).f_flag & os.ST_RDONLY:
        raise MountError(f"{option}: {_text(layer.path)} is on a read-only filesystem; mount with -o ro")
    # an upper of the user's own may have any mode, which is that of the mount's root: see tree.access
    is_own = option == "upperdir" and os.fstat(layer.root_fd).st_uid == os.geteuid()
    if not is_own and not os.access(descriptor_path(layer.root_fd), os.W_OK | os.X_OK):
        raise MountError(f"{option}: {_text(layer.path)} is not writable")


def refuse_kernel_mounts(option: str, layer: Layer) -> None:
    """Refuse what one of the kernel's overlay mounts uses: two writers would destroy each other's work."""
    wanted = os.path.realpath(layer.path)
    for entry in mount_entries():
        if entry.filesystem_type == b"overlay" and any(
            item.partition(b"=")[0] in (b"upperdir", b"workdir")
            and os.path.realpath(unescape(item.partition(b"=")[2])) == wanted
            for item in entry.filesystem_options.split(b",")
        ):
            where = _text(entry.mountpoint)
            raise MountError(f"{option}: {_text(layer.path)} is in use by the kernel's overlay mount at {where}")


def _refuse_volatile_leftover(options: OverlayOptions, work: Layer) -> None:
    if options.fsync is FsyncPolicy.VOLATILE:
        return
    with suppress(FileNotFoundError, NotADirectoryError):
        os.stat(_WORK + b"/" + _VOLATILE_MARK, dir_fd=work.root_fd, follow_symlinks=False)
        mark = _text(work.path + b"/" + _WORK + b"/" + _VOLATILE_MARK)
        raise MountError(
            f"upperdir was last mounted volatile and may have lost data in a crash; remove {mark}"
            " to use it all the same, or mount with -o volatile"
        )


def _leave_volatile_mark(work: Layer) -> None:
    for path in (_WORK + b"/" + _INCOMPAT, _WORK + b"/" + _VOLATILE_MARK):
        with suppress(FileExistsError):
            os.mkdir(path, 0o700, dir_fd=work.root_fd)


def _refuse_foreign_work(work: Layer) -> None:
    """What no overlay filesystem made must not be cleaned away: the directory may have been named by mistake."""
    foreign = [name for name in _names_in(work, _WORK) if name != b"incompat" and not is_draft_name(name)]
    ours = (b"volatile", _SNAPSHOTS)
    foreign += [b"incompat/" + name for name in _names_in(work, _WORK + b"/incompat") if name not in ours]
    if foreign:
        raise MountError(
            f"workdir: {_text(work.path)}/work holds {_text(min(foreign))}, which is not ours to remove;"
            " remove it, or choose another workdir"
        )


def _names_in(work: Layer, path: bytes) -> list[bytes]:
    try:
        fd = syscalls.open_beneath(work.root_fd, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return []
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)


def _clean_workdir(work: Layer, undo: ExitStack, *, volatile: bool) -> int:
    """An empty directory to build in; what a crash left in it is removed, but for the marks of a volatile mount and
    of snapshots: who is refused because of those must not have taken them away.

    It is ours whatever the workdir is, so that what is built in it has our group until it gets another.
    """
    try:
        with suppress(OSError):  # an empty one of the kernel's may not be readable
            os.rmdir(_WORK, dir_fd=work.root_fd)
        _refuse_foreign_work(work)
        if not volatile and not _has(work, _SNAPSHOTS):
            drafts.remove(work.root_fd, _WORK)
        with suppress(FileExistsError):
            os.mkdir(_WORK, 0o700, dir_fd=work.root_fd)
        fd = os.open(_WORK, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work.root_fd)
        undo.callback(os.close, fd)
        for name in map(os.fsencode, os.listdir(fd)):
            if name != _INCOMPAT:
                drafts.remove(fd, name)
        if os.fstat(fd).st_gid != os.getegid():
            os.fchown(fd, -1, os.getegid())
        os.fchmod(fd, 0o700)
    except OSError as error:
        raise MountError(f"workdir: cannot prepare {_text(work.path)}/work: {error.strerror}") from None
    with suppress(OSError):  # a default ACL of the workdir must not reach what is built in it
        os.removexattr(descriptor_path(fd), b"system.posix_acl_default")
    return fd


def _choose_prefix_to_read(state: State) -> None:
    """Of a read-only mount: as a mount with an upper where the topmost layer is would have it."""
    state.use_prefix(marks.USER if state.options.user_xattr else state.layers[0].spelling.prefix)


# -- what the upper can do


def _probe(state: State) -> None:
    """Choose xattr prefix and whiteout format; MountError where one that was asked for cannot be written."""
    assert state.work_fd is not None
    state.tmpfiles_work = _works(lambda: _try_tmpfile(state))
    prefixes = (marks.USER,) if state.options.user_xattr else (marks.TRUSTED, marks.USER)
    working = [prefix for prefix in prefixes if _works(lambda p=prefix: _try_xattr(state, p))]  # type: ignore[misc]
    state.xattrs_work = bool(working)
    state.use_prefix(working[0] if working else prefixes[0])
    wanted = state.options.whiteout
    able = {
        WhiteoutFormat.OVERLAY: state.xattrs_work and _works(lambda: _try_device(state)),
        WhiteoutFormat.OVERLAY_XATTR: state.xattrs_work,
        WhiteoutFormat.OCI: True,
    }
    if wanted is not None and not able[wanted]:
        raise MountError(
            f"whiteout={wanted.value}: the filesystem of upperdir cannot hold this format; try whiteout=oci"
        )
    state.whiteout = wanted or next(kind for kind, possible in able.items() if possible)
    log.info("whiteouts are written as %s, marks as %s", state.whiteout.value, state.prefix.decode())
    _set_up_override(state)


def _works(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except OSError as error:
        if error.errno in (errno.EIO, errno.EROFS):
            raise MountError(f"workdir: cannot write: {error.strerror}") from None
        # a full filesystem cannot tell; it must still be mounted to be made free, so expect what is usual
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return True


def _try_tmpfile(state: State) -> None:
    assert state.work_fd is not None
    name = state.draft_name()
    fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=state.work_fd)
    try:
        syscalls.link_descriptor(fd, state.work_fd, name)
        os.unlink(name, dir_fd=state.work_fd)
    finally:
        os.close(fd)


def _try_xattr(state: State, prefix: bytes) -> None:
    assert state.work_fd is not None
    path = descriptor_path(state.work_fd)
    os.setxattr(path, prefix + marks.OPAQUE, b"n")
    os.removexattr(path, prefix + marks.OPAQUE)


def _try_device(state: State) -> None:
    """Make a whiteout, and have rename(2) leave one."""
    assert state.work_fd is not None
    first, second = state.draft_name(), state.draft_name()
    os.mknod(first, stat.S_IFCHR, 0, dir_fd=state.work_fd)
    try:
        syscalls.renameat2(state.work_fd, first, state.work_fd, second, syscalls.RENAME_WHITEOUT)
        os.unlink(second, dir_fd=state.work_fd)
    finally:
        os.unlink(first, dir_fd=state.work_fd)


def _set_up_override(state: State) -> None:
    mode = state.options.xattr_permissions
    if not mode or state.upper is None or state.upper.override is not None:
        return
    name = marks.OVERRIDE_NAMES[2] if mode == 1 else marks.OVERRIDE_NAMES[0]
    try:
        os.setxattr(descriptor_path(state.upper.root_fd), name, _OVERRIDE_ROOT)
    except OSError as error:
        raise MountError(f"xattr_permissions={mode}: upperdir takes no {name.decode()}: {error.strerror}") from None
    state.upper = state.upper._replace(override=name)


def refuse_mountpoint(state: State, mountpoint: bytes) -> None:
    """Refuse a mountpoint in which the daemon would meet its own mount: inside a layer that is not held apart."""
    above = os.path.dirname(os.path.realpath(mountpoint))
    for layer in (*state.layers, *((state.upper,) if state.upper else ())):
        if not layer.apart and _is_inside(above, layer):
            raise MountError(
                f"mountpoint {_text(mountpoint)} lies in the layer {_text(layer.path)}, which only root can mount;"
                " choose one outside"
            )
