"""Layers that one implementation has written, read by the other: ours and the kernel's overlayfs."""
