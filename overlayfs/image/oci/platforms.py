"""Which image of an index suits this machine? Platforms in the spelling of OCI and Go (image-index.md)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from .documents import Descriptor, Platform
from .errors import InvalidError, NotFoundError

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "loongarch64": "loong64",
}
"""Other spellings of an architecture, with Go's GOARCH for it; riscv64, ppc64le, s390x and mips64 have one name."""
_ARM: Final = re.compile(r"armv([5-8])", re.ASCII)
_NUMBERED: Final = re.compile(r"v?(\d)(?:\.(\d))?", re.ASCII | re.IGNORECASE)
_USUAL: Final = frozenset({("amd64", "v1"), ("arm64", "v8")})
_AMD64_LEVELS: Final = {
    2: frozenset({"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"}),
    3: frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}),
    4: frozenset({"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}),
}
"""The CPU flags that each x86-64 level adds (x86-64 psABI, Micro-Architecture Levels), as in /proc/cpuinfo."""


def this_platform() -> Platform:
    """This machine's platform, without the x86-64 level: images made here run on all levels."""
    machine = os.uname().machine
    if arm := _ARM.match(machine):
        return Platform("arm", "linux", f"v{arm[1]}")
    return Platform(_ARCHITECTURES.get(machine, machine), "linux")


def amd64_level(flags: Collection[str]) -> int:
    """The highest level of x86-64, 1 to 4, that a processor with these flags can run."""
    missing = (level for level, needed in _AMD64_LEVELS.items() if not needed <= set(flags))
    return next(missing, 5) - 1


@cache
def processor_flags() -> frozenset[str]:
    """The flags of this machine's processors; none on machines other than x86."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


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


def acceptable(wanted: Platform) -> list[Platform]:
    """The platforms whose images run on `wanted`, best first, as containerd orders them (platforms/compare.go).

    A newer variant runs images of older ones; amd64 also runs 386, arm64 also arm. For amd64 without a variant the
    processor of this machine decides: the highest level it can run comes first, the plain image last.
    """
    wanted, asked = normal(wanted), wanted.variant
    if wanted.architecture == "amd64":
        level = _major(asked) if asked else amd64_level(processor_flags())
        return [*_variants(wanted, level, 1), replace(wanted, architecture="386", variant="")]
    if wanted.architecture == "arm64":
        arm = replace(wanted, architecture="arm", variant="v8")
        return [*map(normal, _arm64_variants(wanted)), *_variants(arm, 8, 5)]
    if wanted.architecture == "arm":
        return _variants(wanted, _major(wanted.variant), 5)
    return [wanted]


def _variants(platform: Platform, newest: int, oldest: int) -> list[Platform]:
    """`vN` from `newest` down to `oldest`; only the variant itself if it is not a number or older than `oldest`."""
    if newest < oldest:
        return [platform]
    return [normal(replace(platform, variant=f"v{number}")) for number in range(newest, oldest - 1, -1)]


def _arm64_variants(platform: Platform) -> Iterator[Platform]:
    """v9.x includes v8.{x+5} (Arm Architecture Reference Manual), so it runs its images."""
    numbered = _NUMBERED.fullmatch(platform.variant or "v8")
    if numbered is None or int(numbered[1]) not in (8, 9):
        yield platform
        return
    minor = int(numbered[2] or 0)
    if numbered[1] == "9":
        yield from _minors(platform, 9, minor)
        minor += 5
    yield from _minors(platform, 8, minor)


def _minors(platform: Platform, major: int, newest: int) -> Iterator[Platform]:
    for minor in range(newest, -1, -1):
        yield replace(platform, variant=f"v{major}.{minor}" if minor else f"v{major}")


def _major(variant: str) -> int:
    """The N of `vN`; 0 where the variant is anything else."""
    numbered = _NUMBERED.fullmatch(variant)
    return int(numbered[1]) if numbered and not numbered[2] else 0


def normal(platform: Platform) -> Platform:
    """The platform in its canonical spelling: the default variant is left out, except v7 of arm."""
    architecture = platform.architecture.lower()
    architecture = _ARCHITECTURES.get(architecture, architecture)
    variant = platform.variant.lower()
    if architecture == "armhf" or (architecture, variant) == ("arm", ""):
        architecture, variant = "arm", "v7"
    elif architecture == "armel":
        architecture, variant = "arm", "v6"
    if architecture in ("amd64", "arm", "arm64") and variant[:1].isdigit():
        variant = f"v{variant}"
    if (architecture, variant) in _USUAL or architecture == "386":
        variant = ""
    return Platform(architecture, platform.os.lower(), variant)


def choose(
    manifests: Iterable[Descriptor],
    wanted: Platform | None = None,
    is_usable: Callable[[Descriptor], bool] = lambda _: True,
) -> Descriptor:
    """The best manifest for `wanted` (None: this machine), or else one that names no platform.

    The first of several equal ones. Raises NotFoundError, which lists the platforms on offer.
    """
    wanted = wanted or this_platform()
    offered = [descriptor for descriptor in manifests if is_usable(descriptor)]
    for platform in (*acceptable(wanted), None):
        for descriptor in offered:
            if platform == _said(descriptor):
                return descriptor
    names = ", ".join(platform_name(descriptor.platform) for descriptor in offered) or "none"
    raise NotFoundError(f"no image for {platform_name(wanted)}; there is {names}")


def _said(descriptor: Descriptor) -> Platform | None:
    """The platform of the image; None where the index names none."""
    platform = descriptor.platform
    return None if platform is None or not (platform.os or platform.architecture) else normal(platform)
