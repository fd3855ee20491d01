"""`tag`, `rmi`, `prune`, `verify`: name and remove images, clean up the store, find damage."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace

from overlayfs.cli.app import store_directory
from overlayfs.cli.asking import confirm
from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.output import Cell, Lines, format_size, print_json, safe
from overlayfs.cli.progress import shown_progress
from overlayfs.image.oci.errors import ImageError, InUseError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.pruning import PruneReport, Steps, prune, prune_held, remove_image
from overlayfs.image.store.sharing import Shared, Sharing, deduplicate
from overlayfs.image.store.store import Store


def add_name(name: str, new: str) -> None:
    reference = Reference.parse(new)
    with Store.open(store_directory()) as store:
        image = store.find(name)
        store.tag(image.root or image.descriptor, reference)


def remove_images(names: Sequence[str], force: bool, as_json: bool) -> bool:
    """Remove names and everything that only they needed; if others work in the store, the latter is left to `prune`.

    Removes every name it can and reports the rest on standard error; whether all are gone.
    """
    gone: list[str] = []
    is_done = True
    with Store.open(store_directory()) as store:
        for name in names:
            try:
                gone += remove_image(store, name, force=force)
            except ImageError as error:
                print(f"overlayfs: {safe(str(error))}", file=sys.stderr)
                is_done = False
        try:
            report = _prune_after(store) if gone else PruneReport()
        except ImageError as error:  # of something else in the store
            print(f"overlayfs: no space was freed: {safe(str(error))}", file=sys.stderr)
            report, is_done = PruneReport(), False
    if as_json:
        print_json({"Untagged": gone, "SpaceReclaimed": report.freed})
        return is_done
    for word in gone:
        print(f"Removed: {word}")
    if report.freed:
        print(f"Freed: {format_size(report.freed)}")
    return is_done


def _prune_after(store: Store) -> PruneReport:
    try:
        with store.alone(patience_s=0):
            return prune_held(store, unnamed=False, leftovers=False, steps=Steps.ALL)
    except InUseError:
        return PruneReport()


RemoveCaches = Callable[[Store, bool], int]
"""Removes what builds keep for later ones, or only counts its bytes (in a dry run)."""


def prune_store(
    named: bool, force: bool, dry_run: bool, share: str | None, caches: RemoveCaches | None, as_json: bool
) -> None:
    """Remove unused objects, with `caches` those of builds too; asks the user before it removes named images. `share`
    is a value of Sharing."""
    with Store.open(store_directory()) as store:
        if named and not force and not dry_run:
            _confirm(prune(store, named=True, dry_run=True))
        report = _prune(store, named, dry_run, caches)
        shared = None if share is None else _share(store, Sharing(share))
    if as_json:
        counts = {} if shared is None else {"FilesShared": shared.files, "BytesShared": shared.size}
        print_json(_document(report) | counts)
        return
    _print_report(report, "Would remove" if dry_run else "Removed")
    if shared is not None:
        print(f"Shared {shared.files} files: {format_size(shared.size)}")


def _prune(store: Store, named: bool, dry_run: bool, caches: RemoveCaches | None) -> PruneReport:
    with store.alone():
        steps = Steps.OF_IMAGES if caches is None else Steps.NONE
        report = prune_held(store, named=named, dry_run=dry_run, steps=steps)
        return report if caches is None else replace(report, freed=report.freed + caches(store, dry_run))


def _share(store: Store, sharing: Sharing) -> Shared:
    with store.alone() if sharing is Sharing.HARD_LINK else nullcontext():
        try:
            return deduplicate(store, sharing)
        except OSError as error:
            if sharing is Sharing.REFLINK and error.errno == errno.EOPNOTSUPP:
                raise CommandError(f"{store.path}: its filesystem has no reflinks: try --share hardlink") from error
            raise


def _confirm(report: PruneReport) -> None:
    if not report.images:
        return
    confirm(
        f"These images are used by no container: {', '.join(report.images)}\nRemove them?",
        unattended="--all removes named images: without a terminal to confirm that, give --force",
        refused="nothing was removed",
    )


def _document(report: PruneReport) -> dict[str, object]:
    """With docker's names (ImagePruneReport) where there are any."""
    return {
        "ImagesDeleted": list(report.images),
        "Blobs": report.blobs,
        "Layers": report.layers,
        "BuildSteps": report.steps,
        "Leftovers": report.leftovers,
        "SpaceReclaimed": report.freed,
    }


def _print_report(report: PruneReport, verb: str) -> None:
    for name in report.images:
        print(f"{verb}: {name}")
    print(
        f"{verb} {report.blobs} blobs, {report.layers} layers, {report.steps} cached steps of builds and "
        f"{report.leftovers} remains of interrupted work: {format_size(report.freed)}"
    )


def show_damage(names: Sequence[str], repair: bool, as_json: bool) -> bool:
    """Verify the store; whether nothing is damaged, or all damage was removed."""
    from overlayfs.image.store.verify import mend, verify

    with ExitStack() as stack:
        store = stack.enter_context(Store.open(store_directory()))
        if repair:  # so that exactly the damage that was found is removed
            stack.enter_context(store.alone())
        findings = verify(store, names, stack.enter_context(shown_progress()))
        mended = mend(store, findings) if repair else []
    if as_json:
        print_json(
            [{"what": finding.what, "problem": finding.problem, "mended": finding in mended} for finding in findings]
        )
        return len(mended) == len(findings)
    lines = Lines()
    for finding in findings:
        done = " (removed: load or pull it again)" if finding in mended else ""
        lines.print(Cell(safe(finding.what), "red"), Cell(safe(f": {finding.problem}{done}")))
    return len(mended) == len(findings)
