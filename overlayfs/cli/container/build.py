"""`overlayfs build`: the options become a request; the image is built, named and reported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlayfs.build.build import build, clean_up
from overlayfs.build.files.contexts import opened_context, unpack_file
from overlayfs.build.processes import check_limit
from overlayfs.build.reports import Report
from overlayfs.build.request import EPOCH, Request
from overlayfs.cli.container.display import shown_steps
from overlayfs.cli.store.archives import written
from overlayfs.cli.store.commit import compression_of, epoch
from overlayfs.container.spec.parts import host_of
from overlayfs.image.archive.rootfs import export_image
from overlayfs.image.oci.documents import Platform
from overlayfs.image.oci.errors import InvalidError, NotFoundError
from overlayfs.image.oci.platforms import parse_platform
from overlayfs.image.oci.progress import Progress
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Image, Store

STANDARD_OUTPUT: Final = "-"


@dataclass(frozen=True, slots=True)
class _Output:
    """Where the tree of the image is written: a directory, or a tar, which `-` is on standard output."""

    is_tar: bool
    target: str

    @classmethod
    def parse(cls, text: str) -> _Output:
        """`DIR`, `FILE.tar` or `-`, or docker's `type=local|tar,dest=PATH`. Raises InvalidError."""
        options = dict(word.partition("=")[::2] for word in text.split(",")) if text.startswith("type=") else {}
        target = options.get("dest", "" if options else text)
        kind = options.get("type") or ("tar" if target == STANDARD_OUTPUT or target.endswith(".tar") else "local")
        if kind not in ("tar", "local") or not target:
            raise InvalidError(f"--output {text!r} is not DIR, FILE.tar, type=local,dest=DIR or type=tar,dest=FILE")
        return cls(kind == "tar", target)

    @property
    def is_standard(self) -> bool:
        return self.is_tar and self.target == STANDARD_OUTPUT


@dataclass(frozen=True, slots=True)
class Words:
    """The command line of `overlayfs build`."""

    context: str
    file: str | None
    tags: tuple[str, ...]
    arguments: tuple[str, ...]
    labels: tuple[str, ...]
    secrets: tuple[str, ...]
    ssh: tuple[str, ...]
    target: str
    platform: str | None
    iidfile: str | None
    output: str | None
    compression: str
    uses_cache: bool
    pulls: bool
    squashes: bool
    process_limit: int | None
    network: str
    hosts: tuple[str, ...]
    keeps_failed: bool
    progress: str


def build_image(directory: Path | None, words: Words) -> None:
    """Build, and print the ID. Raises ImageError, OSError."""
    output = None if words.output is None else _Output.parse(words.output)
    references = [_reference(tag) for tag in words.tags]
    check_limit(words.process_limit)
    for host in words.hosts:
        host_of(host)
    with Store.open(directory) as store, shown_steps(words.progress) as report:
        request = _request(words, report)
        clean_up(store)
        try:
            with opened_context(store, words.context, words.file) as context:
                image = build(store, context, request, references)
        except BaseException:
            clean_up(store)  # the processes of its stages were killed
            raise
        if output is not None:
            _write_tree(store, image, output)
    if words.iidfile is not None:
        Path(words.iidfile).write_text(image.id, "ascii")
    print(image.id, file=sys.stderr if output is not None and output.is_standard else sys.stdout)


def _reference(text: str) -> Reference:
    reference = Reference.parse(text)
    if reference.digest is not None:
        raise InvalidError(f"{text}: a new image cannot be named by a digest: leave it out")
    return reference


def _request(words: Words, report: Report) -> Request:
    arguments = _arguments(words.arguments)
    return Request(
        _pull,
        report,
        arguments=arguments,
        labels=_pairs("--label", words.labels),
        platform=parse_platform(words.platform) if words.platform else None,
        target=words.target,
        uses_cache=words.uses_cache,
        pulls=words.pulls,
        keeps_failed=words.keeps_failed,
        squashes=words.squashes,
        process_limit=words.process_limit,
        network=words.network,
        hosts=words.hosts,
        compression=compression_of(words.compression),
        epoch=epoch(arguments.get(EPOCH, "")),
        secrets=_secrets(words.secrets),
        ssh=_agents(words.ssh),
    )


def _arguments(texts: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE`, or `NAME` for the variable of the caller, if it has one. The epoch of the caller is one, too."""
    found = {EPOCH: os.environ[EPOCH]} if EPOCH in os.environ else {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise InvalidError(f"--build-arg {text!r} is not NAME=VALUE")
        if equals or name in os.environ:
            found[name] = value if equals else os.environ[name]
    return found


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name:
            raise InvalidError(f"{option} {text!r} is not NAME=VALUE")
        pairs[name] = value
    return pairs


def _secrets(texts: Sequence[str]) -> dict[str, bytes]:
    """`id=ID,src=FILE` or `id=ID,env=NAME`; the file is called as the ID by default."""
    found: dict[str, bytes] = {}
    for text in texts:
        options = dict(word.partition("=")[::2] for word in text.split(","))
        name = options.get("id")
        source = options.get("src") or options.get("source")
        if not name or options.get("type", "file") not in ("file", "env"):
            raise InvalidError(f"--secret {text!r} is not id=ID,src=FILE or id=ID,env=NAME")
        variable = options.get("env") or (name if source is None and name in os.environ else None)
        if variable is not None:
            if variable not in os.environ:
                raise NotFoundError(f"--secret {text!r}: the variable {variable} is not set")
            found[name] = os.environb[os.fsencode(variable)]
            continue
        try:
            found[name] = Path(source or name).expanduser().read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"--secret {text!r}: there is no file {source or name}") from None
    return found


def _agents(texts: Sequence[str]) -> dict[str, Path]:
    """`ID` for the agent of SSH_AUTH_SOCK, or `ID=SOCKET`."""
    found = {}
    for text in texts:
        name, equals, socket = text.partition("=")
        path = socket if equals else os.environ.get("SSH_AUTH_SOCK", "")
        if not path or not Path(path).is_socket():
            raise NotFoundError(f"--ssh {text}: no socket of an agent{f' at {path}' if path else ''}")
        found[name] = Path(path).absolute()
    return found


def _pull(store: Store, reference: Reference, platform: Platform | None, progress: Progress) -> Image:
    """Pull an image as `overlayfs pull` does."""
    import trio

    from overlayfs.cli.store.transfer import access
    from overlayfs.image.registry.transfer import first_of, pull

    async def work() -> Image:
        return await pull(store, reference, platform, access(None, False), progress=progress)

    try:
        return trio.run(work)
    except BaseExceptionGroup as group:
        raise first_of(group) from None


def _write_tree(store: Store, image: Image, output: _Output) -> None:
    if output.is_tar:
        with written(output.target, "a tar") as out:
            export_image(store, image, out)
        return
    with store.staging() as staged:
        with open(staged / "tree.tar", "xb") as out:
            export_image(store, image, out)
        Path(output.target).mkdir(parents=True, exist_ok=True)
        unpack_file(staged / "tree.tar", Path(output.target), store.limits, keeps_owners=os.geteuid() == 0)
