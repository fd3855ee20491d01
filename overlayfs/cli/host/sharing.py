"""`overlayfs share podman`: the store as an additional image store in podman's storage.conf, and that taken back."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Final

import tomlkit

from overlayfs.cli.asking import confirm
from overlayfs.cli.host import replacing
from overlayfs.cli.host.engines import Engine, Plan, plan_of
from overlayfs.cli.host.settings import TOML, Document, get, parsed, put, remove
from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.mounts.of_engines import podman_graph_root
from overlayfs.cli.output import safe
from overlayfs.image.store.podman import check_unused, share, unshare
from overlayfs.image.store.published import DIRECTORY, is_shared
from overlayfs.image.store.store import Store

_STORES: Final = ("storage", "options", "additionalimagestores")
_MOUNT_PROGRAMS: Final = (("storage", "options", "overlay", "mount_program"), ("storage", "options", "mount_program"))


def share_images(directory: Path | None, *, dry_run: bool, confirmed: bool) -> None:
    """Show the change of storage.conf, ask, make podman's directory, and change the file."""
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
        stores, after = _stores(document, plan.file), before
        if place not in stores:
            put(document, _STORES, [*stores, place])
            after = tomlkit.dumps(document)
        _show(plan.file, before, after)
        if dry_run:
            return
        if after != before:
            _ask(confirmed)
        share(store, podman_graph_root())
        _write(plan.file, before, after)
    print(f"podman sees the images of {store.path}, read-only.", "To undo: overlayfs share podman --undo", sep="\n")


def take_images_back(directory: Path | None, *, dry_run: bool, confirmed: bool) -> None:
    """Take the store out of storage.conf, and remove podman's directory."""
    with Store.open(directory) as store:
        check_unused(store)
        plan, before, document = _configuration()
        stores = _stores(document, plan.file)
        if str(store.path / DIRECTORY) in stores:
            stores.remove(str(store.path / DIRECTORY))
            put(document, _STORES, stores) if stores else remove(document, _STORES)
        elif not is_shared(store.path):
            print(f"podman does not see the images of {store.path}: nothing to undo")
            return
        after = tomlkit.dumps(document)
        _show(plan.file, before, after)
        if dry_run:
            return
        _ask(confirmed)
        _write(plan.file, before, after)
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


def _ask(confirmed: bool) -> None:
    if not confirmed:
        confirm(
            "Change this?",
            unattended="nothing was changed: without a terminal to confirm that, give --yes",
            refused="nothing was changed",
        )


def _show(file: Path, before: str, after: str) -> None:
    print(file)
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""):
        if not line.startswith(("---", "+++", "@@")):
            print(safe(line))


def _write(file: Path, before: str, after: str) -> None:
    if before != after:
        replacing.replace(file, after)
