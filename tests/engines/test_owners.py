"""Owners in containers of another user namespace: as the container sees them, on disk, and in the committed image."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.tree import Tree, directory, file, symlink
from tests.engines.changes import DIFFERENCES, View, expect_same
from tests.engines.conftest import USER
from tests.engines.podman import Podman, archive_of, owners
from tests.image.snapshot import Seen, snapshot

BASE: Tree = {
    "etc/passwd": file(b"root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
    "etc/group": file(b"root:x:0:\nuser:x:1000:\n"),
    "etc/daemon": file(b"d", 0o640, 33, 34),
    "etc/link": symlink("daemon", 33, 1),
    "etc/gone": file(b"x"),
    "home/user": directory(0o755, 1000, 1001),
    "home/user/low": file(b"low", 0o644, 1000, 1001),
    "tmp": directory(0o1777),
}
LOOK = 'stat -c "%n %u:%g"'
LOOK_AT_ALL = 'stat -c "%n %a %u:%g" /etc/[dglp]* /home/user /home/user/* /tmp / $(ls -d /new /made /link)'
CHANGE = f"""
{LOOK} /etc/daemon /etc/link /home/user/low /
touch /new; mkdir /made; chown 33:34 /made; ln -s t /link; chown -h 1:2 /link
echo more >>/home/user/low; chown 5:6 /etc/link; rm /etc/gone
{LOOK} /new /made /link /home/user/low /etc/daemon
"""
SEEN = "/etc/daemon 33:34\n/etc/link 33:1\n/home/user/low 1000:1001\n/ 0:0\n"
SEEN_LATER = "/new 0:0\n/made 33:34\n/link 1:2\n/home/user/low 1000:1001\n/etc/daemon 5:6"
WRITTEN = {"new": "0:0", "made": "33:34", "link": "1:2", "home/user": "1000:1001", "home/user/low": "1000:1001"}
COMMITTED = {**WRITTEN, "etc/daemon": "5:6", "etc/link": "33:1", "tmp": "0:0", "bin/sh": "0:0"}


@pytest.fixture(scope="module")
def base(top: Path) -> Path:
    return archive_of(BASE, top)


@pytest.fixture(scope="module")
def podman(new_podman: Callable[..., Podman], base: Path) -> Podman:
    podman = new_podman("ours")
    podman("import", "-q", base, "base")
    return podman


@pytest.fixture(scope="module")
def kernel_s(new_podman: Callable[..., Podman], base: Path) -> Podman:
    podman = new_podman("kernel", ours=False)
    podman("import", "-q", base, "base")
    return podman


@pytest.fixture(scope="module")
def user_s(new_podman: Callable[..., Podman], base: Path) -> Podman:
    podman = new_podman("user", user=USER)
    podman("import", "-q", base, "base")
    return podman


def run_and_commit(podman: Podman, name: str, *options: str) -> None:
    """Run `CHANGE` as a container's root, who must see the owners of the image, and commit an image of that name."""
    seen = podman("run", f"--name={name}", *options, "--user=0:0", "base", "sh", "-ec", CHANGE)
    assert seen == SEEN + SEEN_LATER
    podman("commit", "-q", name, name)


def image_of(podman: Podman, name: str) -> Path:
    return Path(podman("image", "mount", name))


SHIFTED = ("--uidmap=0:100000:65536", "--gidmap=0:200000:65536")
AUTO = ("--userns=auto:size=4096",)


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param("shifted", SHIFTED, id="shifted"), pytest.param("auto", AUTO, id="auto", marks=pytest.mark.long)],
)
def test_owners_of_the_image_are_kept_in_a_user_namespace(podman: Podman, name: str, options: tuple[str, ...]) -> None:
    run_and_commit(podman, name, *options)
    upper = Path(podman("inspect", "--format={{.GraphDriver.Data.UpperDir}}", name))
    assert owners(upper, WRITTEN) == WRITTEN
    image = image_of(podman, name)
    assert owners(image, COMMITTED) == COMMITTED
    assert not os.path.lexists(image / "etc/gone")


@pytest.mark.long
def test_image_of_a_user_namespace_is_the_one_that_the_kernel_s_overlay_gives(podman: Podman, kernel_s: Podman) -> None:
    for engine in (podman, kernel_s):
        run_and_commit(engine, "compared", *SHIFTED)
    ours, theirs = (_without_times(image_of(engine, "compared")) for engine in (podman, kernel_s))
    # podman loses what is deleted where it has the kernel map ids: a whiteout's owner, root, has none in the container
    assert theirs.pop("etc/gone") is not None
    assert ours == theirs


def _without_times(image: Path) -> dict[str, Seen]:
    return {path: seen._replace(mtime_ns=0) for path, seen in snapshot(image).items()}


# What runs in a rootless container under a map that is not its own inverse; the user is 4711 outside.
AS_USER = f"{LOOK} /etc/daemon / /tmp; id -u; id -g; touch /tmp/mine; {LOOK} /tmp/mine; cat /proc/self/uid_map"


@pytest.mark.long
def test_rootless_container_keeps_the_id_of_its_user(user_s: Podman) -> None:
    seen = user_s("run", "--name=mine", "--userns=keep-id", "--network=none", "base", "sh", "-ec", AS_USER)
    *lines, first, second, third = seen.splitlines()
    assert lines == ["/etc/daemon 33:34", "/ 0:0", "/tmp 0:0", str(USER), str(USER), f"/tmp/mine {USER}:{USER}"]
    assert [line.split() for line in (first, second, third)][:2] == [["0", "1", str(USER)], [str(USER), "0", "1"]]
    user_s("commit", "-q", "mine", "mine")
    look = f"cd $(podman image mount mine) && {LOOK} etc/daemon tmp/mine . bin/sh"
    assert user_s("unshare", "sh", "-ec", look) == f"etc/daemon 33:34\ntmp/mine {USER}:{USER}\n. 0:0\nbin/sh 0:0"


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("kept", ("--userns=keep-id",), id="keep-id"),
        pytest.param("mapped", ("--uidmap=0:1:5000", "--gidmap=0:5001:5000"), id="mapped"),
    ],
)
def test_rootless_container_s_root_writes_the_owners_it_sees(
    user_s: Podman, name: str, options: tuple[str, ...]
) -> None:
    run_and_commit(user_s, name, *options, "--network=none")
    look = f"cd $(podman image mount {name}) && {LOOK} {' '.join(COMMITTED)}; ! test -e etc/gone"
    assert dict(line.split() for line in user_s("unshare", "sh", "-ec", look).splitlines()) == COMMITTED


@pytest.mark.long
def test_force_mask_keeps_owners_and_modes_in_an_xattr(
    new_podman: Callable[..., Podman], kernel_s: Podman, base: Path
) -> None:
    masked = new_podman("masked", user=USER, force_mask="0700")
    masked("import", "-q", base, "base")
    seen = {podman: _before_and_after(podman) for podman in (masked, kernel_s)}
    different = set[str]()
    for ours, theirs in zip(seen[masked], seen[kernel_s], strict=True):
        different |= expect_same(View.MASKED, ours, theirs)
        assert theirs["/home/user"] == "755 1000:1001"
    assert different == DIFFERENCES[View.MASKED].keys()
    upper = masked("inspect", "--format={{.GraphDriver.Data.UpperDir}}", "masked")
    assert masked("unshare", "find", upper, "!", "-type", "l", "!", "-uid", "0") == ""


def _before_and_after(podman: Podman) -> list[dict[str, str]]:
    """Mode and owner of each file of the image, of a changed container, and of the image that is committed from it."""
    run = ("run", "--network=none")
    first = podman(*run, "--rm", "base", "sh", "-c", LOOK_AT_ALL)
    changed = podman(*run, "--name=masked", "base", "sh", "-ec", f"{CHANGE}\n{LOOK_AT_ALL}").removeprefix(
        SEEN + SEEN_LATER
    )
    podman("commit", "-q", "masked", "masked")
    committed = podman(*run, "--rm", "masked", "sh", "-c", LOOK_AT_ALL)
    return [
        dict(line.split(" ", 1) for line in text.splitlines() if " " in line) for text in (first, changed, committed)
    ]
