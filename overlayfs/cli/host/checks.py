"""The checks of `overlayfs doctor`. Each reads one fact of the machine; the last one makes a real mount."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final

from overlayfs.cli.app import store_directory
from overlayfs.cli.host.trial import (
    PROGRAM,
    SYSTEM_PATH,
    installed_program,
    kernel_s_first_request,
    mount_command,
    obstacle_for_others,
    try_mount,
)
from overlayfs.cli.mounts.live import CommandError
from overlayfs.fuse.abi import FUSE_PASSTHROUGH, IN_HEADER, INIT_IN, init_flags
from overlayfs.image.layer.subordinate_ids import subordinate_ids
from overlayfs.image.store.store import default_directory
from overlayfs.overlay.options import MountError

_OLDEST_KERNEL: Final = (5, 6)
_PASSTHROUGH_KERNEL: Final = (6, 9)


class State(StrEnum):
    """OK; LIMITED: mounts work without it, at the cost that is named; BAD: they do not."""

    OK = "ok"
    LIMITED = "limited"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Check:
    """What was found; where that is not all that mounts want, what does not work (`cost`) and what to do (`advice`)."""

    name: str
    state: State
    found: str
    cost: str = ""
    advice: str = ""


def all_checks() -> list[Check]:
    """Every check, in the order in which they are shown; the trial mount is the last."""
    return [check() for check in _CHECKS]


def _kernel() -> Check:
    release, request = os.uname().release, _first_request()
    found = f"Linux {release}"
    if kernel_version(release) < _OLDEST_KERNEL:
        return Check("kernel", State.BAD, found, "no mounts", "boot Linux 5.6 or newer")
    if request:
        major, minor = INIT_IN.unpack_from(request, IN_HEADER.size)[:2]
        found += f", FUSE {major}.{minor}"
    return Check("kernel", State.OK, found)


def kernel_version(release: str) -> tuple[int, int]:
    """(6, 18) of `6.18.44-amd64`; (0, 0) of what does not look like a release."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


@cache
def _first_request() -> bytes:
    """Empty where no mount can be made: the trial mount says why."""
    try:
        return kernel_s_first_request()
    except (OSError, MountError):
        return b""


def _passthrough() -> Check:
    name, request = "passthrough", _first_request()
    cost = "passthrough=on has no effect: the daemon reads and writes all data itself"
    if request and not init_flags(request) & FUSE_PASSTHROUGH:
        advice = "boot Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH=y"
        return Check(name, State.LIMITED, "the kernel does not offer it", cost, advice)
    if kernel_version(os.uname().release) < _PASSTHROUGH_KERNEL:
        return Check(name, State.LIMITED, "the kernel is older than 6.9", cost, "boot Linux 6.9 or newer")
    if os.geteuid():
        return Check(name, State.LIMITED, "only root's mounts may use it", cost, "mount as root")
    return Check(name, State.OK, "available with passthrough=on (off by default)")


def _device() -> Check:
    path = "/dev/fuse"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        advice = "modprobe fuse; in a container: --device /dev/fuse"
        if isinstance(error, PermissionError):
            advice = f"chmod 666 {path}; in a container, allow the device in its cgroup"
        return Check(path, State.BAD, error.strerror or "", "no mounts", advice)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o006 != 0o006:
        return Check(path, State.LIMITED, f"opens, mode {mode:04o}", "only some users can mount", f"chmod 666 {path}")
    return Check(path, State.OK, "opens")


def _fusermount() -> Check:
    found = shutil.which("fusermount3") or shutil.which("fusermount3", path=SYSTEM_PATH)
    needed = State.BAD if os.geteuid() else State.LIMITED
    cost = "ordinary users cannot mount"
    if found is None:
        return Check("fusermount3", needed, "not installed", cost, "apt-get install fuse3")
    if not (os.stat(found).st_mode & stat.S_ISUID and os.stat(found).st_uid == 0):
        return Check("fusermount3", needed, f"{found} is not setuid root", cost, f"chmod u+s {found} (as root)")
    if os.geteuid() and _user_name(os.geteuid()).isdigit():
        advice = "a line for this user in /etc/passwd"
        return Check("fusermount3", needed, f"refuses uid {os.geteuid()}, which has no name", cost, advice)
    return Check("fusermount3", State.OK, found)


def _user_namespaces() -> Check:
    name, cost = (
        "user namespaces",
        "no rootless engines and no `run` as a user; modes of layers are obstacles for users",
    )
    found, advice = _namespace_obstacle()
    if found:
        return Check(name, State.LIMITED, found, cost, advice)
    tried = _unshared()
    if not tried:
        return Check(name, State.OK, "can be made")
    return Check(name, State.LIMITED, tried, cost, "look at seccomp and the security module of this session")


def _namespace_obstacle() -> tuple[str, str]:
    """The setting that forbids them, and the command that allows them; empty where none does."""
    if _setting("user/max_user_namespaces") == "0":
        return "user.max_user_namespaces is 0", "sysctl user.max_user_namespaces=15000"
    if os.geteuid() == 0:
        return "", ""
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "kernel.unprivileged_userns_clone is 0", "sysctl kernel.unprivileged_userns_clone=1"
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        advice = "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile with `userns,` for each program"
        return "AppArmor allows them only to programs with a profile", advice
    return "", ""


def _setting(name: str) -> str:
    return _content(Path("/proc/sys") / name)


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _unshared() -> str:
    """Make a user namespace; what went wrong, empty if nothing did."""
    program = shutil.which("unshare", path=SYSTEM_PATH)
    if program is None:
        return ""
    done = subprocess.run([program, "--user", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.stderr.decode(errors="replace").strip() if done.returncode else ""


def _subordinate_ids() -> Check:
    uid, name = os.geteuid(), "subordinate ids"
    if uid == 0:
        return Check(name, State.OK, "not needed by root")
    user = _user_name(uid)
    cost = "containers of this user have no other users than root"
    ranges = [subordinate_ids(Path(f"/etc/sub{kind}"), uid) for kind in ("uid", "gid")]
    if None in ranges:
        advice = f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user} (as root)"
        return Check(name, State.LIMITED, f"none for {user} in /etc/subuid or /etc/subgid", cost, advice)
    if shutil.which("newuidmap") is None:
        return Check(name, State.LIMITED, "newuidmap is not installed", cost, "apt-get install uidmap")
    return Check(name, State.OK, ", ".join(f"{each.size} from {each.first}" for each in ranges if each))


def _user_name(uid: int) -> str:
    """The name; the number of a user who has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _store_xattrs() -> Check:
    """The marks of overlays, on the filesystem that has the uppers of containers."""
    store = (store_directory() or default_directory()).absolute()
    directory = next(path for path in (store, *store.parents) if path.is_dir())
    advice = "a store on ext4, XFS, btrfs, or tmpfs of Linux 6.6 (--store DIR)"
    try:
        prefix = _writable_prefix(directory)
    except OSError as error:
        return Check("xattrs", State.LIMITED, f"{directory}: {error.strerror}", "images cannot be stored", advice)
    if prefix:
        return Check("xattrs", State.OK, f"{prefix}* in {directory}")
    cost = "deletions become .wh. files, renamed lower directories are copied whole, inode numbers change at a remount"
    return Check("xattrs", State.LIMITED, f"none in {directory}", cost, advice)


def _writable_prefix(directory: Path) -> str:
    """The first one with which a file in the directory can be marked, as a mount would choose it; empty for none."""
    with tempfile.TemporaryFile(dir=directory) as file:
        for prefix in ("trusted.overlay.", "user.overlay."):
            with suppress(OSError):
                os.setxattr(file.fileno(), f"{prefix}opaque", b"n")
                return prefix
    return ""


def _security_modules() -> Check:
    name = "security modules"
    if _content(Path("/sys/fs/selinux/enforce")) == "1":
        cost = "confined programs may not read a mount that has no label"
        advice = 'mount with -o context="system_u:object_r:container_file_t:s0" for containers'
        return Check(name, State.LIMITED, "SELinux enforces", cost, advice)
    if _content(Path("/sys/module/apparmor/parameters/enabled")) != "Y":
        return Check(name, State.OK, "neither SELinux nor AppArmor is on")
    profile = _content(Path("/proc/self/attr/current")).strip("\0")
    if profile and not profile.endswith("(complain)") and "unconfined" not in profile:
        advice = "allow mount, umount and /dev/fuse in the profile; a container: --security-opt apparmor=unconfined"
        return Check(name, State.LIMITED, f"AppArmor confines this process: {profile}", "mounts may be denied", advice)
    return Check(name, State.OK, "AppArmor is on, and leaves this process alone")


def _mount_program() -> Check:
    name, program = "mount program", installed_program()
    if program is None:
        return Check(name, State.LIMITED, "not installed", "engines and mount(8) cannot mount", "pip install overlayfs")
    if os.geteuid() == 0 and (obstacle := obstacle_for_others(program)):
        cost = "engines of other users cannot start it"
        return Check(name, State.LIMITED, obstacle, cost, "install overlayfs where all may read: a venv in /opt")
    if shutil.which(PROGRAM, path=SYSTEM_PATH) is None:
        cost = "mount(8), fstab, remounts and engines that look in PATH do not find it"
        advice = f"ln -s {program} /usr/local/bin/{PROGRAM} (as root)"
        return Check(name, State.LIMITED, f"not in {SYSTEM_PATH}", cost, advice)
    return Check(name, State.OK, str(program))


def _trial() -> Check:
    try:
        try_mount(mount_command())
    except CommandError as error:
        return Check("trial mount", State.BAD, str(error), "no mounts", "mend what is missing above")
    return Check("trial mount", State.OK, "mounted, changed and unmounted")


_CHECKS: Final[tuple[Callable[[], Check], ...]] = (
    _kernel,
    _passthrough,
    _device,
    _fusermount,
    _user_namespaces,
    _subordinate_ids,
    _store_xattrs,
    _security_modules,
    _mount_program,
    _trial,
)
