"""Named volumes, mounts in words, tmpfs, mounts of other containers, and pruning."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.oci.documents import RunConfig
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from tests.cli.container.shop import Shop, await_that, first_line
from tests.container.small import image_of, link, small_image
from tests.prepared import Prepared

ENDLESS = "while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path = tmp_path_factory.mktemp("shop") / "store"
    with Store.open(path) as store:
        unpack_image(store, small_image(store))
        filled: dict[str, bytes | tarfile.TarInfo] = {
            "data/file": b"of the image\n",
            "data/sub/deep": b"deep\n",
            "data/link": link("data/link", "/etc/passwd"),
        }
        image_of(store, "filled", RunConfig(cmd=["sh"]), filled, base=store.find("small"))
        declared = RunConfig(cmd=["sh"], volumes={"/data/": {}, "/new": {}})
        image_of(store, "declaring", declared, {}, base=store.find("filled"))
        for name, place in (("colon", "/a:b"), ("over-proc", "/proc/x"), ("nul", "/a\0b")):
            image_of(store, name, RunConfig(cmd=["sh"], volumes={place: {}}), {}, base=store.find("small"))
        image_of(store, "led", RunConfig(cmd=["sh"]), {"data": link("data", "/etc")}, base=store.find("small"))
    with Prepared() as prepared:
        yield Shop(path, prepared)


@pytest.fixture
def clean(shop: Shop) -> Iterator[Shop]:
    yield shop
    for name in shop.names:
        shop.run("rm", "--force", name)
    shop.run("volume", "prune", "-f")


def test_volume_with_a_damaged_record_holds_no_other_up_and_keeps_its_files(clean: Shop) -> None:
    clean.run("run", "--rm", "-v", "broken:/v", "small", "touch", "/v/kept")
    clean.run("volume", "create", "whole")
    clean.run("create", "--name", "box", "-v", "broken:/v", "small", "ls", "/v")
    record = clean.store / "volumes/broken/volume.json"
    record.write_bytes(b"")
    done = clean.call("volume", "ls", "-q")
    assert (done.status, done.out) == (1, "whole\n") and done.err.startswith(f"overlayfs: {record} is damaged")
    done = clean.call("volume", "prune")
    assert (done.status, done.out) == (1, "whole\n") and done.err.count("\n") == 1
    assert "remove this file" in clean.refuses("start", "-a", "box", status=125)
    record.unlink()
    assert clean.run("start", "-a", "box") == "kept\n"
    assert clean.run("volume", "ls", "-q") == "broken\n"


def test_volumes_are_listed_whatever_became_of_a_container(clean: Shop) -> None:
    clean.run("volume", "create", "whole")
    clean.run("create", "--name", "box", "-v", "used:/v", "small", "true")
    record = clean.store / "containers/box/container.json"
    before = record.read_bytes()
    record.write_bytes(b"")
    for words in (("volume", "ls", "-q"), ("volume", "inspect", "whole")):
        done = clean.call(*words)
        assert done.status == 1 and "whole" in done.out and done.err.startswith(f"overlayfs: {record} is damaged")
    for command in (("volume", "rm", "whole"), ("volume", "prune")):
        assert f"{record} is damaged" in clean.refuses(*command)
    record.write_bytes(before)


@pytest.mark.parametrize("runtime", ["bwrap", "runc"])
def test_new_volume_is_filled_from_the_image_once(clean: Shop, runtime: str) -> None:
    def run(image: str, script: str) -> str:
        return clean.run("run", "--rm", "--runtime", runtime, "-v", "kept:/data", image, "sh", "-c", script)

    assert run("filled", "chown 33:44 /data/file; ls /data; echo more >>/data/file") == "file\nlink\nsub\n"
    assert run("filled", "cat /data/file; stat -c %u:%g /data/file; rm /data/sub/deep") == "of the image\nmore\n33:44\n"
    assert run("small", "ls /data /data/sub") == "/data:\nfile\nlink\nsub\n\n/data/sub:\n"
    data = clean.store / "volumes/kept/data"
    assert os.readlink(data / "link") == "/etc/passwd"


def test_volume_is_filled_from_within_the_image_only(clean: Shop) -> None:
    assert clean.run("run", "--rm", "-v", "kept:/data", "led", "sh", "-c", "ls /etc; ls -d /data/..") == (
        "group\nhostname\nhosts\npasswd\nresolv.conf\n/data/..\n"
    )


def test_half_filled_volume_of_a_killed_run_is_filled_anew(clean: Shop) -> None:
    clean.run("volume", "create", "kept")
    (clean.store / "volumes/kept/filling/sub").mkdir(parents=True)
    assert clean.run("run", "--rm", "-v", "kept:/data", "filled", "cat", "/data/sub/deep") == "deep\n"
    assert sorted(os.listdir(clean.store / "volumes/kept")) == ["data", "volume.json"]


def test_moved_half_is_finished(clean: Shop) -> None:
    clean.run("volume", "create", "kept")
    (clean.store / "volumes/kept/filled").mkdir()
    (clean.store / "volumes/kept/filled/late").write_bytes(b"late\n")
    (clean.store / "volumes/kept/data/early").write_bytes(b"early\n")
    assert clean.run("run", "--rm", "-v", "kept:/data", "filled", "ls", "/data") == "early\nlate\n"
    assert sorted(os.listdir(clean.store / "volumes/kept")) == ["data", "volume.json"]


def test_containers_share_a_volume_that_was_empty(clean: Shop) -> None:
    clean.run("run", "-d", "--name", "first", "-v", "kept:/new", "small", "sh", "-c", ENDLESS)
    clean.run("run", "--rm", "-v", "kept:/new", "small", "sh", "-c", ":")
    clean.run("exec", "first", "touch", "/new/file")
    assert clean.run("run", "--rm", "-v", "kept:/new", "small", "ls", "/new") == "file\n"


def test_volumes_are_made_listed_and_removed(clean: Shop) -> None:
    assert clean.run("volume", "create", "a", "--label", "x=y") == "a\n"
    clean.run("create", "--name", "box", "-v", "b:/b", "--mount", "type=volume,src=c,dst=/c,ro", "small")
    assert clean.run("volume", "ls", "-q") == "a\nb\nc\n"
    (found,) = json.loads(clean.run("volume", "inspect", "a"))
    assert (found["Name"], found["Labels"], found["UsedBy"]) == ("a", {"x": "y"}, [])
    for name in ("b", "c"):
        assert f"the volume {name} belongs to box" in clean.refuses("volume", "rm", name)
    assert clean.run("volume", "prune") == "a\n"
    assert len(clean.run("container", "prune").strip()) == 64
    assert clean.run("volume", "rm", "b", "c") == "b\nc\n"
    assert "no volume 'a'" in clean.refuses("volume", "rm", "a")
    assert clean.run("volume", "rm", "-f", "a") == "a\n"
    name = clean.run("volume", "create").strip()
    assert len(name) == 64 and clean.run("volume", "ls", "-q") == f"{name}\n"
    assert "no name for a volume" in clean.refuses("volume", "create", "../x")


@pytest.mark.parametrize("runtime", ["bwrap", "runc"])
def test_mounts_in_words(clean: Shop, tmp_path: Path, runtime: str) -> None:
    (tmp_path / "f").write_text("mine\n")
    options = ("--runtime", runtime)
    mounts = ["--mount", f"type=bind,source={tmp_path},target=/a,readonly"]
    mounts += ["--mount", "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700", "--tmpfs", "/u:size=64k"]
    script = "cat /a/f; touch /a/x 2>/dev/null || echo ro; stat -c %a /t; touch /t/x /u/x; cat /proc/mounts"
    said = clean.sh(script, *mounts, *options)
    assert said.startswith("mine\nro\n700\n")
    lines = {line.split()[1]: line for line in said.splitlines() if " tmpfs " in line}
    assert "size=1024k" in lines["/t"] and "size=64k" in lines["/u"] and "noexec" in lines["/u"]


def test_mounts_of_another_container(clean: Shop) -> None:
    clean.run("create", "--name", "one", "-v", "kept:/data", "filled")
    script = "cat /data/file; touch /data/x 2>/dev/null || echo ro"
    clean.run("run", "--rm", "-v", "kept:/data", "filled", "pwd")
    assert clean.sh(script, "--volumes-from", "one:ro") == "of the image\nro\n"
    assert clean.sh(script, "--volumes-from", "one") == "of the image\n"


def test_own_mount_counts_before_those_of_other_containers_and_the_last_of_these_first(clean: Shop) -> None:
    for name in ("one", "two"):
        clean.run(
            "run", "--name", name, "-v", f"{name}:/data", "-v", f"of-{name}:/{name}", "small", "touch", f"/data/{name}"
        )
    both = ("--volumes-from", "one", "--volumes-from", "two")
    assert clean.sh("ls /data; ls -d /one /two", *both) == "two\n/one\n/two\n"
    for own in (("-v", "own:/data/"), ("--mount", "type=volume,target=/data"), ("--tmpfs", "/data")):
        assert clean.sh("ls /data", *both, *own) == ""


@pytest.mark.parametrize("runtime", ["bwrap", "runc"])
def test_paths_with_colons_are_mounted_in_words(clean: Shop, tmp_path: Path, runtime: str) -> None:
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b/f").write_text("mine\n")
    mount = f"type=bind,source={tmp_path}/a:b,target=/x:y,readonly"
    assert clean.sh("cat /x:y/f; touch /x:y/g 2>/dev/null || echo ro", "--runtime", runtime, "--mount", mount) == (
        "mine\nro\n"
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-v", "kept:a"), "'kept:a' is no volume"),
        (("--mount", "type=nfs,source=x,target=/x"), "is no mount"),
        (("--mount", "type=bind,source=x,target=/x"), "absolute path"),
        (("--mount", "type=bind,source=/a,target=x"), "is no mount"),
        (("--tmpfs", "/a", "-v", "kept:/a"), "cannot both be at /a"),
        (("--tmpfs", "/dev/"), "no tmpfs can be at /dev/"),
        (("--mount", "type=tmpfs,target=/a/.."), "no tmpfs can be at /a/.."),
        (("--volumes-from", "nobody"), "no container 'nobody'"),
        (("-v", "a"), "is no volume"),
        (("-v", "/proc"), "is no volume"),
        (("-v", "kept:/a:rslave"), "unknown volume option"),
    ],
)
def test_what_cannot_be_mounted_is_refused(clean: Shop, options: tuple[str, ...], why: str) -> None:
    assert why in clean.refuses("run", "--rm", *options, "small", status=125)
    assert clean.names == []


# -- volumes without a name


def volumes_of(shop: Shop, name: str) -> dict[str, str]:
    """The names of a container's volumes, by their place."""
    (found,) = json.loads(shop.run("inspect", "--type", "container", name))
    return {mount["Destination"]: mount["Name"] for mount in found["Mounts"]}


@pytest.mark.parametrize("runtime", ["bwrap", "runc"])
def test_passing_container_takes_its_anonymous_volumes_with_it(clean: Shop, runtime: str) -> None:
    options = ("-v", "/more", "--mount", "type=volume,target=/words", "-v", "kept:/kept")
    script = "touch /more/x /words/x /kept/x /new/x; cat /data/file; cat /proc/mounts"
    said = clean.run("run", "--rm", "--runtime", runtime, *options, "declaring", "sh", "-c", script)
    assert said.startswith("of the image\n")
    places = {line.split()[1] for line in said.splitlines()[1:]}
    assert {"/more", "/words", "/kept", "/data", "/new"} <= places
    assert clean.run("volume", "ls", "-q") == "kept\n"


def test_anonymous_volume_stays_with_its_container_and_goes_on_request(clean: Shop) -> None:
    for _ in range(2):
        clean.run("run", "--name", "box", "-v", "kept:/kept", "declaring", "sh", "-c", "echo x >>/new/file")
    names = volumes_of(clean, "box")
    assert set(names) == {"/data", "/new", "/kept"} and names["/kept"] == "kept"
    assert (clean.store / "volumes" / names["/new"] / "data/file").read_text() == "x\nx\n"
    assert clean.run("diff", "box") == ""
    clean.run("create", "--name", "other", "--volumes-from", "box", "small")
    clean.run("rm", "-v", "box")
    assert set(clean.run("volume", "ls", "-q").split()) == set(names.values())
    clean.run("rm", "-f", "-v", "other")
    assert clean.run("volume", "ls", "-q") == "kept\n"


def test_anonymous_volume_given_by_its_name_is_kept(clean: Shop) -> None:
    clean.run("run", "--name", "box", "-v", "/new", "small", "touch", "/new/file")
    name = volumes_of(clean, "box")["/new"]
    clean.run("rm", "box")
    assert clean.run("run", "--rm", "-v", f"{name}:/old", "small", "ls", "/old") == "file\n"
    assert clean.run("volume", "ls", "-q") == f"{name}\n"


def test_anonymous_volume_that_is_not_mounted_any_more_goes_with_its_container(clean: Shop) -> None:
    clean.run("run", "--name", "box", "-v", "/new", "small", "pwd")
    clean.run("run", "--name", "box", "small", "pwd")
    assert volumes_of(clean, "box") == {}
    clean.run("rm", "-v", "box")
    assert clean.run("volume", "ls", "-q") == ""


def test_refused_run_makes_no_volume(clean: Shop) -> None:
    clean.run("run", "-d", "--name", "box", "small", "sh", "-c", ENDLESS)
    assert "is running" in clean.refuses("run", "--name", "box", "-v", "/new", "small", status=125)
    assert "cannot both" in clean.refuses("run", "-v", "a:/a", "-v", "/a", "small", status=125)
    assert "no name" in clean.refuses("run", "-v", "/new", "-v", "ü:/a", "small", status=125)
    assert clean.run("volume", "ls", "-q") == "" and clean.names == ["box"]


def test_mount_at_the_place_of_a_volume_of_the_image_replaces_it(clean: Shop, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    options = ("-v", f"{tmp_path}:/data", "--tmpfs", "/new/")
    assert clean.run("run", "--name", "box", *options, "declaring", "ls", "/data", "/new") == "/data:\nmine\n\n/new:\n"
    assert clean.run("volume", "ls", "-q") == ""


def test_killed_passing_container_leaves_no_volume(clean: Shop) -> None:
    with clean.start("--rm", "declaring", "sh", "-c", f"echo up; {ENDLESS}") as process:
        assert first_line(process) == "up"
        process.kill()
    await_that(lambda: clean.names == [] and clean.run("volume", "ls", "-q") == "")


@pytest.mark.parametrize("image", ["colon", "over-proc", "nul"])
def test_image_cannot_ask_for_a_volume_anywhere(clean: Shop, image: str) -> None:
    assert "volume" in clean.refuses("run", "--rm", image, status=125)
    assert clean.names == [] and clean.run("volume", "ls", "-q") == ""


def test_prune_keeps_what_is_in_use(clean: Shop) -> None:
    clean.run("run", "-d", "--name", "live", "-v", "kept:/data", "small", "sh", "-c", ENDLESS)
    clean.run("run", "--name", "ended", "small", "pwd")
    clean.run("container", "prune")
    assert clean.names == ["live"]
    assert clean.run("volume", "prune") == ""
