"""From options to config.json: the table, capabilities, and the seccomp profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from overlayfs.container.process import Process
from overlayfs.container.runtime import Launch, runc_specification
from overlayfs.container.spec import fields
from overlayfs.container.spec.capabilities import DEFAULT, KNOWN, chosen
from overlayfs.container.spec.seccomp import PROFILES, default_profile, seccomp_of
from overlayfs.container.spec.settings import Settings
from overlayfs.container.users import User
from overlayfs.image.oci.errors import InvalidError

UNCONFINED = ["seccomp=unconfined"]


def specification(settings: Settings, user: User | None = None) -> dict[str, Any]:
    process = Process(("/bin/sh",), {"PATH": "/bin"}, "/", user or User())
    return runc_specification(Launch(Path("/r"), "box", "box", process, (), settings=settings))


def at(document: dict[str, Any], path: str) -> Any:
    found: Any = document
    for name in path.split("."):
        found = found[name]
    return found


@pytest.mark.parametrize(
    ("settings", "path", "wanted"),
    [
        (Settings(memory="64m"), "linux.resources.memory", {"limit": 64 << 20}),
        (Settings(cpus="1.5"), "linux.resources.cpu", {"quota": 150000, "period": 100000}),
        (Settings(pids_limit=9), "linux.resources.pids", {"limit": 9}),
        (Settings(ulimits=["core=0"]), "process.rlimits", [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]),
        (Settings(has_terminal=True), "process.terminal", True),
        (Settings(security=["no-new-privileges"]), "process.noNewPrivileges", True),
        (Settings(security=["no-new-privileges=false"]), "process.noNewPrivileges", False),
        (Settings(dropped_capabilities=["all"]), "process.capabilities.bounding", []),
        (Settings(is_privileged=True), "process.capabilities.effective", chosen([], [], is_privileged=True)),
        (Settings(is_privileged=True), "linux.maskedPaths", []),
        (Settings(), "linux.resources.devices", [{"allow": False, "access": "rwm"}]),
    ],
)
def test_option_sets_its_member(settings: Settings, path: str, wanted: object) -> None:
    assert at(specification(settings), path) == wanted


def test_options_of_the_table_need_runc_and_are_named() -> None:
    values = {bool: True, str: "64m", int: 3, list: ["x"]}
    for name, option, _ in fields.TABLE:
        given = replace(Settings(), **{name: values[type(getattr(Settings(), name))]})
        assert fields.needs_runc(given) == [option]
    assert fields.needs_runc(Settings(network="none", is_read_only=True, hostname="x", user="7")) == []
    assert fields.needs_runc(Settings(network="container:x")) == ["--network"]


def test_capabilities_are_dockers_more_or_less() -> None:
    assert set(chosen([], [])) == set(DEFAULT) and len(set(KNOWN)) == len(KNOWN) == 41
    assert set(chosen(["sys_admin"], ["CAP_CHOWN"])) == {*DEFAULT, "CAP_SYS_ADMIN"} - {"CAP_CHOWN"}
    assert chosen(["NET_ADMIN"], ["ALL"]) == ["CAP_NET_ADMIN"]
    every = (1 << 41) - 1
    assert set(chosen(["ALL"], ["MKNOD"], bounding=every)) == set(KNOWN) - {"CAP_MKNOD"}
    assert chosen([], [], is_privileged=True, bounding=every & ~(1 << 24)) == [
        c for c in KNOWN if c != "CAP_SYS_RESOURCE"
    ]
    with pytest.raises(InvalidError, match="no capability"):
        chosen(["SYS_ROOT"], [])


def test_other_users_get_no_capability_by_cap_add() -> None:
    document = specification(Settings(added_capabilities=["SYS_ADMIN"]), User(33, 44))
    assert document["process"]["capabilities"]["effective"] == []
    assert "CAP_SYS_ADMIN" in document["process"]["capabilities"]["bounding"]


# -- seccomp


def names(seccomp: dict[str, Any], action: str = "SCMP_ACT_ALLOW") -> set[str]:
    return {name for rule in seccomp["syscalls"] if rule["action"] == action for name in rule["names"]}


def test_installed_profile_follows_capabilities_and_machine() -> None:
    path = default_profile()
    assert path in PROFILES and path is not None
    usual, admin = seccomp_of(path, DEFAULT, "x86_64"), seccomp_of(path, [*DEFAULT, "CAP_SYS_ADMIN"], "x86_64")
    assert {"openat", "clone", "execve"} <= names(usual) and "bpf" not in names(usual)
    assert "bpf" in names(admin) and "arch_prctl" in names(usual)
    assert "arch_prctl" not in names(seccomp_of(path, DEFAULT, "aarch64"))
    assert usual["architectures"][0] == "SCMP_ARCH_X86_64" and usual["defaultAction"] == "SCMP_ACT_ERRNO"


def test_container_is_filtered_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    assert "seccomp" in specification(Settings())["linux"]
    assert "seccomp" not in specification(Settings(security=UNCONFINED))["linux"]
    assert "seccomp" not in specification(Settings(is_privileged=True))["linux"]
    own = tmp_path / "own.json"
    rule = {"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO"}
    own.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    document = specification(Settings(security=[f"seccomp={own}"]))
    assert document["linux"]["seccomp"]["syscalls"] == [rule]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"defaultAction": 1, "syscalls": 7}', '{"archMap": [{}]}'])
def test_broken_profile_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(InvalidError, match="is no seccomp profile"):
        seccomp_of(tmp_path / "x", DEFAULT)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Settings(security=["seccomp=/nowhere"]), "seccomp profile"),
        (Settings(security=["label=type:x"]), "cannot be had here"),
        (Settings(added_capabilities=["x"]), "no capability"),
        (Settings(tmpfs=["x"]), "no tmpfs"),
    ],
)
def test_check_refuses_before_a_container_is_made(settings: Settings, why: str) -> None:
    with pytest.raises(InvalidError, match=why):
        fields.check(settings)


def test_limits_need_their_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(InvalidError, match="--memory needs the cgroup controller memory"):
        fields.check(Settings(memory="64m"))
