"""`overlayfs cp` into and out of containers: as docker's, through a tar, whatever links the container has.

The process that reads or writes the container's tree is in a chroot of it, so its symlinks lead nowhere else, even
while a program of the container changes them. It loads nothing there: neither modules nor NSS libraries
(CVE-2019-14271). The host's side is tar(1), which lets no archive write through links that it made.
"""

from __future__ import annotations

import os
import posixpath
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from overlayfs.cli.container.leftovers import clean_up
from overlayfs.cli.container.running import Running
from overlayfs.cli.container.under_runc import begin_again_inside, bundle_of, no_program
from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.output import safe
from overlayfs.container.containers import Container, Containers
from overlayfs.container.live.signals import once_free, program_of
from overlayfs.container.runtime import Kind
from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.store.store import Store


@dataclass(frozen=True, slots=True)
class Copy:
    """What to copy: `inner` in the container, `outer` on the host (`-` for a tar), and in which direction.

    `outer_is_directory` is None where nothing is there.
    """

    container: Container
    store: Path
    inner: str
    outer: str
    is_inward: bool
    outer_is_directory: bool | None
    keeps_owners: bool = False
    follows: bool = False


def copy_of(source: str, destination: str, store_directory: Path | None, *, archive: bool, follow: bool) -> Copy | None:
    """The copy that the words ask for; None if neither names a container."""
    with Store.open(store_directory) as store:
        containers = Containers(store)
        found = [_split(containers, text) for text in (source, destination)]
        if found[0] is not None and found[1] is not None:
            raise InvalidError("cp copies between a container and this machine, not between two containers")
        for named, outer, is_inward in ((found[0], destination, False), (found[1], source, True)):
            if named is not None:
                if not outer:
                    raise InvalidError("cp needs a path of this machine: as in . or ./name")
                kind = _kind_of(outer) if outer != "-" else False
                return Copy(named[0], store.path, named[1], outer, is_inward, kind, archive, follow)
    return None


def _split(containers: Containers, text: str) -> tuple[Container, str] | None:
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not path:
        return None
    container = containers.find_if_there(name)
    return None if container is None else (container, posixpath.join("/", path))


def _kind_of(path: str) -> bool | None:
    """Whether a directory is there, links followed; None if nothing is."""
    return os.path.isdir(path) if os.path.lexists(path.removesuffix("/.").rstrip("/") or "/") else None


def copy(wanted: Copy) -> None:
    """Copy between a container and the host. Raises CommandError, ImageError."""
    _check_outer(wanted)
    container = wanted.container
    if not container.is_active:
        host = [os.path.abspath(wanted.outer)] if wanted.outer != "-" else []
        with Store.open(wanted.store) as store:
            containers = Containers(store)
        visited = once_free(containers, container, lambda: _visit(wanted))
        Running(visited, wanted.store, Kind.BWRAP, sys.executable).show(host, lambda root: _copy(wanted, root))
        return
    pid = program_of(container, bundle_of(wanted.store, container))
    if pid is None:
        raise no_program(container, "is in use, but not under runc: copy when that has ended")
    begin_again_inside(pid, wanted.store)
    _copy(wanted, f"/proc/{pid}/root")


def _visit(wanted: Copy) -> Container:
    with Store.open(wanted.store) as store:
        clean_up(store, wanted.container)
        return Containers(store).visit(wanted.container)


def _check_outer(wanted: Copy) -> None:
    if wanted.outer == "-" and not wanted.is_inward and sys.stdout.isatty():
        raise CommandError("a tar is not written to a terminal: redirect it to a file or a program")
    if wanted.is_inward and wanted.outer_is_directory is None:
        raise CommandError(f"{wanted.outer} does not exist")


def _copy(wanted: Copy, root: str) -> None:
    read_fd, write_fd = os.pipe()
    with tempfile.TemporaryFile() as said, ExitStack() as stack:
        inner: Callable[[Copy, IO[bytes]], None]
        if wanted.is_inward:
            outer, stream, inner = _start_reading(wanted, write_fd, said), read_fd, _write_inside
        else:
            outer, stream = _start_writing(wanted, read_fd, said), write_fd
            inner = partial(_read_inside, into_fd=_open_destination(wanted, stack))
        os.close(write_fd if wanted.is_inward else read_fd)
        with os.fdopen(stream, "rb" if wanted.is_inward else "wb", buffering=1 << 16) as file:
            reason = _in_chroot(root, lambda: inner(wanted, file))
        status = outer.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines() or ["tar does not say why"]
    if reason:
        raise CommandError(f"{wanted.container.name}:{wanted.inner}: {safe(reason)}")
    if status:
        raise CommandError(f"{wanted.outer}: {safe(lines[0])}")


def _in_chroot(root: str, work: Callable[[], None]) -> str:
    """Do `work` in a child with this root directory; why it failed, empty if it did not."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.chroot(root)
            os.chdir("/")
            work()
        except (OSError, tarfile.TarError, InvalidError) as error:
            reason = (error.strerror if isinstance(error, OSError) else str(error)) or "an error without a reason"
            os.write(write_fd, reason.encode("utf-8", "backslashreplace"))
            os._exit(1)
        except BaseException:  # noqa: BLE001 - the parent's cleaning up is not the child's
            os._exit(1)
        os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as answer:
        reason = answer.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return reason or ("the copying process died" if status else "")


def _check_fit(source: str, destination: str, *, is_directory: bool, into_directory: bool | None) -> None:
    """Refuse as docker what cannot replace what is there. Raises InvalidError."""
    if not is_directory and _names_directory(source):
        raise InvalidError(f"{source} is no directory")
    if is_directory and into_directory is False:
        raise InvalidError(f"{destination} is no directory, and a directory cannot replace it")
    if not is_directory and not into_directory and _names_directory(destination):
        raise InvalidError(f"{destination} is no directory")


def _names_directory(path: str) -> bool:
    """Whether only a directory, or a link to one, can have this path."""
    return path.endswith(("/", "/."))


# -- out of the container


def _start_writing(wanted: Copy, stream: int, said: IO[bytes]) -> subprocess.Popen[bytes]:
    """tar(1) that unpacks the stream on the host, or cat(1) if the stream itself is wanted."""
    if wanted.outer == "-":
        return subprocess.Popen(["cat"], stdin=stream, stderr=said)
    into = _destination(wanted)
    if not os.path.isdir(into):
        raise CommandError(f"{into} is no directory")
    owners = "--same-owner" if wanted.keeps_owners else "--no-same-owner"
    words = ["tar", "--extract", "--numeric-owner", "--preserve-permissions", owners, "--directory", into]
    return subprocess.Popen([*words, "--file", "-"], stdin=stream, stderr=said)


def _destination(wanted: Copy) -> str:
    """The directory of the host that is written into."""
    return _place_of(wanted.outer, is_directory=bool(wanted.outer_is_directory))[0]


def _open_destination(wanted: Copy, stack: ExitStack) -> int | None:
    """What the process in the chroot looks up the files of the host by that would be replaced; None for a tar."""
    if wanted.outer == "-":
        return None
    fd = os.open(_destination(wanted), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _place_of(path: str, *, is_directory: bool) -> tuple[str, str]:
    """The directory to write into, and the new name in it; empty for the source's own name."""
    if is_directory:
        return path, ""
    above, name = os.path.split(path.rstrip("/"))
    return above or ".", name


def _read_inside(wanted: Copy, stream: IO[bytes], into_fd: int | None) -> None:
    tarfile.pwd = tarfile.grp = None  # type: ignore[attr-defined]  # no names of users: they would load the tree's NSS
    path = wanted.inner
    contents = path.endswith("/.") or path == "/"
    plain = posixpath.normpath(path)
    if wanted.follows or _names_directory(path):
        plain = os.path.realpath(plain)
    is_directory = stat.S_ISDIR(os.lstat(plain).st_mode)
    if wanted.outer != "-":
        _check_fit(path, wanted.outer, is_directory=is_directory, into_directory=wanted.outer_is_directory)
    if wanted.outer_is_directory or wanted.outer == "-":
        new = "" if contents else posixpath.basename(posixpath.normpath(path))
    else:
        _, new = _place_of(wanted.outer, is_directory=False)

    def sent(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if into_fd is not None:
            _check_replaced(member, into_fd)
        return member if wanted.keeps_owners else _without_privileges(member)

    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        tar.add(plain, arcname=new or ".", filter=sent)
    stream.flush()  # the process ends without doing so


def _check_replaced(member: tarfile.TarInfo, into_fd: int) -> None:
    """tar(1) would remove a file, or a link, to make a directory in its place. Raises InvalidError."""
    with suppress(FileNotFoundError):
        is_directory = stat.S_ISDIR(os.stat(member.name, dir_fd=into_fd, follow_symlinks=False).st_mode)
        if member.isdir() and not is_directory:
            raise InvalidError(f"{member.name} is no directory on this machine, and a directory cannot replace it")


# -- into the container


def _start_reading(wanted: Copy, stream: int, said: IO[bytes]) -> subprocess.Popen[bytes]:
    if wanted.outer == "-":
        return subprocess.Popen(["cat"], stdout=stream, stderr=said)
    plain = os.path.realpath(wanted.outer) if _is_followed(wanted) else os.path.abspath(wanted.outer)
    above, name = (plain, ".") if _is_contents(wanted.outer) else os.path.split(plain)
    words = ["tar", "--create", "--format=posix", "--numeric-owner", "--directory", above]
    return subprocess.Popen([*words, "--file", "-", "--", name], stdout=stream, stderr=said)


def _is_contents(outer: str) -> bool:
    return outer.endswith("/.") or outer == "." or os.path.abspath(outer) == "/"


def _is_followed(wanted: Copy) -> bool:
    return wanted.follows or _names_directory(wanted.outer)


def _write_inside(wanted: Copy, stream: IO[bytes]) -> None:
    kind = _kind_of(wanted.inner)
    if wanted.outer != "-":
        is_directory = bool(wanted.outer_is_directory) and (_is_followed(wanted) or not os.path.islink(wanted.outer))
        _check_fit(wanted.outer, wanted.inner, is_directory=is_directory, into_directory=kind)
    elif not kind:
        raise InvalidError("a tar needs a directory that is there")
    into, new = _place_of(wanted.inner, is_directory=bool(kind))
    if not new and wanted.outer != "-" and not _is_contents(wanted.outer):
        new = os.path.basename(os.path.abspath(wanted.outer))  # of the link, where it was followed
    if not os.path.isdir(into):
        raise InvalidError(f"{into} in the container is no directory")
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        tar.extraction_filter = _unchanged
        tar.extractall(into, members=_renamed(tar, new, into, wanted), numeric_owner=True)


def _renamed(tar: tarfile.TarFile, new: str, into: str, wanted: Copy) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        if new:
            member.name = _under(new, member.name)
            if member.islnk():
                member.linkname = _under(new, member.linkname)
        if not wanted.keeps_owners:
            member.uid = member.gid = 0
            _without_privileges(member)
        target = posixpath.join(into, member.name)
        if not member.isdir():
            with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                os.unlink(target)
        yield member


def _without_privileges(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member for another owner: what was setuid for the old one must not be so for the new one."""
    if not member.isdir():
        member.mode &= ~(stat.S_ISUID | stat.S_ISGID)
    return member


def _unchanged(member: tarfile.TarInfo, _into: str) -> tarfile.TarInfo:
    """No filter, which Python has by default from 3.14 on: the chroot is the protection, and -a keeps all."""
    return member


def _under(new: str, name: str) -> str:
    """The name with its first component replaced."""
    _, slash, rest = name.partition("/")
    return f"{new}{slash}{rest}"
