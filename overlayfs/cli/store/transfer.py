"""`pull`, `push`, `login`, `logout` and `search-tags`, in words for the user; `image.registry` does the work."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import trio

from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.output import format_size, print_json, printable
from overlayfs.cli.progress import shown_progress
from overlayfs.image.oci.documents import Platform
from overlayfs.image.oci.platforms import parse_platform, platform_name
from overlayfs.image.oci.reference import DEFAULT_REGISTRY, Reference
from overlayfs.image.registry.credentials import Credential, forget_credential, keep_credential, known_registries
from overlayfs.image.registry.endpoints import Registries
from overlayfs.image.registry.repository import check_login
from overlayfs.image.registry.transfer import Access, Pushed, first_of, pull, push, tags
from overlayfs.image.store.store import Image, Store

Result = TypeVar("Result")
_HUB = frozenset({"index.docker.io", "registry-1.docker.io"})


def access(ca: Path | None, insecure: bool) -> Access:
    """The Access that the options of the command describe."""
    return Access(Registries.load(), ca, insecure)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to pull, in the user's words, and whether its layers are unpacked at once."""

    name: str
    platform: str | None
    all_platforms: bool
    unpack: bool


def fetch(directory: Path | None, wanted: Wanted, how: Access, *, quiet: bool, as_json: bool) -> None:
    """Pull an image, and report it."""
    image = fetch_image(directory, wanted, how, quiet=quiet)
    if as_json:
        print_json(_described(image))
    elif quiet:
        print(image.name)
    else:
        print(f"{image.name}: {_platform(image)}, {format_size(image.size)}, {image.digest}")


def fetch_image(directory: Path | None, wanted: Wanted, how: Access, *, quiet: bool) -> Image:
    """Pull an image, with progress on standard error unless `quiet`."""
    reference = Reference.parse(wanted.name)
    platform = parse_platform(wanted.platform) if wanted.platform else None
    with Store.open(directory) as store, shown_progress(quiet) as progress:
        image = _run(
            lambda: pull(store, reference, platform, how, all_platforms=wanted.all_platforms, progress=progress)
        )
        if wanted.unpack:
            from overlayfs.image.store.missing_layers import unpack_image

            unpack_image(store, image, progress)
    return image


def _platform(image: Image) -> str:
    config = image.config
    return platform_name(Platform(config.architecture, config.os, config.variant))


def _described(image: Image) -> dict[str, object]:
    return {
        "Name": str(image.reference),
        "Id": image.id,
        "Digest": image.digest,
        "Platform": _platform(image),
        "Size": image.size,
    }


def send(
    directory: Path | None, name: str, destination: str | None, how: Access, *, quiet: bool, as_json: bool
) -> None:
    """Push an image, and report it."""
    with Store.open(directory) as store, shown_progress(quiet) as progress:
        image = store.find(name)
        reference = Reference.parse(destination) if destination else image.reference
        if reference is None:
            raise CommandError(f"{name} has no name in the store; give a name to push it under")
        pushed = _run(lambda: push(store, image, reference, how, progress))
    if as_json:
        blobs = {how.capitalize(): count for how, count in pushed.counts.items()}
        print_json({"Name": str(reference), "Digest": pushed.descriptor.digest, "Blobs": blobs})
    elif quiet:
        print(reference.familiar)
    else:
        print(f"{reference.familiar}: {_summary(pushed)}, {pushed.descriptor.digest}")


def _summary(pushed: Pushed) -> str:
    words = {"sent": "sent", "mounted": "mounted", "exists": "there before"}
    said = [f"{count} {words[how]}" for how, count in pushed.counts.items() if count]
    return f"blobs: {', '.join(said)}"


def log_in(registry: str, username: str | None, how: Access, *, from_stdin: bool) -> None:
    """Check a credential with the registry and keep it."""
    reference = _registry(registry)
    credential = _ask_for_credential(reference.registry, username, from_stdin)
    endpoint = how.registries.endpoints(reference, ca=how.ca, insecure=how.insecure)[-1]
    _run(lambda: check_login(endpoint, credential))
    place = keep_credential(reference.registry, credential)
    print(f"logged in to {reference.registry} as {printable(credential.username.encode())}; kept in {place}")


def _ask_for_credential(registry: str, username: str | None, from_stdin: bool) -> Credential:
    if from_stdin:
        if not username:
            raise CommandError("--password-stdin needs --username")
        password = sys.stdin.read().rstrip("\r\n")
    elif not sys.stdin.isatty():
        raise CommandError("no terminal to ask for the password; use --username and --password-stdin")
    else:
        username = username or input(f"User name for {registry}: ").strip()
        password = getpass.getpass(f"Password of {username}: ")
    if not username or not password:
        raise CommandError("neither the user name nor the password may be empty")
    if ":" in username:
        raise CommandError("a user name has no colon")
    return Credential(username, password)


def log_out(registry: str | None) -> None:
    """Remove the credentials of a registry, or of all."""
    names = known_registries() if registry is None else [_registry(registry).registry]
    for name in names:
        places = forget_credential(name)
        print(f"logged out of {name}: removed from {', '.join(places)}" if places else f"not logged in to {name}")


def show_tags(name: str, matching: str | None, limit: int | None, how: Access, as_json: bool) -> None:
    """List the tags of a repository."""
    reference = Reference.parse(name)
    found = _run(lambda: tags(reference, how))
    listed = [tag for tag in found if matching is None or fnmatchcase(tag, matching)][:limit]
    if as_json:
        print_json({"Name": reference.name, "Tags": listed})
    else:
        for tag in listed:
            print(printable(tag.encode("utf-8", "surrogatepass")))


def _registry(text: str) -> Reference:
    """A reference that stands for a whole registry."""
    host = text.rpartition("://")[2].partition("/")[0]
    reference = Reference.parse(f"{host}/x")
    if reference.registry not in (host, DEFAULT_REGISTRY) or (reference.registry != host and host not in _HUB):
        raise CommandError(f"{text!r} is no registry's name: write HOST or HOST:PORT, with a dot or a colon")
    return reference


def _run(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run a task of trio; of the errors of several the first one."""
    try:
        return trio.run(work)
    except BaseExceptionGroup as group:
        raise first_of(group) from None
