"""Times container engines on overlayfs-mount, on fuse-overlayfs and on the kernel's overlayfs."""
