"""The commands for mounts: mount, umount, mounts, stats, which, check; snapshot, snapshots, rollback, fork; and layers
and diff, which also take images."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from overlayfs.cli.app import ERROR, FINDINGS, AsJson, UserXattr, app, store_directory

Mountpoint = Annotated[str, typer.Argument(metavar="MNT", help="The mountpoint.")]
Lowers = Annotated[
    list[str] | None, typer.Option("--lower", "-l", metavar="DIR", help="A lower layer; repeat, top first.")
]


@app.command(short_help="Mount layers, or an image.")
def mount(
    words: Annotated[
        list[str], typer.Argument(metavar="[IMAGE] MNT", help="An image, unless --lower is given; the mountpoint.")
    ],
    lower: Lowers = None,
    upper: Annotated[
        str | None, typer.Option("--upper", "-u", metavar="DIR", help="Takes all changes; needs --work.")
    ] = None,
    work: Annotated[
        str | None,
        typer.Option("--work", "-w", metavar="DIR", help="Empty directory on the upper's filesystem."),
    ] = None,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", "-e", help="Mount writable; changes are discarded at the unmount.")
    ] = False,
    read_only: Annotated[bool, typer.Option("--read-only", "-r", help="Mount read-only.")] = False,
    writable: Annotated[
        bool, typer.Option("--rw", help="For an image: changes go to a container, without --name to a temporary one.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="With --rw: the container, made if it does not exist.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("-o", metavar="OPTIONS", help="Options of mount(8) and the kernel's overlayfs: a,b=c,…"),
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", "-f", help="Return only when it is unmounted.")] = False,
    no_fast_lane: Annotated[
        bool, typer.Option("--no-fast-lane", help="Answer every request by pyfuse3; slower.")
    ] = False,
    poll: Annotated[
        int | None,
        typer.Option(
            "--poll", metavar="US", min=0, max=10_000, help="Await the next request for so many µs before sleeping."
        ),
    ] = None,
) -> None:
    """Mount lower layers, and an upper for changes, as one tree on MNT; or mount an image.

    podman:NAME, docker:NAME and containerd:NAME are images of those engines, read from their storage.

    Without --upper, --ephemeral and --rw the mount is read-only.

    Exit status: 0 the mount is live, 1 it could not be made, 2 wrong usage.
    """
    from overlayfs.cli.mounts.mount import Request
    from overlayfs.cli.mounts.mount import mount as make

    request = Request(
        words=tuple(words),
        lowers=tuple(lower or ()),
        upper=upper,
        work=work,
        ephemeral=ephemeral,
        read_only=read_only,
        options=tuple(options or ()),
        foreground=foreground,
        lane=not no_fast_lane,
        poll_us=poll,
    )
    if len(words) == 2 and not (lower or writable or name) and _is_of_engine(words[0]):
        from overlayfs.cli.mounts.of_engines import mount_of_engine

        mount_of_engine(request)
    elif (len(words) == 2 and not lower) or writable or name is not None:
        from overlayfs.cli.container.mount_image import mount_image

        mount_image(request, writable, name, store_directory())
    else:
        make(request)


def _is_of_engine(name: str) -> bool:
    """Whether the image is an engine's. `docker:cli` may be one of our own store, which then is meant."""
    if not name.startswith(("podman:", "docker:", "containerd:")):
        return False
    from overlayfs.cli.mounts.of_engines import is_in_store

    return not is_in_store(name, store_directory())


@app.command(short_help="Unmount, and wait until all data is written.")
def umount(
    mountpoint: Mountpoint,
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Detach now; those who use the mount keep it until they end.")
    ] = False,
) -> None:
    """Unmount MNT; return when the daemon has written everything and ended.

    Exit status: 0 unmounted, 1 it is in use (the processes are listed) or not an overlayfs mount.
    """
    from overlayfs.cli.mounts.umount import take_down

    take_down(mountpoint, lazy)


@app.command(short_help="List what is mounted.")
def mounts(as_json: AsJson = False) -> None:
    """List the overlayfs mounts: layers, upper, how long they have been up."""
    from overlayfs.cli.mounts.listing import show_mounts

    show_mounts(as_json)


@app.command(short_help="List the layers of an image or a mount.")
def layers(
    name: Annotated[str, typer.Argument(metavar="IMAGE|MNT", help="An image, or where something is mounted.")],
    as_json: AsJson = False,
) -> None:
    """List the layers of an image, bottom first, with what each changed; or those of a mount.

    The layers of a mount are listed top first; `which` uses the same numbers.

    Exit status: 0 listed, 1 an error.
    """
    from overlayfs.cli.mounts.listing import is_mountpoint, show_layers

    if is_mountpoint(name):
        show_layers(name, as_json)
    else:
        from overlayfs.cli.inspect.image_layers import show_image_layers

        show_image_layers(name, as_json, store_directory())


@app.command(short_help="Count the requests of a mount.")
def stats(
    mountpoint: Mountpoint,
    as_json: AsJson = False,
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="SECONDS", min=0.1, help="Repeat every so many seconds, until Ctrl-C."),
    ] = None,
) -> None:
    """Count the requests of each kind that a mount has answered, on which path, and the objects that its daemon holds.

    With the name of a container, as `container stats`.

    Exit status: 0 shown, 1 an error, for example a daemon of a version that does not count.
    """
    from overlayfs.cli.mounts.stats import show_stats

    if as_json and watch is not None:
        raise typer.BadParameter("--json and --watch exclude each other")
    if watch is None and not os.path.lexists(mountpoint):
        from overlayfs.cli.container.describing import is_a_container_among, show_usage

        if is_a_container_among(store_directory(), [mountpoint]):
            show_usage(store_directory(), [mountpoint], as_json=as_json)
            return
    show_stats(mountpoint, as_json, watch)


@app.command(short_help="Tell which layer a file comes from.")
def which(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="In a mount; may be deleted.")],
    as_json: AsJson = False,
) -> None:
    """Tell which layer provides a file, which layers have hidden versions of it, and which one deletes it.

    Exit status: 0 all paths are there, 1 one is not (or an error).
    """
    from overlayfs.cli.mounts.which import show_provenance

    if not show_provenance(paths, as_json):
        raise typer.Exit(ERROR)


SnapshotName = Annotated[str, typer.Argument(metavar="[NAME]", help="The snapshot.", show_default=False)]


@app.command(short_help="Keep the state of a live mount.")
def snapshot(
    words: Annotated[
        list[str], typer.Argument(metavar="[rm] MNT [NAME]", help="The mountpoint; the snapshot, which rm drops.")
    ],
) -> None:
    """Keep the present state of a writable mount, which stays mounted and goes on; prints the snapshot's name.

    Without NAME it gets a number. A file that is open goes on; what is written to it later is not in the snapshot.
    Unmounting keeps snapshots. `snapshot rm MNT NAME` drops one: the tree stays as it is, and its layer is merged into
    the next. A rollback to an older one drops all later ones.

    Exit status: 0 done, 1 an error, and nothing has changed, 2 wrong usage.
    """
    from overlayfs.cli.mounts.snapshots import drop, take

    if words[0] == "rm":  # a mountpoint of that name is ./rm
        if len(words) != 3:
            raise typer.BadParameter("give rm MNT NAME")
        drop(*words[1:])
    elif len(words) <= 2:
        take(*words)
    else:
        raise typer.BadParameter("give [rm] MNT [NAME]")


@app.command(short_help="List the snapshots of a mount.")
def snapshots(mountpoint: Mountpoint, as_json: AsJson = False) -> None:
    """List the snapshots of a mount, the oldest first.

    Exit status: 0 listed, 1 an error.
    """
    from overlayfs.cli.mounts.snapshots import show_snapshots

    show_snapshots(mountpoint, as_json)


@app.command(short_help="Take a live mount back to a snapshot.")
def rollback(
    mountpoint: Mountpoint,
    name: SnapshotName = "",
    drop: Annotated[bool, typer.Option("--drop", help="Drop the snapshot, too, unless a fork uses it.")] = False,
) -> None:
    """Take a mount back to a snapshot, without NAME to the newest, while it stays mounted.

    All changes since are lost, and so are later snapshots. Who has a file open sees it as it was at the snapshot; a
    file that was made since behaves as a deleted one.

    Exit status: 0 done, 1 an error, for example as a program runs in the tree, and nothing has changed.
    """
    from overlayfs.cli.mounts.snapshots import roll_back

    roll_back(mountpoint, name, drop=drop)


@app.command(short_help="Mount a copy that goes its own way.")
def fork(
    mountpoint: Mountpoint,
    new: Annotated[str, typer.Argument(metavar="NEWMNT", help="The mountpoint of the fork.")],
    snapshot: Annotated[
        str, typer.Option("--from", metavar="SNAPSHOT", help="Start from it, not from the present state.")
    ] = "",
) -> None:
    """Mount the tree of MNT a second time, as it is now or was at a snapshot; from then on each goes its own way.

    Without --from a snapshot of MNT is taken. Nothing is copied: the layers are shared, and stay as long as a fork
    needs them. What is written to NEWMNT is thrown away when it is unmounted; `commit NEWMNT` saves it as an image.

    Exit status: 0 the fork is live, 1 an error.
    """
    from overlayfs.cli.mounts.fork import fork as make

    make(mountpoint, new, snapshot)


@app.command(short_help="Show changes.")
def diff(
    tree: Annotated[str, typer.Argument(metavar="TREE", help="A mount, an upper, a container, or an image.")],
    other: Annotated[str | None, typer.Argument(metavar="[IMAGE]", help="The image to compare the first with.")] = None,
    lower: Lowers = None,
    stat: Annotated[bool, typer.Option("--stat", help="Show sizes, and a sum at the end.")] = False,
    patch: Annotated[bool, typer.Option("--patch", "-p", help="Print a patch of the text files.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Include directories of which only the times changed.")
    ] = False,
    user_xattr: UserXattr = False,
    as_json: AsJson = False,
    since: Annotated[
        str | None, typer.Option("--from", metavar="SNAPSHOT", help="Only what was changed after this snapshot.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="SNAPSHOT", help="Only what was changed before this snapshot.")
    ] = None,
) -> None:
    """List what was added (A), modified (M) and deleted (D) against the lower layers.

    TREE may be a mount, a container (write ./NAME for a directory), an upper, or an image, which is compared with
    IMAGE. For an UPPER that is not mounted, name its lowers with --lower; without them only the upper's own marks
    tell A from M. An upper is read as if you had mounted it: as root, give --userxattr for one of an ordinary user or
    one mounted with `-o userxattr`.

    --from and --to name snapshots of a mount or a container (see `overlayfs snapshots`).

    Exit status: 0 whether there are changes or not, 1 an error.
    """
    from overlayfs.cli.inspect.diff import Form, show_changes

    if stat + patch + as_json > 1:
        raise typer.BadParameter("--stat, --patch and --json exclude each other")
    form = Form.STAT if stat else Form.PATCH if patch else Form.JSON if as_json else Form.NAMES
    if other is None:
        show_changes(tree, lower, form, everything, user_xattr=user_xattr, since=since, until=until)
        return
    if lower or user_xattr or since or until:
        raise typer.BadParameter("--lower, --userxattr, --from and --to are not for images")
    from overlayfs.cli.inspect.image_diff import show_image_changes

    show_image_changes(tree, other, form, everything, store_directory())


@app.command(short_help="Find and repair damage of a crash.")
def check(
    upper: Annotated[str, typer.Argument(metavar="UPPER", help="An upper directory that is not mounted.")],
    work: Annotated[str, typer.Argument(metavar="WORK", help="Its workdir.")],
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired; user data is kept.")] = False,
    user_xattr: UserXattr = False,
    as_json: AsJson = False,
) -> None:
    """Find the traces of a crash or of tampering in an upper and its workdir.

    The upper is read as if you had mounted it: as root, give --userxattr for one of an ordinary user or one mounted
    with `-o userxattr`.

    Exit status: 0 nothing found or all repaired, 1 an error, 3 something is left to repair.
    """
    from overlayfs.cli.mounts.check import show_findings

    if not show_findings(upper, work, repair, as_json, user_xattr=user_xattr):
        raise typer.Exit(FINDINGS)
