"""Snapshots mounted as containerd mounts them: a view of a chain shows what its changes make of a plain directory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.snapshotter.service import Client, Service, mounted, new_service

LAYERS = 128
Seen = dict[str, tuple[int, int, int, str]]

# Shell commands, a layer each; the cases are those of containerd's snapshotter test suite.
CHAINS = {
    "a file is updated": (
        "mkdir -m 700 etc; echo mydomain 10.0.0.1 >etc/hosts; echo PATH=/usr/bin >etc/profile",
        "echo mydomain 10.0.0.2 >etc/hosts; chmod 666 etc/profile; mkdir -m 700 root; echo x >root/.bashrc",
    ),
    "a directory of a lower layer is removed": (
        "mkdir -m 700 lib; : >lib/hidden",
        "rm -r lib; mkdir -m 700 lib; : >lib/not-hidden",
        ": >lib/newfile",
    ),
    "owners change": (
        "mkdir -m 700 opt opt/a opt/a/b; echo hello >opt/a/b/file.txt",
        "chown -R 1:1 opt",
    ),
    "things are renamed": (
        "mkdir -m 700 dir1 files; echo first >files/f1; echo second >files/f2; echo deep >dir1/deep",
        "mv dir1 dir2; echo new >files/new; mv files/new files/f1; mv files/f2 files/f3",
        "mv dir2/deep deep; rmdir dir2; mkdir dir1",
    ),
    "directories keep their owners": (
        "mkdir -m 700 dir1 dir2 dir3 dir4 dir5; : >dir4/f1; : >dir5/f1; chown 1:1 dir1 dir2 dir3 dir5 dir5/f1",
        "chown 0:0 dir2; rmdir dir3; chown 1:1 dir4 dir4/f1",
        "mkdir -m 700 dir3; chown 1:1 dir3; rm -r dir5; mkdir -m 700 dir5; chown 1:1 dir5",
    ),
    "a deleted file stays deleted": ("echo foo >foo; echo bar >foobar", "rm foobar", "true"),
    "a file moves out of a lower layer": (
        "mkdir -m 700 dir1 dir2; echo Hello >dir1/f1; echo dots >dir2/f2",
        "mkdir -m 700 dir3; echo Hello >dir3/f1; rm -r dir1; ln dir2/f2 dir3/f2; rm dir2/f2",
    ),
    "the top has an owner of its own": ("chown 7:8 .; echo x >file", "echo y >file", "rm file"),
}


@pytest.fixture(params=[(), ("--self-mount",)], ids=["containerd mounts", "snapshotter mounts"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with new_service(*request.param) as service:
        yield service


def change(directory: Path, commands: str) -> None:
    subprocess.run(["sh", "-euc", commands], cwd=directory, check=True, timeout=60)


def seen(top: Path) -> Seen:
    """Mode, owners, and the content, target or names of everything in a tree."""
    tree = {}
    for path in (top, *top.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_dir():
            content = " ".join(sorted(os.listdir(path)))
        else:
            content = path.read_text()
        tree[str(path.relative_to(top))] = (status.st_mode, status.st_uid, status.st_gid, content)
    return tree


def add_layer(client: Client, point: Path, name: str, parent: str, commands: str) -> None:
    client("Prepare", key=f"{name}-active", parent=parent)
    with mounted(client.mount(f"{name}-active"), point) as tree:
        change(tree, commands)
    client("Commit", key=f"{name}-active", name=name)


@pytest.mark.parametrize("name", CHAINS)
def test_each_view_of_a_chain_shows_what_its_changes_make(client: Client, service: Service, name: str) -> None:
    flat, point = service.top / "flat", service.top / "mnt"
    flat.mkdir(mode=0o755)
    parent = ""
    for number, commands in enumerate(CHAINS[name]):
        change(flat, commands)
        add_layer(client, point, f"layer-{number}", parent, commands)
        parent = f"layer-{number}"
        client("View", key=f"view-{number}", parent=parent)
        with mounted(client.mount(f"view-{number}"), point) as tree:
            assert seen(tree) == seen(flat)
        client("Remove", key=f"view-{number}")


def test_128_layers_are_one_tree(client: Client, service: Service) -> None:
    """Few layers are made through mounts: that is another test's, and this one would take long."""
    flat = service.top / "flat"
    flat.mkdir(mode=0o755)
    for number in range(LAYERS):
        commands = f"echo {number} >overwritten; mkdir -p all; echo same >all/{number}"
        client("Prepare", key="active", parent=f"layer-{number - 1}" if number else "")
        change(flat, commands)
        change(service.layers / str(number + 1) / "fs", commands)
        client("Commit", key="active", name=f"layer-{number}")
    client("Prepare", key="top", parent=f"layer-{LAYERS - 1}")
    with mounted(client.mount("top"), service.top / "mnt") as tree:
        assert seen(tree) == seen(flat)
        for directory in (flat, tree):
            change(directory, "rm -r all; mkdir all; echo only >all/me")
        assert seen(tree) == seen(flat)
    client("Commit", key="top", name="done")
    client("View", key="view", parent="done")
    with mounted(client.mount("view"), service.top / "mnt") as tree:
        assert seen(tree) == seen(flat)


@pytest.mark.parametrize("layers", [1, 2])
def test_view_is_read_only(client: Client, service: Service, layers: int) -> None:
    for number in range(layers):
        client.add(f"layer-{number}", f"layer-{number - 1}" if number else "")
    client("View", key="view", parent=f"layer-{layers - 1}")
    with (
        mounted(client.mount("view"), service.top / "mnt") as tree,
        pytest.raises(OSError, match="Read-only file system"),
    ):
        (tree / "file").touch()


@pytest.mark.parametrize("service", [()], indirect=True)
def test_mounts_are_bound_where_one_directory_is_all(client: Client, service: Service) -> None:
    client.add("one")
    client.add("two", "one")
    client("View", key="of-none")
    client("View", key="of-one", parent="one")
    client("View", key="of-two", parent="two")
    client("Prepare", key="on-none")
    client("Prepare", key="on-one", parent="one")
    fs = {number: service.layers / str(number) / "fs" for number in range(1, 8)}
    shown = {key: client.mount(key) for key in ("of-none", "of-one", "of-two", "on-none", "on-one")}
    words = {key: (mount.type, mount.source, *mount.options) for key, mount in shown.items()}
    assert {key: bound for key, bound in words.items() if bound[0] == "bind"} == {
        "of-none": ("bind", str(fs[3]), "ro", "rbind"),
        "of-one": ("bind", str(fs[1]), "ro", "rbind"),
        "on-none": ("bind", str(fs[6]), "rw", "rbind"),
    }
    assert list(shown["of-two"].options) == ["ro", f"lowerdir={fs[2]}:{fs[1]}"]
    work = service.layers / "7/work"
    assert list(shown["on-one"].options) == [f"workdir={work}", f"upperdir={fs[7]}", f"lowerdir={fs[1]}"]
    assert shown["on-one"].type == shown["of-two"].type
    assert shown["on-one"].type.startswith("fuse3./") and shown["on-one"].type.endswith("/overlayfs-mount")


def test_mounted_ids_are_mapped(client: Client, service: Service) -> None:
    add_layer(client, service.top / "mnt", "base", "", "echo x >root; echo x >user; chown 5:6 user")
    labels = {f"containerd.io/snapshot/{kind}mapping": "0:100000:65536" for kind in ("uid", "gid")}
    client("Prepare", key="active", parent="base", labels=labels)
    with mounted(client.mount("active"), service.top / "mnt") as tree:
        owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in (tree, *tree.iterdir())}
        assert owners == {"mnt": (100000, 100000), "root": (100000, 100000), "user": (100005, 100006)}
        os.chown(tree / "user", 100001, 100002)
    changed = (service.layers / "2/fs/user").stat()
    assert (changed.st_uid, changed.st_gid) == (1, 2)


def test_mounted_snapshot_outlives_a_killed_service(client: Client, service: Service) -> None:
    add_layer(client, service.top / "mnt", "base", "", "echo low >low")
    client("Prepare", key="active", parent="base")
    with mounted(client.mount("active"), service.top / "mnt") as tree:
        change(tree, "echo before >before")
        service.end(9)
        change(tree, "echo after >after; rm low")
        again = service.start()
        shown = seen(tree)
    again("Commit", key="active", name="done")
    again("View", key="view", parent="done")
    with mounted(again.mount("view"), service.top / "mnt") as tree:
        assert seen(tree) == shown
    again.close()
