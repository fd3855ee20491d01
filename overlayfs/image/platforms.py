"""Which of an index's images is for this machine? Platforms as OCI and Go name them (image-index.md)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

from .errors import InvalidError, NotFoundError
from .model import Descriptor, Platform

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "armv8l": "arm64",
    "loongarch64": "loong64",
}
"""What uname(2) says, as Go's GOARCH; the others have the same name in both (riscv64, ppc64le, s390x, mips64)."""
_VARIANTS: Final = {"armv7l": "v7", "armv6l": "v6", "armv5l": "v5"}
_DEFAULT_VARIANTS: Final = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


def this_platform() -> Platform:
    machine = os.uname().machine
    if machine in _VARIANTS:
        return Platform("arm", "linux", _VARIANTS[machine])
    return Platform(_ARCHITECTURES.get(machine, machine), "linux")


def parse_platform(text: str) -> Platform:
    """`linux/arm64/v8`, `linux/amd64`, `arm64`. Raises InvalidError."""
    match text.lower().split("/"):
        case [architecture] if architecture:
            return Platform(_ARCHITECTURES.get(architecture, architecture), "linux")
        case [system, architecture] if system and architecture:
            return Platform(_ARCHITECTURES.get(architecture, architecture), system)
        case [system, architecture, variant] if system and architecture and variant:
            return Platform(_ARCHITECTURES.get(architecture, architecture), system, variant)
    raise InvalidError(f"{text!r} is no platform: write OS/ARCHITECTURE[/VARIANT], as linux/arm64/v8")


def platform_name(platform: Platform | None) -> str:
    if platform is None:
        return "unknown"
    return "/".join(filter(None, (platform.os, platform.architecture, platform.variant)))


def matches(offered: Platform | None, wanted: Platform) -> bool:
    """Whether an image for `offered` is one for `wanted`; one that does not say what it is for, is."""
    if offered is None:
        return True
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return False
    usual = _DEFAULT_VARIANTS.get(wanted.architecture, "")
    return not wanted.variant or (offered.variant or usual) == wanted.variant


def choose(
    manifests: Iterable[Descriptor],
    wanted: Platform | None = None,
    is_usable: Callable[[Descriptor], bool] = lambda _: True,
) -> Descriptor:
    """The first usable one for `wanted` (None: this machine). Raises NotFoundError, which names what is offered."""
    wanted = wanted or this_platform()
    offered = [descriptor for descriptor in manifests if is_usable(descriptor)]
    for descriptor in offered:
        if matches(descriptor.platform, wanted):
            return descriptor
    names = ", ".join(platform_name(descriptor.platform) for descriptor in offered) or "none"
    raise NotFoundError(f"no image for {platform_name(wanted)}; there is {names}")
