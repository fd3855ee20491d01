"""`overlayfs`, and `python -m overlayfs`: the program, quiet when Ctrl-C comes while it is being loaded."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the program; the exit status."""
    try:
        from overlayfs.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
