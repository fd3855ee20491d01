"""What does the caller of a build want? The options of the command line, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ..image.oci.documents import Platform
from ..image.oci.errors import ImageError
from ..image.oci.platforms import platform_name, this_platform
from ..image.oci.progress import Progress
from ..image.oci.reference import Reference
from ..image.store.store import Image, Store
from .reports import Plain, Report

PROXIES: Final = frozenset(
    name for word in ("http", "https", "ftp", "no", "all") for name in (f"{word}_proxy", f"{word}_proxy".upper())
)
"""Arguments that every RUN sees without an ARG, and that are not part of the cache's key."""

EPOCH: Final = "SOURCE_DATE_EPOCH"


class BuildError(ImageError):
    """A step failed; the message begins with its place in the Dockerfile."""


@dataclass(frozen=True, slots=True)
class Request:
    """The options of one build. `fetch` gets an image from its registry: (store, name, platform, progress).

    `epoch`, in seconds, is the time of the image, and no time in its layers is later. `secrets` are contents by id,
    `ssh` sockets of agents by id, `hosts` lines of /etc/hosts as NAME:IP.
    """

    fetch: Callable[[Store, Reference, Platform | None, Progress], Image]
    report: Report = field(default_factory=Plain)
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    target: str = ""
    uses_cache: bool = True
    pulls: bool = False
    keeps_failed: bool = False
    squashes: bool = False
    process_limit: int | None = None
    network: str = "default"
    hosts: tuple[str, ...] = ()
    compression: str | None = "gzip"
    epoch: int | None = None
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    ssh: Mapping[str, Path] = field(default_factory=dict)

    @property
    def now(self) -> str:
        """RFC 3339, in UTC."""
        moment = datetime.now(UTC) if self.epoch is None else datetime.fromtimestamp(self.epoch, UTC)
        return moment.isoformat().replace("+00:00", "Z")

    @property
    def predefined(self) -> dict[str, str]:
        """The platform arguments, which an ARG without a default brings into scope."""
        target, build = self.platform or this_platform(), this_platform()
        return {
            f"{scope}{part}": value
            for scope, platform in (("TARGET", target), ("BUILD", build))
            for part, value in (
                ("PLATFORM", platform_name(platform)),
                ("OS", platform.os),
                ("ARCH", platform.architecture),
                ("VARIANT", platform.variant),
            )
        }
