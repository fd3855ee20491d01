"""`overlayfs share podman`: the store as an additional image store in podman's storage.conf, and that taken back."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Final

import tomlkit

from overlayfs.cli.host import replacing
from overlayfs.cli.host.engines import Engine, Plan, plan_of
from overlayfs.cli.host.settings import TOML, Document, get, parsed, put, remove
from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.mounts.of_engines import podman_graph_root
from overlayfs.cli.output import safe
from overlayfs.image.store.podman import check_unused, share, unshare
from overlayfs.image.store.published import DIRECTORY
from overlayfs.image.store.store import Store

_STORES: Final = ("storage", "options", "additionalimagestores")
_MOUNT_PROGRAMS: Final = (("storage", "options", "overlay", "mount_program"), ("storage", "options", "mount_program"))


def share_images(directory: Path | None, *, dry_run: bool) -> None:
    """Show the change of storage.conf, make podman's directory, and change the file."""
    with Store.open(directory) as store:
        place = str(store.path / DIRECTORY)
        plan, before, document = _configuration()
        if os.geteuid() and not any(get(document, key) for key in _MOUNT_PROGRAMS):
            raise CommandError(
                "the layers of an ordinary user's store need a mount program: run `overlayfs setup podman --user` first"
            )
        for key, value in plan.defaults.items():
            if get(document, key) in (None, ""):
                put(document, key, value)
        stores = _stores(document, plan.file)
        if place not in stores:
            put(document, _STORES, [*stores, place])
        after = tomlkit.dumps(document) if place not in stores else before
        _show(plan.file, before, after)
        if dry_run:
            return
        share(store, podman_graph_root())
        _write(plan.file, before, after)
    print(f"podman sees the images of {store.path}, read-only.", "To undo: overlayfs share podman --undo", sep="\n")


def take_images_back(directory: Path | None, *, dry_run: bool) -> None:
    """Take the store out of storage.conf, and remove podman's directory."""
    with Store.open(directory) as store:
        check_unused(store)
        plan, before, document = _configuration()
        stores = [path for path in _stores(document, plan.file) if path != str(store.path / DIRECTORY)]
        if len(stores) < len(_stores(document, plan.file)):
            put(document, _STORES, stores)
            if not stores:
                remove(document, _STORES)
            _show(plan.file, before, tomlkit.dumps(document))
        if dry_run:
            return
        _write(plan.file, before, tomlkit.dumps(document))
        unshare(store)


def _configuration() -> tuple[Plan, str, Any]:
    """Where podman's configuration is, its text, and what it says; a file that is absent begins as podman's own."""
    plan = plan_of(Engine.PODMAN, Path(), for_user=os.geteuid() != 0)
    text = replacing.read(plan.file)
    if text is None:
        text = (plan.template is not None and replacing.read(plan.template)) or ""
    return plan, text, parsed(text, TOML, str(plan.file))


def _stores(document: Document, file: Path) -> list[str]:
    found = get(document, _STORES)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
        raise CommandError(f"{file}: {'.'.join(_STORES)} is not a list of directories; mend it first")
    return [str(path) for path in found]


def _show(file: Path, before: str, after: str) -> None:
    print(file)
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""):
        if not line.startswith(("---", "+++", "@@")):
            print(safe(line))


def _write(file: Path, before: str, after: str) -> None:
    if before != after:
        replacing.replace(file, after)
