"""Transport: serves an overlay through the kernel's FUSE. Knows nothing of whiteouts."""
