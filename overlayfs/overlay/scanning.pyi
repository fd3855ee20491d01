"""What Python sees of scanning.pyx."""

from ..tree.marks import Opacity, Spelling
from .merge import Names

def scan(dir_fd: int, opacity: Opacity, spelled: Spelling, quietly: bool = False) -> Names: ...
