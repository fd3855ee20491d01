"""How does a program fork a live mount?

A fork is a mount of its own, which starts from a snapshot of the other and shares its layers; see overlay.forks. Its
changes are thrown away when it is unmounted, as those of an ephemeral mount are. A refusal is a MountError of one line.
"""

from __future__ import annotations

import os
from pathlib import Path

from overlayfs._typing import Any, NamedTuple

from ..overlay import forking, options
from ..overlay.options import MountError, OverlayOptions
from ..tree import marks
from ..tree.mount_table import MountEntry, mount_entries
from . import commanding
from .status import read_facts


class Plan(NamedTuple):
    """What to mount, and the directory to throw away with the mount."""

    options: OverlayOptions
    scratch: Path


def prepare(mountpoint: bytes, snapshot: str = "") -> Plan:
    """A fork that starts from a snapshot, or from the present state, of which a snapshot is taken then."""
    where = os.fsdecode(mountpoint)
    entry = _entry_at(mountpoint)
    facts = read_facts(mountpoint)
    if "options" not in facts:
        raise MountError(f"{where}: its daemon is of another version of overlayfs")
    if facts["upper"] is None or facts["read_only"]:
        raise MountError(f"{where}: a read-only mount has no snapshots to fork it from; mount its layers once more")
    if f"user_id={os.geteuid()}".encode() not in entry.filesystem_options.split(b","):
        raise MountError(f"{where}: it is another user's mount, who alone can fork it")
    wanted, prefix = _options(facts), os.fsencode(facts["xattr_prefix"])
    upper, work = os.fsencode(facts["upper"]), os.fsencode(facts["work"])
    name = snapshot or commanding.take_snapshot(mountpoint)
    try:
        made = forking.make(upper, work, name, prefix)
    except MountError as error:
        raise MountError(f"{where}: {error}") from None
    except OSError as error:
        raise MountError(f"{where}: {commanding.reason_of(error, name)}") from None
    wanted = wanted._replace(upper=os.path.join(made, forking.UPPER), work=os.path.join(made, forking.WORK))
    return Plan(wanted, Path(os.fsdecode(made)))


def _entry_at(mountpoint: bytes) -> MountEntry:
    found = [entry for entry in mount_entries() if entry.mountpoint == os.path.realpath(mountpoint)]
    if not found:
        raise MountError(f"{os.fsdecode(mountpoint)}: nothing is mounted here")
    return found[-1]


def _options(facts: dict[str, Any]) -> OverlayOptions:
    """Those of the other mount: what its layers hold must be read, and written, as there."""
    lowers, data_lowers = (tuple(map(os.fsencode, facts[key])) for key in ("lowers", "data_lowers"))
    is_user = facts["xattr_prefix"] == marks.USER.decode()
    told = {**facts["options"], "user_xattr": is_user, "whiteout": facts["whiteout"]}
    return options.from_facts(told, OverlayOptions(lowers=lowers, data_lowers=data_lowers))
