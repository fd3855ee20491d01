"""`import` and `export`: root file systems, as tars or directories, to images and from images and containers."""

from __future__ import annotations

from pathlib import Path

from overlayfs.cli.app import store_directory
from overlayfs.cli.output import print_json
from overlayfs.cli.progress import shown_progress
from overlayfs.cli.store.archives import standard_input, written
from overlayfs.cli.store.commit import Request, write_back_of
from overlayfs.container.containers import Container, Containers
from overlayfs.image.archive.rootfs import export_image, import_rootfs
from overlayfs.image.layer.pack import Output, write_layer
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Store
from overlayfs.image.tar.compression import open_compressed

_STDIN = "-"


def import_image(source: str, request: Request) -> None:
    """Make an image of one layer; prints its ID, as docker does."""
    reference = None if request.name is None else Reference.parse(request.name)
    found = standard_input("a root filesystem as a tar") if source == _STDIN else Path(source)
    with Store.open(store_directory()) as store, shown_progress() as progress:
        image = import_rootfs(store, found, reference, request.making("import", progress))
    if request.as_json:
        print_json({"Id": image.id, "Name": str(reference) if reference else None})
    else:
        print(image.id)


def export_filesystem(name: str, target: str | None, compression: str | None, quiet: bool) -> None:
    """Write all files of a container, or else of an image, as a tar."""
    with Store.open(store_directory()) as store, shown_progress(quiet) as progress:
        containers = Containers(store)
        container = containers.find_if_there(name)
        if container is None:
            image = store.find(name)
            with written(target, "a tar") as out, open_compressed(out, compression) as packed:
                export_image(store, image, packed, progress)
            return
        with written(target, "a tar") as out, open_compressed(out, compression) as packed:
            _export_container(containers, container, packed)


def _export_container(containers: Containers, container: Container, out: Output) -> None:
    check = containers.still_there(container)
    write_back_of(containers, container)
    try:
        with containers.compare(container).whole() as whole:
            write_layer(whole, out)
    finally:
        check()
