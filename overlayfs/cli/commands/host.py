"""The commands for this machine and its container engines: doctor, setup."""

from __future__ import annotations

from typing import Annotated

import typer

from overlayfs.cli.app import FINDINGS, AsJson, app


@app.command(short_help="Tell whether mounts work on this machine.")
def doctor(as_json: AsJson = False) -> None:
    """Look at the kernel, /dev/fuse, fusermount3, user namespaces, ids, xattrs and security modules, and try a mount.

    Each finding that limits mounts comes with what it costs and what to do.

    Exit status: 0 a mount works, 3 it does not.
    """
    from overlayfs.cli.host.doctor import examine

    if not examine(as_json):
        raise typer.Exit(FINDINGS)


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
