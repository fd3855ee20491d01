"""One suite of cases as data, played on the engine, on our mount and on the kernel's overlayfs."""
