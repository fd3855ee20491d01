"""Can podman read the documents of an image? One that it cannot read makes it list no image at all.

It decodes all members that it knows, also those that nothing here uses, with encoding/json of Go: into the types of
containers/image (manifest/docker_schema2.go, manifest/oci.go) and of the OCI specification's Go code. Names are
compared without case, a name may come twice, and null fits everything.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from ..oci.documents import DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Manifest
from ..oci.errors import InvalidError

Check = Callable[[object], bool]

_CLOCK: Final = r"([01]\d|2[0-3]):[0-5]\d"
_TIME: Final = re.compile(rf"\d{{4}}-\d\d-\d\dT{_CLOCK}:[0-5]\d(\.\d+)?(Z|[+-]{_CLOCK})", re.ASCII)
_OF_DOCKER: Final = frozenset({DOCKER_CONFIG, DOCKER_LAYER, f"{DOCKER_LAYER}.gzip"})


class _Object(list[tuple[str, object]]):
    """The members of a JSON object, in order."""


def _is_time(value: object) -> bool:
    """Whether it is a time of RFC 3339."""
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not _is_flag(value) and -(1 << 63) <= value < 1 << 63


def _is_bytes(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        base64.b64decode(value, validate=True)
    except ValueError:
        return False
    return True


def _is_nothing(_: object) -> bool:
    """Null fits, and nothing else."""
    return False


def _list_of(check: Check) -> Check:
    return lambda value: type(value) is list and all(_fits(inner, check) for inner in value)


def _map_of(check: Check) -> Check:
    return lambda value: isinstance(value, _Object) and all(_fits(inner, check) for _, inner in value)


def _object(members: Mapping[str, Check]) -> Check:
    """An object that has these members, if any; others may be what they are."""

    def check(value: object) -> bool:
        if not isinstance(value, _Object):
            return False
        known = ((members.get(name.casefold()), inner) for name, inner in value)
        return all(_fits(inner, member) for member, inner in known if member)

    return check


def _fits(value: object, check: Check) -> bool:
    return value is None or check(value)


def _each(names: str, check: Check) -> dict[str, Check]:
    return dict.fromkeys(names.split(), check)


_TEXTS: Final = _list_of(_is_text)
_TEXT_BY_NAME: Final = _map_of(_is_text)
_NAMES: Final = _map_of(_object({}))
_HEALTH: Final = _object({"test": _TEXTS, **_each("interval timeout startperiod startinterval retries", _is_number)})
_RUN: Final = _object(
    {
        **_each("hostname domainname user image workingdir macaddress stopsignal", _is_text),
        **_each("attachstdin attachstdout attachstderr tty openstdin stdinonce argsescaped networkdisabled", _is_flag),
        **_each("env cmd entrypoint onbuild shell", _TEXTS),
        **_each("exposedports volumes", _NAMES),
        "labels": _TEXT_BY_NAME,
        "healthcheck": _HEALTH,
        "stoptimeout": _is_number,
    }
)
_STEP: Final = _object({"created": _is_time, "empty_layer": _is_flag, **_each("created_by author comment", _is_text)})
_CONFIG: Final = _object(
    {
        **_each("id parent comment container docker_version author architecture variant os os.version", _is_text),
        **_each("config container_config", _RUN),
        "created": _is_time,
        "size": _is_number,
        "rootfs": _object({"type": _is_text, "diff_ids": _TEXTS}),
        "history": _list_of(_STEP),
        "os.features": _TEXTS,
    }
)
_PLATFORM: Final = _object(
    {**_each("architecture os variant os.version", _is_text), **_each("os.features features", _TEXTS)}
)
_DESCRIPTOR: Final = _object(
    {
        **_each("mediatype digest artifacttype", _is_text),
        "size": _is_number,
        "urls": _TEXTS,
        "annotations": _TEXT_BY_NAME,
        "data": _is_bytes,
        "platform": _PLATFORM,
    }
)
_MANIFEST: Final = _object(
    {
        **_each("mediatype artifacttype", _is_text),
        **_each("fslayers history manifests", _is_nothing),  # members of other kinds of manifests
        "schemaversion": _is_number,
        "config": _DESCRIPTOR,
        "subject": _DESCRIPTOR,
        "layers": _list_of(_DESCRIPTOR),
        "annotations": _TEXT_BY_NAME,
    }
)


def check_readable(image: Manifest, manifest: bytes, config: bytes) -> None:
    """Raises InvalidError where podman cannot read one of the documents; `image` is what `manifest` says."""
    for data, check, what in ((manifest, _MANIFEST, "manifest"), (config, _CONFIG, "configuration")):
        try:
            document = json.loads(data.decode(), object_pairs_hook=_Object)
        except (ValueError, RecursionError):
            document = None
        if document is None or not check(document):
            raise InvalidError(f"podman cannot read its {what}")
    others = {part.media_type for part in (image.config, *image.layers)} - _OF_DOCKER
    if _is_of_docker(image) and others:
        raise InvalidError(f"podman knows no {', '.join(sorted(others))} in a manifest of docker")


def _is_of_docker(image: Manifest) -> bool:
    """Whether podman takes it for one of docker, by its configuration if it does not tell its kind."""
    return image.media_type == DOCKER_MANIFEST or (not image.media_type and image.config.media_type == DOCKER_CONFIG)
