"""What is mounted: stacks of layers of a real tree, the compiler's headers and big files.

Neighbours: scripts/make-layers makes the real tree; trial.py mounts the stacks. Runs before any
timing.
"""

import os
import random
import shutil
import stat
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from . import machine

PAGE = 4096
MIB = 1 << 20
OPAQUE = "trusted.overlay.opaque"
IMAGE_WHITEOUT = ".wh."
IMAGE_OPAQUE = ".wh..wh..opq"
SOURCE_DIRECTORY = "opt/bench/source"
INCLUDE_DIRECTORY = "opt/bench/include"
SMALL_DIRECTORY = "small"
BIG_FILE = "big.bin"
HEADER_PACKAGES = ("libc6-dev", "linux-libc-dev")
SOURCE_FILES = 8
SOURCE = """#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/input.h>
#include <linux/perf_event.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>
int part_%d(void) { return (int)(sizeof(struct stat) > 0) * %d; }
"""
MAIN_SOURCE = 'int main(void) { printf("%%d\\n", %s); return 0; }\n'


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; bytes and counts."""

    big: int
    small_files: int
    openings: int
    random_reads: int
    appended_files: int
    sequential_write: int
    small_write: int
    commits: int
    many_files: int


FULL = Sizes(512 * MIB, 800, 10_000, 50_000, 60, 512 * MIB, 117 * MIB, 2_000, 100_000)
QUICK = Sizes(64 * MIB, 200, 2_000, 5_000, 60, 64 * MIB, 8 * MIB, 200, 10_000)


@dataclass(frozen=True, slots=True)
class Stack:
    """Lower layers, top first; `plain_lowers` show the same tree without marks, for who cannot read them."""

    lowers: tuple[Path, ...]
    plain_lowers: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Stacks:
    """The three stacks of the rows, and what checking needs to know of them."""

    tree: Stack
    data: Stack
    many: Stack
    big_checksum: int


def copy_tree(source: Path, target: Path) -> None:
    """A copy with everything: links, devices, owners, times, xattrs."""
    command = ["cp", "-a", "--", f"{source}/.", str(target)]
    target.mkdir(parents=True)
    subprocess.run(command, env=machine.ENVIRONMENT, check=True)


def delete(path: Path) -> None:
    """Delete a file or a tree, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def drop_devices(layer: Path) -> None:
    """Delete device nodes: images have none, and fuse-overlayfs cannot delete those without a driver."""
    for at, _, names in os.walk(layer):
        for path in (Path(at, name) for name in names):
            if not is_whiteout(path) and stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
                path.unlink()


def is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(directory: Path) -> bool:
    return OPAQUE in os.listxattr(directory) and os.getxattr(directory, OPAQUE) == b"y"


def respell_marks(layer: Path) -> None:
    """Marks as images spell them become the kernel's, which every peer but unionfs-fuse reads."""
    for at, _, names in os.walk(layer):
        for name in names:
            if name == IMAGE_OPAQUE:
                Path(at, name).unlink()
                os.setxattr(at, OPAQUE, b"y")
            elif name.startswith(IMAGE_WHITEOUT):
                Path(at, name).unlink()
                os.mknod(Path(at, name.removeprefix(IMAGE_WHITEOUT)), stat.S_IFCHR, 0)


def marks(layer: Path) -> tuple[list[Path], list[Path]]:
    """(whiteouts, opaque directories) of a layer, relative to it."""
    whiteouts, opaque = [], []
    for at, _, names in os.walk(layer):
        whiteouts += [Path(at, name).relative_to(layer) for name in names if is_whiteout(Path(at, name))]
        if is_opaque(Path(at)):
            opaque.append(Path(at).relative_to(layer))
    return whiteouts, opaque


def apply_marks(layers: list[Path]) -> None:
    """Delete what the marks hide, and the marks: the layers (top first) then merge to the same tree."""
    for index, layer in enumerate(layers):
        whiteouts, opaque = marks(layer)
        for below in layers[index + 1 :]:
            for hidden in (*whiteouts, *opaque):
                delete(below / hidden)
        for whiteout in whiteouts:
            delete(layer / whiteout)
        for directory in opaque:
            os.removexattr(layer / directory, OPAQUE)


def compiler_says(option: str) -> str:
    command = ["gcc", option]
    return subprocess.run(command, env=machine.ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()


def add_headers(layer: Path) -> None:
    """The C library's, the kernel's and the compiler's headers, as Debian's packages have them."""
    command = ["dpkg", "--listfiles", *HEADER_PACKAGES]
    listed = subprocess.run(command, env=machine.ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    target = layer / INCLUDE_DIRECTORY
    for name in listed.splitlines():
        if name.startswith("/usr/include/") and Path(name).is_file():
            copy = target / Path(name).relative_to("/usr/include")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, copy)
    shutil.copytree(compiler_says("-print-file-name=include"), target / "compiler", symlinks=True)


def include_arguments(root: Path) -> list[str]:
    """Compiler arguments that take every header from the tree at `root`."""
    include = root / INCLUDE_DIRECTORY
    places = (include / "compiler", include / compiler_says("-print-multiarch"), include)
    return ["-nostdinc", *(argument for place in places for argument in ("-isystem", str(place)))]


def add_source(layer: Path) -> None:
    """A small C program of several files that prints the sum of their numbers."""
    directory = layer / SOURCE_DIRECTORY
    directory.mkdir(parents=True)
    for number in range(SOURCE_FILES):
        Path(directory, f"part{number}.c").write_text(SOURCE % (number, number))
    declarations = "".join(f"int part_{number}(void);\n" for number in range(SOURCE_FILES))
    total = " + ".join(f"part_{number}()" for number in range(SOURCE_FILES))
    Path(directory, "main.c").write_text("#include <stdio.h>\n" + declarations + MAIN_SOURCE % total)


def add_big_file(layer: Path, size: int) -> int:
    """A file of stamped pages (see workloads.py); returns its CRC-32."""
    block = bytearray(random.Random(1).randbytes(MIB))
    value = 0
    with Path(layer, BIG_FILE).open("wb") as file:
        for number in range(size // MIB):
            for page in range(MIB // PAGE):
                struct.pack_into("<Q", block, page * PAGE, number * (MIB // PAGE) + page)
            file.write(block)
            value = zlib.crc32(block, value)
    return value


def add_small_files(layer: Path, count: int, sources: list[Path]) -> None:
    """`count` small files of a real tree, flattened into directories of a hundred."""
    files = []
    for source in sources:
        for at, _, names in os.walk(source):
            paths = (Path(at, name) for name in sorted(names))
            files += [
                path for path in paths if stat.S_ISREG(path.lstat().st_mode) and 0 < path.lstat().st_size <= 65536
            ]
    for number in range(count):
        target = layer / SMALL_DIRECTORY / f"{number // 100:02}" / f"{number:04}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[number % len(files)], target)


def add_many_files(layer: Path, count: int) -> None:
    """`count` empty files in directories of a thousand."""
    for number in range(count):
        if number % 1000 == 0:
            directory = layer / f"{number // 1000:03}"
            directory.mkdir(parents=True)
        os.close(os.open(directory / f"file-{number:06}", os.O_CREAT | os.O_WRONLY, 0o644))


def copy_layers(place: Path, real: list[Path]) -> list[Path]:
    """Copies below `place` of the layers of a real tree, as every overlay filesystem but unionfs-fuse reads them."""
    copies = [place / f"real{index}" for index in range(len(real))]
    for source, copy in zip(real, copies, strict=True):
        copy_tree(source, copy)
        drop_devices(copy)
        respell_marks(copy)
    return copies


def build(place: Path, real: list[Path], sizes: Sizes) -> Stacks:
    """Every stack below `place` (an empty directory), from the layers of a real tree, top first."""
    plain = copies = copy_layers(place, real)
    if any(any(marks(copy)) for copy in copies):
        plain = [place / f"plain{index}" for index in range(len(real))]
        for source, copy in zip(copies, plain, strict=True):
            copy_tree(source, copy)
        apply_marks(plain)
    tools, data, many = (place / name for name in ("tools", "data", "many"))
    for layer in (tools, data, many):
        layer.mkdir()
    add_headers(tools)
    add_source(tools)
    big_checksum = add_big_file(data, sizes.big)
    add_small_files(data, sizes.small_files, [tools, *copies])
    add_many_files(many, sizes.many_files)
    return Stacks(
        tree=Stack((tools, *copies), (tools, *plain)),
        data=Stack((data, tools, *copies), (data, tools, *plain)),
        many=Stack((many,), (many,)),
        big_checksum=big_checksum,
    )
