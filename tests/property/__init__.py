"""Model-based tests: the same random steps on ours, a plain directory and the kernel's overlayfs."""
