"""The commands for this machine and its container engines: doctor, setup."""

from __future__ import annotations

from typing import Annotated

import typer

from overlayfs.cli.app import FINDINGS, AsJson, app, store_directory


@app.command(short_help="Tell whether mounts work on this machine.")
def doctor(as_json: AsJson = False) -> None:
    """Look at the kernel, /dev/fuse, fusermount3, user namespaces, ids, xattrs and security modules, and try a mount.

    Each finding that limits mounts comes with what it costs and what to do.

    Exit status: 0 a mount works, 3 it does not.
    """
    from overlayfs.cli.host.doctor import examine

    if not examine(as_json):
        raise typer.Exit(FINDINGS)


@app.command(short_help="Let podman run the images of the store.")
def share(
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="podman, which buildah and CRI-O follow.")],
    take_back: Annotated[bool, typer.Option("--undo", help="Hide the images again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only show what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Make the store an additional image store of your ENGINE: it runs the images read-only, without a copy.

    The change of storage.conf is shown, and you are asked before it is made. What is pulled, loaded, built or removed
    later is seen by the engine too. Layers on which it has containers or images stay in the store until it has removed
    these. An ordinary user's store needs `overlayfs setup podman --user`.

    Exit status: 0 done, or nothing to do; 1 an error.
    """
    from overlayfs.cli.host.sharing import share_images, take_images_back

    if engine != "podman":
        raise typer.BadParameter(f"{engine}: images are shared with podman")
    (take_images_back if take_back else share_images)(store_directory(), dry_run=dry_run, confirmed=yes)


@app.command(short_help="Make a container engine use our mounts.")
def setup(
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="podman, buildah, docker or containerd.")],
    for_user: Annotated[bool, typer.Option("--user", help="Your own engine, not the machine's.")] = False,
    take_back: Annotated[bool, typer.Option("--undo", help="Put the settings of before back.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only show what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Write the few lines that make ENGINE use overlayfs-mount into its configuration.

    The lines are shown, a mount is tried, and you are asked before anything is written. The file as it was is kept
    beside it as FILE.before-overlayfs.

    Exit status: 0 done, or nothing to do; 1 an error.
    """
    from overlayfs.cli.host.engines import Engine
    from overlayfs.cli.host.setup import set_up, undo

    try:
        chosen = Engine(engine)
    except ValueError:
        raise typer.BadParameter(f"{engine}: engines are {', '.join(Engine)}") from None
    (undo if take_back else set_up)(chosen, for_user=for_user, dry_run=dry_run, confirmed=yes)
