"""What do /etc/resolv.conf, /etc/hosts and /etc/hostname in a container say? As docker and podman make them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ...image.oci.errors import InvalidError
from ..mountpoints import Mountpoints
from ..runtime import Bind
from ..spec.parts import host_of
from ..spec.settings import ADDRESS, HOST, NAME_SERVER, PRIVATE

FILES: Final = ("resolv.conf", "hosts", "hostname")
_LOCAL: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_MOST: Final = 1 << 20


def made_files(kind: str, hostname: str, hosts: Sequence[str], dns: Sequence[str]) -> dict[str, str]:
    """The texts of `FILES` in a container with this kind of network."""
    return {
        "resolv.conf": _resolver(kind, dns),
        "hosts": _hosts(kind, hostname, hosts),
        "hostname": f"{hostname}\n",
    }


def _resolver(kind: str, dns: Sequence[str]) -> str:
    """The host's file; with other name servers if they are given, or if the host's cannot be reached from there."""
    lines = _text_of("/etc/resolv.conf").splitlines(keepends=True)
    servers = list(dns) or ([NAME_SERVER] if kind == PRIVATE else [])
    if not servers:
        return "".join(lines)
    others = [line for line in lines if line.split()[:1] != ["nameserver"]]
    return "".join([*others, *(f"nameserver {server}\n" for server in servers)])


def _hosts(kind: str, hostname: str, hosts: Sequence[str]) -> str:
    added = [f"{address}\t{name}\n" for name, address in map(host_of, hosts)]
    start = _text_of("/etc/hosts") if kind == HOST else ""
    if start and not start.endswith("\n"):
        start += "\n"
    own = ADDRESS if kind == PRIVATE else "127.0.0.1"
    return "".join([start or _LOCAL, *added, f"{own}\t{hostname}\n"])


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_MOST)
    except OSError:
        return ""


def binds(directory: Path, texts: Mapping[str, str], places: Mountpoints) -> Iterator[Bind]:
    """Write the files into the directory, for everybody to read, and bind them in /etc; an unexpected file of the image
    there is left alone."""
    for name, text in texts.items():
        path = directory / name
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        path.chmod(0o644)
        with suppress(InvalidError):
            yield Bind(str(path), places.file(f"/etc/{name}"))
