"""How does a blob get from a registry into the store? In parts, resumed where an attempt broke off.

The bytes received so far are kept in the store's `tmp` under the blob's digest, so another process can resume the
download. One process at a time writes the file (flock). It becomes a blob of the store once all bytes are there and
match the digest.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import trio

from ..oci.digest import digest_from, hex_of
from ..oci.documents import Descriptor
from ..oci.errors import DigestError, ImageError, RegistryError
from ..oci.progress import Task
from ..store.records import UNREADABLE
from ..store.store import Store
from .messages import receive
from .repository import Repository

_BUFFER: Final = 1 << 20
_OTHERS_POLL_S: Final = 0.2
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


async def download(store: Store, repository: Repository, descriptor: Descriptor, task: Task) -> None:
    """Download one blob into the store. Raises DigestError, RegistryError, NotFoundError; a partial download is kept.

    If a download that an earlier process began has a wrong digest, it is repeated once from its start.
    """
    async with partial_of(store, descriptor) as partial:
        if partial is None:
            task.advance(descriptor.size)
            return
        task.advance(partial.size)
        was_begun = partial.size > 0
        try:
            await _complete(repository, partial, task)
            if was_begun and digest_from(partial.hashed) != descriptor.digest:
                _restart(partial, task)
                await _complete(repository, partial, task)
            partial.check(repository.where)
        except ImageError as error:
            task.advance(-partial.size)  # another source may start again
            if isinstance(error, DigestError):
                partial.path.unlink()
            raise
        await trio.to_thread.run_sync(store.adopt_blob, partial.path, descriptor.digest)


class Partial:
    """The part of a blob that is there: its first `size` bytes in a file, and their hash. For one task at a time."""

    def __init__(self, path: Path, fd: int, descriptor: Descriptor) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size = 0
        self.hashed = hashlib.sha256()
        self._fd = fd
        self._buffer = bytearray()

    def recall(self) -> None:
        """Hash the bytes that an earlier attempt left. They are discarded if there are too many for the blob, or some
        that the disk cannot read."""
        if os.fstat(self._fd).st_size > self.descriptor.size:
            os.ftruncate(self._fd, 0)
        try:
            while part := os.pread(self._fd, _BUFFER, self.size):
                self.hashed.update(part)
                self.size += len(part)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            self.clear()

    async def take(self, part: bytes) -> None:
        """Take the next bytes. DigestError as soon as there are too many."""
        if self.size + len(self._buffer) + len(part) > self.descriptor.size:
            raise DigestError(f"the blob {self.descriptor.digest} has more than its {self.descriptor.size} bytes")
        self._buffer.extend(part)
        if len(self._buffer) >= _BUFFER:
            await trio.to_thread.run_sync(self.flush)

    def flush(self) -> None:
        """Write the bytes taken so far."""
        data, self._buffer = self._buffer, bytearray()
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(self._fd, view, self.size)
            except OSError as error:
                error.filename = str(self.path)
                raise
            self.hashed.update(view[:written])
            self.size += written
            view = view[written:]

    def check(self, where: str) -> None:
        """Raises DigestError if the bytes do not match the digest of the blob."""
        if (digest := digest_from(self.hashed)) != self.descriptor.digest:
            raise DigestError(f"{where}: the blob {self.descriptor.digest} has the digest {digest}")

    def clear(self) -> None:
        os.ftruncate(self._fd, 0)
        self._buffer.clear()
        self.hashed = hashlib.sha256()
        self.size = 0


@asynccontextmanager
async def partial_of(store: Store, descriptor: Descriptor) -> AsyncIterator[Partial | None]:
    """The partial blob, locked; None if the blob is in the store already, as another process may have finished it."""
    path = store.path / "tmp" / f"partial-{hex_of(descriptor.digest)}"
    fd = await _alone(store, descriptor, path)
    if fd is None:
        yield None
        return
    try:
        partial = Partial(path, fd, descriptor)
        await trio.to_thread.run_sync(partial.recall)
        yield partial
    finally:
        os.close(fd)


async def _alone(store: Store, descriptor: Descriptor, path: Path) -> int | None:
    """A descriptor of the file, locked; waits for other processes. None if there is nothing left to do."""
    while not store.has_blob(descriptor.digest):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if _lock(fd) and _is_at(fd, path):
            return fd
        os.close(fd)
        await trio.sleep(_OTHERS_POLL_S)
    return None


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether the path still names the open file; it does not after another process has published it."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


async def _complete(repository: Repository, partial: Partial, task: Task) -> None:
    """Append until the blob is complete. Gives up after a number of attempts without progress."""
    failures, furthest, retrying = 0, partial.size, repository.connection.retrying
    while partial.size < partial.descriptor.size:
        try:
            await _append(repository, partial, task)
            why = RegistryError(f"{repository.where}: the blob {partial.descriptor.digest} ends too early")
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            why = RegistryError(f"{repository.where}: the blob {partial.descriptor.digest} breaks off: {reason}")
        if partial.size == partial.descriptor.size:
            return
        failures = 1 if partial.size > furthest else failures + 1
        furthest = max(furthest, partial.size)
        if failures >= retrying.attempts:
            raise why
        await retrying.sleep(retrying.pause_s(failures))


async def _append(repository: Repository, partial: Partial, task: Task) -> None:
    """Append the bytes of one response."""
    async with repository.blob(partial.descriptor, partial.size) as response:
        await _check_place(repository, response, partial, task)

        async def take(part: bytes) -> None:
            await partial.take(part)
            task.advance(len(part))

        try:
            await receive(response, take)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(partial.flush)


async def _check_place(repository: Repository, response: httpx.Response, partial: Partial, task: Task) -> None:
    """Check where in the blob the response begins; if at its start, discard the partial blob."""
    status, size = response.status_code, partial.descriptor.size
    if status == 206 and partial.size:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if not found or int(found[1]) != partial.size or found[3] not in ("*", str(size)):
            _restart(partial, task)
            raise httpx.RemoteProtocolError("another range than asked for")
        return
    if status == 416 and partial.size:
        _restart(partial, task)
        raise httpx.RemoteProtocolError("the range is refused")
    if status != 200:
        raise await _refused(repository, response, partial)
    if partial.size:
        _restart(partial, task)
    length = response.headers.get("content-length", "")
    if length and length != str(size):
        digest = partial.descriptor.digest
        raise DigestError(f"{repository.where}: the blob {digest} has {length[:20]} bytes instead of {size}")


def _restart(partial: Partial, task: Task) -> None:
    task.advance(-partial.size)
    partial.clear()


async def _refused(repository: Repository, response: httpx.Response, partial: Partial) -> Exception:
    answer = await repository.connection.read(response)
    return repository.refused(answer, f"{repository.where}: the blob {partial.descriptor.digest}")
