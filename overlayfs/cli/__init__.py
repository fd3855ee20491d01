"""The commands: `overlayfs` for people (`main`), `overlayfs-mount` for engines and mount(8) (`mount_program`).

All floors are wired together here; nothing imports this package. `commands` declares the words of the commands;
their work is in `mounts`, `store`, `inspect` and `container`, one module a command, imported when it is called.
The start of the mount program imports none of them.
"""
