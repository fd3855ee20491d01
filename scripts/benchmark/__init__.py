"""Compares overlayfs-mount with the other overlay filesystems on one real tree; started by scripts/bench."""
