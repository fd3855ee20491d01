"""Which of an index's images is taken: the nearest that the platform can run, in the order that containerd has."""

from __future__ import annotations

import os
import random
import subprocess

import pytest

from overlayfs.image.oci import platforms
from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import OCI_MANIFEST, Descriptor, Platform
from overlayfs.image.oci.errors import NotFoundError
from overlayfs.image.oci.platforms import acceptable, amd64_level, choose, normal, parse_platform, platform_name

V1 = frozenset({"lm", "cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse2"})
V2 = V1 | {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}
V3 = V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
NONE: frozenset[str] = frozenset()


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    flags = getattr(request, "param", V2)
    monkeypatch.setattr(platforms, "processor_flags", lambda: flags)


def offers(*texts: str | None) -> list[Descriptor]:
    """Manifests for these platforms; None is one that does not say what it is for."""
    return [
        Descriptor(OCI_MANIFEST, digest_of(str(text).encode()), 1, platform=parse_platform(text) if text else None)
        for text in texts
    ]


def chosen(wanted: str, *texts: str | None) -> str | None:
    found = choose(offers(*texts), parse_platform(wanted))
    return None if found.platform is None else platform_name(found.platform)


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize(
    ("wanted", "offered", "taken"),
    [
        ("linux/arm/v7", "arm/v5 arm/v6", "arm/v6"),
        ("linux/arm/v7", "arm/v5 arm/v8", "arm/v5"),
        ("linux/arm/v6", "arm/v5 arm/v6 arm/v7", "arm/v6"),
        ("linux/arm/v8", "arm/v6 arm/v7", "arm/v7"),
        ("linux/arm", "arm/v5 arm/v6 arm/v7", "arm/v7"),
        ("linux/arm", "arm/v5 arm/v6", "arm/v6"),
        ("linux/arm", "arm/v5 arm", "arm"),
        ("linux/arm64", "arm64/v8 arm/v7", "arm64/v8"),
        ("linux/arm64/v8", "arm64 arm64/v9", "arm64"),
        ("linux/arm64", "arm/v6 arm/v7", "arm/v7"),
        ("linux/arm64/v8.2", "arm64/v8 arm64/v8.1 arm64/v8.3", "arm64/v8.1"),
        ("linux/arm64/v9", "arm64 arm64/v8.5 arm64/v8.6", "arm64/v8.5"),
        ("linux/arm64/v9.1", "arm64/v8.6 arm64/v9", "arm64/v9"),
        ("linux/amd64", "amd64/v3 amd64", "amd64"),
        ("linux/amd64", "amd64/v3 amd64/v2 amd64", "amd64/v2"),
        ("linux/amd64", "386 amd64/v1", "amd64/v1"),
        ("linux/amd64", "386 arm64", "386"),
        ("linux/amd64/v1", "amd64/v2 amd64", "amd64"),
        ("linux/amd64/v3", "amd64/v2 amd64/v4 amd64", "amd64/v2"),
        ("linux/amd64/v4", "amd64/v2 amd64/v4 amd64", "amd64/v4"),
        ("linux/riscv64", "riscv64/rva23 riscv64", "riscv64"),
        ("linux/ppc64le/power9", "ppc64le ppc64le/power9", "ppc64le/power9"),
    ],
)
@pytest.mark.usefixtures("processor")
def test_nearest_platform_is_taken_wherever_it_stands(wanted: str, offered: str, taken: str, order: int) -> None:
    texts = [f"linux/{text}" for text in offered.split()]
    random.Random(order).shuffle(texts)
    assert chosen(wanted, *texts) == f"linux/{taken}"


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("linux/amd64", "linux/amd64/v3"),
        ("linux/amd64/v2", "linux/amd64/v3"),
        ("linux/arm/v6", "linux/arm/v7"),
        ("linux/arm", "linux/arm64"),
        ("linux/arm64", "linux/arm64/v9"),
        ("linux/386", "linux/amd64"),
        ("linux/riscv64", "linux/riscv64/rva23"),
        ("linux/amd64", "windows/amd64"),
    ],
)
@pytest.mark.usefixtures("processor")
def test_what_cannot_run_is_never_taken(wanted: str, offered: str) -> None:
    with pytest.raises(NotFoundError, match=f"^no image for {wanted}; there is {offered}$"):
        chosen(wanted, offered)


@pytest.mark.parametrize(
    ("processor", "taken"),
    [(NONE, ""), (V1, ""), (V2, "/v2"), (V3, "/v3"), (V4, "/v4"), (V4 - {"ssse3"}, ""), (V4 - {"fma"}, "/v2")],
    indirect=["processor"],
)
@pytest.mark.usefixtures("processor")
def test_newest_level_that_the_processor_runs_is_taken(taken: str) -> None:
    offered = [f"linux/amd64{level}" for level in ("/v4", "", "/v2", "/v3")]
    assert chosen("linux/amd64", *offered) == f"linux/amd64{taken}"


def test_levels_are_those_of_the_c_library() -> None:
    """glibc knows by itself what this processor can run (ld.so --help, glibc-hwcaps)."""
    flags = platforms.processor_flags()
    if os.uname().machine != "x86_64":
        assert amd64_level(flags) == 1
        return
    said = subprocess.run(["/lib64/ld-linux-x86-64.so.2", "--help"], capture_output=True, text=True, check=True).stdout
    supported = [level for level in (2, 3, 4) if f"x86-64-v{level} (supported" in said]
    assert amd64_level(flags) == max(supported, default=1)


@pytest.mark.usefixtures("processor")
def test_image_that_does_not_say_what_it_is_for_comes_last() -> None:
    assert chosen("linux/amd64", None, "linux/386") == "linux/386"
    assert chosen("linux/amd64", "linux/arm64", None) is None
    unsaid = Descriptor(OCI_MANIFEST, digest_of(b""), 1, platform=Platform("", ""))
    assert choose([unsaid], parse_platform("linux/amd64")) == unsaid


@pytest.mark.parametrize(
    ("architecture", "variant", "expected"),
    [
        ("x86_64", "", "linux/amd64"),
        ("X86-64", "V1", "linux/amd64"),
        ("aarch64", "8", "linux/arm64"),
        ("arm", "", "linux/arm/v7"),
        ("arm", "6", "linux/arm/v6"),
        ("armhf", "", "linux/arm/v7"),
        ("armel", "", "linux/arm/v6"),
        ("i386", "sse2", "linux/386"),
        ("s390x", "z15", "linux/s390x/z15"),
    ],
)
def test_platform_has_one_spelling(architecture: str, variant: str, expected: str) -> None:
    assert platform_name(normal(Platform(architecture, "Linux", variant))) == expected


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv8l", "linux/arm/v8"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("armv5tel", "linux/arm/v5"),
        ("i686", "linux/386"),
        ("ppc64le", "linux/ppc64le"),
    ],
)
def test_platform_of_this_machine(monkeypatch: pytest.MonkeyPatch, machine: str, expected: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6", "1", machine)))
    assert platform_name(platforms.this_platform()) == expected


@pytest.mark.parametrize("text", ["linux/amd64/v99", "linux/arm/v9.9.9", "linux/arm64/" + "9" * 4000, "linux/arm/v"])
@pytest.mark.usefixtures("processor")
def test_odd_variant_is_for_itself_alone(text: str) -> None:
    wanted = parse_platform(text)
    assert len(acceptable(wanted)) < 9
    assert chosen(text, text) == platform_name(wanted)
