"""`overlayfs snapshot`, `snapshots`, `rollback`: the states of a live mount that it can go back to."""

from __future__ import annotations

import time

from overlayfs.cli.mounts.listing import status_of
from overlayfs.cli.output import Cell, Lines, print_json, print_table
from overlayfs.fuse import commanding


def take(mountpoint: str, name: str = "") -> None:
    """Take a snapshot and print its name."""
    entry, _ = status_of(mountpoint)
    Lines().print(Cell(commanding.take_snapshot(entry.mountpoint, name)))


def drop(mountpoint: str, name: str) -> None:
    """Drop a snapshot."""
    entry, _ = status_of(mountpoint)
    commanding.drop_snapshot(entry.mountpoint, name)


def show_snapshots(mountpoint: str, as_json: bool) -> None:
    """List the snapshots, the oldest first."""
    _, status = status_of(mountpoint)
    found = [layer for layer in status.document.get("snapshots", []) if layer["snapshot"] is not None]
    if as_json:
        print_json(found)
        return
    rows = [[Cell(str(one["snapshot"])), Cell(_local(one["taken_at"]), "dim"), Cell(one["layer"])] for one in found]
    print_table(("SNAPSHOT", "TAKEN", "LAYER"), rows)


def _local(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def roll_back(mountpoint: str, name: str, *, drop: bool) -> None:
    """Take the mount back to a snapshot."""
    entry, _ = status_of(mountpoint)
    commanding.roll_back(entry.mountpoint, name, drop=drop)
