"""`python -m overlayfs.snapshotter`: the program `overlayfs-snapshotter`."""

from __future__ import annotations

import sys

from .program import main

if __name__ == "__main__":
    sys.exit(main())
