"""The commands: `overlayfs` for people, `overlayfs-mount` for engines and mount(8).

Everything below is wired here; nothing imports this package.  Each command is one module, and the
mount program's start imports none of the others.
"""
