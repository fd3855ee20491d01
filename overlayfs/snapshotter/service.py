"""containerd's snapshots service over gRPC: each method decodes, makes one call of `Snapshots`, and encodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NoReturn

import grpc

from .._log import Log
from .messages import SERVICE, Empty, message
from .metadata import AlreadyExists, FailedPrecondition, Info, InvalidArgument, NotFound, SnapshotError
from .mounts import Mount
from .snapshots import Snapshots

_LISTED_AT_ONCE = 100  # in one message, as containerd's own service does: gRPC limits the size of a message
_NS_PER_S = 1_000_000_000
_STATUS: dict[type[SnapshotError], grpc.StatusCode] = {
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    NotFound: grpc.StatusCode.NOT_FOUND,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
}
_log = Log(__name__)

_Answer = Callable[[Any], Any]  # a message in, a message (or an iterator of them) out


def handler(snapshots: Snapshots) -> grpc.GenericRpcHandler:
    """The service, to be added to a gRPC server."""
    service = _Service(snapshots)
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            _answering(answer),
            request_deserializer=_request(name).FromString,
            response_serializer=_serialized,
        )
        for name, answer in service.unary().items()
    }
    methods["List"] = grpc.unary_stream_rpc_method_handler(
        _streaming(service.list),
        request_deserializer=_request("List").FromString,
        response_serializer=_serialized,
    )
    return grpc.method_handlers_generic_handler(SERVICE, methods)


class _Service:
    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def unary(self) -> dict[str, _Answer]:
        """The methods with one answer, by their names in the protocol."""
        return {
            "Prepare": self.prepare,
            "View": self.view,
            "Mounts": self.mounts,
            "Commit": self.commit,
            "Remove": self.remove,
            "Stat": self.stat,
            "Update": self.update,
            "Usage": self.usage,
            "Cleanup": self.cleanup,
        }

    def prepare(self, request: Any) -> Any:
        mount = self._snapshots.prepare(request.key, request.parent, dict(request.labels))
        return message("PrepareSnapshotResponse")(mounts=[_mount(mount)])

    def view(self, request: Any) -> Any:
        mount = self._snapshots.view(request.key, request.parent, dict(request.labels))
        return message("ViewSnapshotResponse")(mounts=[_mount(mount)])

    def mounts(self, request: Any) -> Any:
        return message("MountsResponse")(mounts=[_mount(self._snapshots.mount(request.key))])

    def commit(self, request: Any) -> Any:
        self._snapshots.commit(request.key, request.name, dict(request.labels))
        return Empty()

    def remove(self, request: Any) -> Any:
        self._snapshots.remove(request.key)
        return Empty()

    def stat(self, request: Any) -> Any:
        return message("StatSnapshotResponse")(info=_info(self._snapshots.stat(request.key)))

    def update(self, request: Any) -> Any:
        info = self._snapshots.update(request.info.name, dict(request.info.labels), request.update_mask.paths)
        return message("UpdateSnapshotResponse")(info=_info(info))

    def usage(self, request: Any) -> Any:
        usage = self._snapshots.usage(request.key)
        return message("UsageResponse")(size=usage.size, inodes=usage.inodes)

    def cleanup(self, request: Any) -> Any:
        self._snapshots.cleanup()
        return Empty()

    def list(self, request: Any) -> Iterator[Any]:
        infos = self._snapshots.list(request.filters)
        while some := [_info(info) for info in islice(infos, _LISTED_AT_ONCE)]:
            yield message("ListSnapshotsResponse")(info=some)


def _request(method: str) -> Any:
    """The class of a method's request: some have `Snapshot` in their names."""
    names = {"List": "ListSnapshotsRequest", "Mounts": "MountsRequest", "Usage": "UsageRequest"}
    return message(names.get(method) or ("CleanupRequest" if method == "Cleanup" else f"{method}SnapshotRequest"))


def _serialized(answer: Any) -> bytes:
    return bytes(answer.SerializeToString())


def _answering(answer: _Answer) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answering(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return answer(request)
        except Exception as error:  # noqa: BLE001
            _fail(context, error)

    return answering


def _streaming(answer: _Answer) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
    def streaming(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from answer(request)
        except Exception as error:  # noqa: BLE001
            _fail(context, error)

    return streaming


def _fail(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End a call with the status that containerd expects; UNKNOWN for what is not the client's mistake."""
    status = _STATUS.get(type(error)) if isinstance(error, SnapshotError) else None
    if status is None:
        _log.error("a request failed: %s", error, exc_info=error)
    context.abort(status or grpc.StatusCode.UNKNOWN, str(error))


def _mount(mount: Mount) -> dict[str, Any]:
    return {"type": mount.type, "source": mount.source, "options": mount.options}


def _info(info: Info) -> dict[str, Any]:
    return {
        "name": info.name,
        "parent": info.parent,
        "kind": info.kind,
        "labels": info.labels,
        "created_at": _timestamp(info.created_ns),
        "updated_at": _timestamp(info.updated_ns),
    }


def _timestamp(time_ns: int) -> dict[str, int]:
    seconds, nanos = divmod(time_ns, _NS_PER_S)
    return {"seconds": seconds, "nanos": nanos}
