"""How does a blob get from the store into a registry? It is mounted from a neighbouring repository, or sent in chunks.

OCI distribution specification v1.1, "Pushing blobs". If a chunk may have been lost, the registry is asked how much it
has, and the upload continues there. The answer to a chunk is compared with what was sent, as docker's registry 2.8
answers 202 even to a chunk out of order.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import trio

from ..oci.documents import Descriptor
from ..oci.errors import DigestError, NotFoundError, RegistryError
from ..oci.progress import Task
from ..store.store import Store
from .connection import Failed
from .messages import Answer, Ask
from .repository import Repository, mount_query

CHUNK: Final = 16 << 20
"""Bytes of one request; more than the 5 MiB that some registries require as a minimum."""
_PIECE: Final = 1 << 20
_SMALL: Final = 1 << 16
_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_NUMBER: Final = re.compile(r"[0-9]{1,19}")


class FileSlice(httpx.AsyncByteStream):
    """`size` bytes of a file from `offset` on, as the body of a request; `task` is told of each piece that is sent."""

    def __init__(self, path: Path, offset: int, size: int, task: Task) -> None:
        self.size = size
        self._path = path
        self._offset = offset
        self._task = task
        self.sent = 0

    def open(self) -> FileSlice:
        """Start again from the beginning."""
        self.forget()
        return self

    def forget(self) -> None:
        """Take back the reported progress, as nothing has arrived."""
        self._task.advance(-self.sent)
        self.sent = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        # no generator: one that is left half-way, as by a connection that breaks, would have to be closed
        if self.sent == self.size:
            raise StopAsyncIteration
        data = await trio.to_thread.run_sync(self._read)
        self.sent += len(data)
        self._task.advance(len(data))
        return data

    def _read(self) -> bytes:
        wanted = min(_PIECE, self.size - self.sent)
        with open(self._path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), wanted, self._offset + self.sent)
        if not data:
            raise DigestError(f"{self._path} has become shorter")
        return data


@dataclass(frozen=True, slots=True)
class _Session:
    """An upload session: URL of the next request, bytes the registry has, smallest allowed chunk (`least`)."""

    url: str
    offset: int = 0
    least: int = 0


async def upload(
    store: Store, repository: Repository, descriptor: Descriptor, sources: list[str], task: Task, chunk: int = CHUNK
) -> str:
    """Make sure that the repository has a blob: "exists", "mounted" or "sent".

    `sources` are repositories of the same registry that may have the blob.
    """
    if await repository.has_blob(descriptor):
        task.advance(descriptor.size)
        return "exists"
    session: _Session | None = None
    for source in sources:
        with suppress(RegistryError, NotFoundError):  # a mount would only have saved sending it
            session = await _mount(repository, descriptor, source)
            if session is None:
                task.advance(descriptor.size)
                return "mounted"
    path = _checked_path(store, descriptor)
    await _Upload(repository, descriptor, path, task, chunk).run(session)
    return "sent"


def _checked_path(store: Store, descriptor: Descriptor) -> Path:
    store.open_blob(descriptor).close()  # the registry has the blob in its size, and checks the digest itself
    return store.blob_path(descriptor.digest)


async def _mount(repository: Repository, descriptor: Descriptor, source: str) -> _Session | None:
    """Request a mount of a blob from another repository; if it is refused, the session to send the blob in.

    Raises RegistryError, NotFoundError if the request is refused, as reading that repository may be forbidden.
    """
    source = repository.connection.endpoint.prefix + source
    scopes = repository.scopes("pull,push") | {f"repository:{source}:pull"}
    path = f"{repository.path}/blobs/uploads/?{mount_query(descriptor.digest, source)}"
    answer = await repository.connection.request(Ask("POST", path, scopes), _SMALL)
    if answer.status == 201:
        return None
    return _session(repository, answer)


def _session(repository: Repository, answer: Answer) -> _Session:
    if answer.status != 202:
        raise repository.refused(answer, repository.where)
    least = answer.headers.get("oci-chunk-min-length", "")
    return _Session(_place(repository, answer), 0, int(least) if _NUMBER.fullmatch(least) else 0)


def _place(repository: Repository, answer: Answer) -> str:
    """The URL of the next request, which each answer names."""
    location = answer.headers.get("location", "")
    if not location:
        raise RegistryError(f"{repository.where}: the registry does not say where an upload goes on", answer.status)
    return str(repository.connection.follow(location, answer.url))


class _Upload:
    """Sends one blob; starts again a few times if the session is lost."""

    def __init__(self, repository: Repository, descriptor: Descriptor, path: Path, task: Task, chunk: int) -> None:
        self._repository = repository
        self._connection = repository.connection
        self._scopes = repository.scopes("pull,push")
        self._descriptor = descriptor
        self._path = path
        self._task = task
        self._chunk = chunk
        self._what = f"{repository.where}: the upload of {descriptor.digest}"
        self._failures = 0
        self._furthest = 0
        self._body = FileSlice(path, 0, 0, task)

    async def run(self, session: _Session | None) -> None:
        while True:
            session = session or await self._start()
            try:
                while self._descriptor.size - session.offset > self._chunk:
                    session = await self._send_chunk(session)
                return await self._finish(session)
            except _Lost as lost:
                self._body.forget()
                await self._pause(lost)
                session = await self._resume(lost.session)
                if session is None and await self._repository.has_blob(self._descriptor):
                    return None  # only the last answer was lost

    async def _start(self) -> _Session:
        ask = Ask("POST", f"{self._repository.path}/blobs/uploads/", self._scopes)
        return _session(self._repository, await self._connection.request(ask, _SMALL))

    async def _send_chunk(self, session: _Session) -> _Session:
        """PATCH the next chunk; the session after it. Raises _Lost if it is unclear how much the registry has."""
        size = max(self._chunk, session.least)
        size = min(size, self._descriptor.size - session.offset)
        end = session.offset + size
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{session.offset}-{end - 1}"}
        answer = await self._send("PATCH", session.url, headers, session, size)
        if answer.status not in (202, 204) or _received(answer) != end:
            raise _Lost(session, self._repository.refused(answer, self._what))
        if end > self._furthest:  # bytes that the registry had once before are no progress
            self._furthest, self._failures = end, 0
        return _Session(_place(self._repository, answer), end, session.least)

    async def _finish(self, session: _Session) -> None:
        """PUT the rest; the registry verifies the whole."""
        url = str(httpx.URL(session.url).copy_merge_params({"digest": self._descriptor.digest}))
        rest = self._descriptor.size - session.offset
        headers = {"Content-Type": "application/octet-stream"}
        if session.offset and rest:
            headers["Content-Range"] = f"{session.offset}-{self._descriptor.size - 1}"
        answer = await self._send("PUT", url, headers, session, rest)
        if answer.status in (404, 416):
            raise _Lost(session, self._repository.refused(answer, self._what))
        if answer.status != 201:
            raise self._repository.refused(answer, self._what)

    async def _send(self, method: str, url: str, headers: dict[str, str], session: _Session, size: int) -> Answer:
        """Make one attempt. After a failure it is unclear whether it arrived, so it is not simply repeated."""
        self._body = FileSlice(self._path, session.offset, size, self._task)
        try:
            return await self._connection.request_once(Ask(method, url, self._scopes, headers, self._body), _SMALL)
        except Failed as failed:
            raise _Lost(session, failed.why, failed.wait_s) from None

    async def _pause(self, lost: _Lost) -> None:
        self._failures += 1
        retrying = self._connection.retrying
        if self._failures >= retrying.attempts:
            raise lost.why from None
        wait_s = retrying.pause_s(self._failures) if lost.wait_s is None else lost.wait_s
        if wait_s > retrying.patience_s:
            raise lost.why from None
        await retrying.sleep(wait_s)

    async def _resume(self, session: _Session) -> _Session | None:
        """Ask how much the registry has of the upload; None if the upload must start again."""
        answer = await self._connection.request(Ask("GET", session.url, self._scopes), _SMALL)
        received = _received(answer)
        if answer.status != 204 or received is None or received > self._descriptor.size:
            self._task.advance(-session.offset)
            return None
        self._task.advance(received - session.offset)
        return _Session(_place(self._repository, answer), received, session.least)


class _Lost(Exception):
    """The outcome of a request in the session is unknown."""

    def __init__(self, session: _Session, why: Exception, wait_s: float | None = None) -> None:
        super().__init__(str(why))
        self.session = session
        self.why = why
        self.wait_s = wait_s


def _received(answer: Answer) -> int | None:
    """How many bytes the registry has, by its Range header, whose end is inclusive; None if it does not say.

    Docker's registry answers 0-0 for no bytes, so 0-0 is taken for none.
    """
    found = _RANGE.fullmatch(answer.headers.get("range", ""))
    if not found:
        return None
    return int(found[1]) + 1 if int(found[1]) else 0
