"""Our mount in real container engines, beside the kernel's overlayfs in the same engines."""
