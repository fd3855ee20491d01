"""A disk that surely forgets: names and attributes are on it at once, a file's content only once that was synced.

It is a model of the worst that ext4 with delayed allocation does.  Real file systems write content sooner where
memory is short or somebody calls sync(2); what this one forgets depends on nothing but the calls that were made.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path


class ForgetfulDisk:
    """The content that the regular files beneath `root` have on the disk, by inode number."""

    def __init__(self, root: Path) -> None:
        """All that is there now is on the disk."""
        self._root = root
        self.keep_all()

    def keep_all(self) -> None:
        """The file system is synced."""
        self._kept = {path.stat().st_ino: path.read_bytes() for path in self._files()}

    def keep(self, descriptor: int) -> None:
        """The file is synced: whatever it holds now is on the disk."""
        seen = os.fstat(descriptor)
        if stat.S_ISREG(seen.st_mode):
            self._kept[seen.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def lose_power(self) -> None:
        """Every file has the content that is on the disk, which is nothing if it was never synced."""
        for path in self._files():
            path.write_bytes(self._kept.get(path.stat().st_ino, b""))

    def _files(self) -> Iterator[Path]:
        return (
            Path(parent, name)
            for parent, _, names in os.walk(self._root)
            for name in names
            if stat.S_ISREG(os.lstat(Path(parent, name)).st_mode)
        )
