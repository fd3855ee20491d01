"""What the runtimes are told: bubblewrap's arguments, its filter, and runc's specification."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from overlayfs.container.process import Process
from overlayfs.container.runtime import (
    Bind,
    Kind,
    Launch,
    Network,
    bwrap_arguments,
    find_runtime,
    runc_specification,
    terminal_filter,
)
from overlayfs.container.users import User
from overlayfs.image.oci.errors import NotFoundError

BOB = User(33, 44, (50,), "bob", "/home/bob")
BINDS = (Bind("/host/a", "/a"), Bind("/host/b", "/b", is_read_only=True))


def launch(user: User, network: Network = Network.HOST, is_read_only: bool = False) -> Launch:
    process = Process(("/bin/sh", "-c", "x"), {"PATH": "/bin", "A": "b c"}, "/work", user)
    return Launch(Path("/root/of/it"), "box", "box.example", process, BINDS, network, is_read_only)


def pairs(words: list[str], option: str, count: int) -> list[tuple[str, ...]]:
    return [tuple(words[at + 1 : at + 1 + count]) for at, word in enumerate(words) if word == option]


def test_bubblewrap_mounts_the_root_then_the_rest_then_makes_it_read_only() -> None:
    words = bwrap_arguments(launch(User(), is_read_only=True), user_namespace_fd=None, filter_fd=9)
    assert pairs(words, "--bind", 2) == [("/root/of/it", "/"), ("/host/a", "/a")]
    assert pairs(words, "--ro-bind", 2) == [("/sys", "/sys"), ("/host/b", "/b")]
    assert words.index("--remount-ro") > words.index("/host/b")
    assert pairs(words, "--setenv", 2) == [("PATH", "/bin"), ("A", "b c")]
    assert words.index("--clearenv") < words.index("--setenv")
    assert "--unshare-net" not in words and "--new-session" not in words
    assert "CAP_SYS_ADMIN" not in words and ("CAP_CHOWN",) in pairs(words, "--cap-add", 1)


def test_bubblewrap_gives_other_users_no_capabilities() -> None:
    words = bwrap_arguments(launch(BOB, Network.NONE), user_namespace_fd=7, filter_fd=None)
    assert pairs(words, "--userns", 1) == [("7",)] and pairs(words, "--cap-drop", 1) == [("ALL",)]
    assert "--cap-add" not in words and "--unshare-net" in words
    assert "--new-session" in words  # nothing else keeps it from typing into our terminal


def test_specification_for_runc() -> None:
    document = runc_specification(launch(BOB, Network.NONE, is_read_only=True))
    assert document["process"]["user"] == {"uid": 33, "gid": 44, "additionalGids": [50]}
    assert document["process"]["capabilities"]["effective"] == []
    assert document["process"]["args"] == ["/bin/sh", "-c", "x"]
    assert document["root"] == {"path": "/root/of/it", "readonly": True}
    assert {"type": "network"} in document["linux"]["namespaces"]
    options = {mount["destination"]: mount["options"] for mount in document["mounts"]}
    assert "rw" in options["/a"] and "ro" in options["/b"]
    assert {"type": "network"} not in runc_specification(launch(BOB))["linux"]["namespaces"]


def test_runtime_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_runtime(None, has_terminal=False)[0] is Kind.BWRAP
    assert find_runtime(None, has_terminal=True)[0] is Kind.RUNC
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(NotFoundError, match="neither bwrap nor runc is installed"):
        find_runtime(None, has_terminal=False)
    with pytest.raises(NotFoundError, match="runc is not installed"):
        find_runtime(Kind.RUNC, has_terminal=False)


# -- the filter, as the kernel runs it

ALLOWED, REFUSED = 0x7FFF0000, 0x00050001
TIOCSTI, TIOCLINUX, TCGETS = 0x5412, 0x541C, 0x5401


def decision(program: bytes, architecture: int, number: int, argument: int) -> int:
    """Interpret classic BPF: loads of words, jumps, returns."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, 0, argument, 0, 0, 0, 0)
    instructions = list(struct.iter_unpack("=HBBI", program))
    at = value = 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return int(operand)
        else:
            at += if_true if (value >= operand if code == 0x35 else value == operand) else if_false


@pytest.mark.parametrize(
    ("machine", "architecture", "ioctl"), [("x86_64", 0xC000003E, 16), ("aarch64", 0xC00000B7, 29)]
)
def test_filter_takes_the_ioctls_that_type_into_a_terminal(machine: str, architecture: int, ioctl: int) -> None:
    program = terminal_filter(machine)
    assert program is not None
    assert decision(program, architecture, ioctl, TIOCSTI) == REFUSED
    assert decision(program, architecture, ioctl, TIOCSTI | 0xFFFF_FFFF_0000_0000) == REFUSED
    assert decision(program, architecture, ioctl, TIOCLINUX) == REFUSED
    assert decision(program, architecture, ioctl, TCGETS) == ALLOWED
    assert decision(program, architecture, 0, TIOCSTI) == ALLOWED
    assert decision(program, architecture, 0x4000_0000 | 514, TIOCSTI) == REFUSED  # the x32 numbers
    assert decision(program, 0x40000003, 54, TIOCSTI) == REFUSED  # i386's


def test_unknown_machine_has_no_filter() -> None:
    assert terminal_filter("pdp11") is None
