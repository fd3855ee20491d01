"""What is done to a mount that only reads it: the runs and checks of the reading rows.

Neighbours: rows.py puts them into the table, trial.py gives them a mount. A run returns seconds; checks
are outside it.
"""

import hashlib
import subprocess
from pathlib import Path

from . import machine
from .layers import BIG_FILE, PAGE, SOURCE_DIRECTORY, SOURCE_FILES, include_arguments
from .trial import Trial

NEEDLE = "GNU General Public License"
MODULES = (
    "argparse asyncio calendar cProfile concurrent.futures configparser csv ctypes curses dataclasses "
    "decimal difflib doctest email.mime.multipart email.parser filecmp fractions ftplib getpass gettext "
    "gzip hashlib hmac html.parser http.client http.cookiejar http.server imaplib importlib.metadata "
    "inspect ipaddress json logging.config logging.handlers lzma mailbox mimetypes "
    "multiprocessing.managers multiprocessing.pool optparse pathlib pdb pickle platform plistlib poplib "
    "pprint profile pydoc queue random sched secrets selectors shelve shlex shutil smtplib socketserver "
    "sqlite3 ssl statistics string subprocess tarfile tempfile textwrap timeit tokenize tracemalloc "
    "typing unittest.mock urllib.request urllib.robotparser uuid wave webbrowser "
    "wsgiref.simple_server xml.dom.minidom xml.etree.ElementTree xml.sax xmlrpc.client zipapp zipfile "
    "zoneinfo"
)
IMPORTER = """
import sys, time
begin = time.perf_counter()
for name in sys.argv[1].split():
    __import__(name)
print(time.perf_counter() - begin)
"""
TWO_FINDS = 'find "$1" >"$2.1" & first=$!; find "$1" >"$2.2" & second=$!; wait $first && wait $second'
FIND_CAT = 'find "$1" -type f -print0 | xargs -0 cat >/dev/null'
TAR_COUNT = 'tar --hard-dereference -C "$1" -cf - . | wc -c'


def run_find(trial: Trial) -> float:
    seconds = trial.command("find", str(trial.root))
    trial.expect("entries", trial.output_text().count("\n"), trial.expected.entries)
    return seconds


def run_two_finds(trial: Trial) -> float:
    seconds = trial.command("bash", "-c", TWO_FINDS, "bash", str(trial.root), str(trial.output))
    for number in (1, 2):
        lines = trial.output.with_suffix(f".{number}").read_bytes().count(b"\n")
        trial.expect("entries", lines, trial.expected.entries)
    return seconds


def long_listing(text: str) -> tuple[int, int]:
    """(lines, bytes in all regular files) of what `ls -lR` printed."""
    lines = text.splitlines()
    return len(lines), sum(int(line.split()[4]) for line in lines if line.startswith("-"))


def run_ls(trial: Trial) -> float:
    seconds = trial.command("ls", "-lR", str(trial.root))
    trial.expect("listing", long_listing(trial.output_text()), trial.expected.long_listing)
    return seconds


def build_walker(program: Path) -> None:
    source = Path(__file__).with_name("walk.c")
    subprocess.run(["gcc", "-O2", "-o", program, source], env=machine.ENVIRONMENT, check=True)


def walk(trial: Trial) -> tuple[float, int, int]:
    """(seconds, entries, regular files with capabilities) of walk.c."""
    seconds = trial.command(str(trial.bench.walker), str(trial.root))
    entries, capable = map(int, trial.output_text().split())
    return seconds, entries, capable


def run_walk(trial: Trial) -> float:
    seconds, *found = walk(trial)
    trial.expect("entries and capabilities", found, [trial.expected.entries, trial.expected.capable])
    return seconds


def run_tar(trial: Trial) -> float:
    seconds = trial.command("bash", "-o", "pipefail", "-c", TAR_COUNT, "bash", str(trial.root))
    trial.expect("archive", int(trial.output_text()), trial.expected.archive_bytes)
    return seconds


def run_cat(trial: Trial) -> float:
    return trial.command("bash", "-o", "pipefail", "-c", FIND_CAT, "bash", str(trial.root))


def check_contents(trial: Trial) -> None:
    trial.expect("contents", tuple(trial.ask("digest", root=str(trial.root))), trial.expected.contents)


def matches(text: str) -> str:
    """One digest of grep's lines, whose order is the directories'."""
    return hashlib.sha256("\n".join(sorted(text.splitlines())).encode(errors="surrogateescape")).hexdigest()


def run_grep(trial: Trial) -> float:
    seconds = trial.command("grep", "-rF", NEEDLE, str(trial.root))
    trial.expect("matches", matches(trial.output_text()), trial.expected.matches)
    return seconds


def run_open(trial: Trial) -> float:
    paths = [trial.path(name) for name in trial.expected.small_paths]
    seconds, total = trial.client("open_read_close", paths=paths, times=trial.sizes.openings)
    trial.expect("bytes", total, trial.expected.small_bytes)
    return seconds


def run_imports(trial: Trial) -> float:
    """Inside a chroot, by the image's own interpreter; its start does not count."""
    trial.command("chroot", str(trial.root), "/usr/bin/python3", "-I", "-B", "-c", IMPORTER, MODULES)
    return float(trial.output_text())


def run_gcc(trial: Trial) -> float:
    source = trial.root / SOURCE_DIRECTORY
    parts = sorted(str(path) for path in source.glob("*.c"))
    program = str(source / "program")
    seconds = trial.command("gcc", "-O1", *include_arguments(trial.root), "-o", program, *parts)
    trial.command(program)
    trial.expect("sum", int(trial.output_text()), sum(range(SOURCE_FILES)))
    return seconds


def run_sequential_read(trial: Trial) -> float:
    seconds, total = trial.client("read_sequentially", path=trial.path(BIG_FILE))
    trial.expect("bytes", total, trial.sizes.big)
    return seconds


def check_big_file(trial: Trial) -> None:
    found = trial.ask("file_checksum", path=trial.path(BIG_FILE))
    trial.expect("contents", found, trial.bench.stacks.big_checksum)


def run_random_read(trial: Trial) -> float:
    pages = trial.random.choices(range(trial.sizes.big // PAGE), k=trial.sizes.random_reads)
    seconds, right = trial.client("read_randomly", path=trial.path(BIG_FILE), pages=pages)
    trial.expect("pages", right, len(pages))
    return seconds
