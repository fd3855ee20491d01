"""`overlayfs volume` and `container prune`: what outlives containers, and what is not needed any more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overlayfs.cli.container.leftovers import sweep
from overlayfs.cli.container.lifecycle import each
from overlayfs.cli.container.selecting import are_passed, tests_of
from overlayfs.cli.output import Cell, print_json, print_table
from overlayfs.cli.template import print_documents
from overlayfs.container.containers import BUNDLE, Containers, Readable
from overlayfs.container.live.status import status_of
from overlayfs.container.spec.parts import label_of
from overlayfs.container.volumes import NamedVolume, Volumes, random_name, users_of
from overlayfs.image.oci.errors import InUseError, NotFoundError
from overlayfs.image.store.staging import remove_leftovers
from overlayfs.image.store.store import Store


def create_volume(store_directory: Path | None, name: str, labels: Sequence[str]) -> None:
    name = name or random_name()
    with Store.open(store_directory) as store:
        Volumes(store).create(name, dict(label_of(text) for text in labels))
    print(name)


def list_volumes(store_directory: Path | None, *, quiet: bool, as_json: bool) -> None:
    with Store.open(store_directory) as store:
        volumes, containers = Volumes(store), Containers(store).readable()
        readable = volumes.readable()
        documents = [_document(volumes, volume, containers) for volume in readable.volumes]
    if as_json:
        print_json(documents)
    elif quiet:
        for one in documents:
            print(one["Name"])
    elif documents:
        rows = [
            [Cell(one["Name"], "bold"), Cell(one["CreatedAt"]), Cell(", ".join(one["UsedBy"]))] for one in documents
        ]
        print_table(("NAME", "CREATED", "CONTAINERS"), rows)
    readable.check()
    containers.check()


def inspect_volumes(store_directory: Path | None, names: Sequence[str], template: str) -> None:
    with Store.open(store_directory) as store:
        volumes, containers = Volumes(store), Containers(store).readable()
        documents = [_document(volumes, volumes.find(name), containers) for name in names]
    print_documents(documents, template)
    containers.check()


def _document(volumes: Volumes, volume: NamedVolume, among: Readable) -> dict[str, Any]:
    """With the names of `docker volume inspect`."""
    return {
        "Name": volume.name,
        "Driver": "local",
        "Scope": "local",
        "Mountpoint": str(volumes.data(volume.name)),
        "CreatedAt": volume.created,
        "Labels": volume.labels,
        "UsedBy": users_of(volume.name, among.containers),
    }


def remove_volumes(store_directory: Path | None, names: Sequence[str], *, force: bool) -> bool:
    """Remove volumes, even if it fails for one; whether all are gone. With `force` a missing one is gone, too."""

    def one(name: str) -> None:
        with Store.open(store_directory) as store:
            try:
                Volumes(store).remove(name)
            except NotFoundError:
                if not force:
                    raise

    return each(names, one)


def prune_volumes(store_directory: Path | None) -> None:
    """Remove the volumes that no container has. Raises InvalidError for a damaged record of a container, at the end
    for one of a volume."""
    with Store.open(store_directory) as store:
        volumes = Volumes(store)
        readable = volumes.readable()
        for volume in readable.volumes:
            try:
                volumes.remove(volume.name)
            except (InUseError, NotFoundError):  # or somebody was faster
                continue
            print(volume.name)
    readable.check()


def prune_containers(store_directory: Path | None, filters: Sequence[str]) -> None:
    """Remove the containers that nobody uses, those never started included, as docker does. Raises InvalidError."""
    with Store.open(store_directory) as store:
        containers = Containers(store)
        tests = tests_of(store, filters, lambda one: status_of(one, containers.directory(one) / BUNDLE))
        sweep(store)
        readable = containers.readable()
        for container in (one for one in readable.containers if are_passed(tests, one)):
            try:
                away = containers.take_away(container)
            except (InUseError, NotFoundError):
                continue
            print(container.id, flush=True)
            remove_leftovers([away])
    readable.check()
    sys.stdout.flush()
