"""A FUSE overlay filesystem for container images, in Python.

    import overlayfs

    with overlayfs.mount(["layers/app", "layers/base"], upper="changes", work="scratch") as m:
        print(os.listdir(m.path))
    with overlayfs.mount_image("app:1", ephemeral=True) as m:
        ...

The package, from the bottom up; each floor imports only from those before it:

- `tree`: one directory tree on disk: system calls, marks (whiteouts and their kin), metadata.
- `overlay`: the merged tree: lookup, listing, copy-up, rename. Synchronous; testable without a mount.
- `fuse`: transport: pyfuse3 handlers over the engine, mounting, the daemon.
- `image`: OCI images, in rooms: `oci`, `tar`, `layer`, `store`, `make`, `registry`, `archive`, `inspect`.
- `container`: writable layers on images, and the programs that run in them.
- `snapshotter`: the program `overlayfs-snapshotter`, through which containerd mounts its images with ours.
- `cli`: the programs `overlayfs` and `overlayfs-mount`.

Glossary: a *lower* layer is read-only, the *upper* takes all changes, the *work* directory is where they are built
before they are published. A *whiteout* in a layer hides a name of the layers below; an *opaque* directory hides all
they have in it. *Copy-up* brings a lower file into the upper before it changes; a *metacopy* is one without its data.
A *redirect* says where in the lower layers a renamed directory's contents are; an *origin* which lower file was copied.
"""

from ._version import __version__

TYPE_CHECKING = False  # importing typing takes a tenth of a start

if TYPE_CHECKING:
    from .api import Mount, mount, mount_image
    from .overlay.options import FsyncPolicy, MountError, OverlayOptions, RedirectDir, WhiteoutFormat

__all__ = [
    "FsyncPolicy",
    "Mount",
    "MountError",
    "OverlayOptions",
    "RedirectDir",
    "WhiteoutFormat",
    "__version__",
    "mount",
    "mount_image",
]


def __getattr__(name: str) -> object:
    """Load the API when it is first used: the mount program's start must not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api
    from .overlay import options

    return getattr(api if name in ("Mount", "mount", "mount_image") else options, name)
