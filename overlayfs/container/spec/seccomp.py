"""Which system calls may the programs of a container use? Those of the profile that Debian ships for podman.

The profile is containers-common's /usr/share/containers/seccomp.json (package golang-github-containers-common), which
follows docker's (moby, profiles/seccomp/default.json). Its rules depend on the machine and on capabilities; here they
become the `linux.seccomp` of the OCI runtime specification (config-linux.md, Seccomp), which knows neither.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from ...image.oci.errors import InvalidError

PROFILES: Final = (Path("/etc/containers/seccomp.json"), Path("/usr/share/containers/seccomp.json"))
"""seccomp.json(5) of containers-common: the administrator's replaces the package's."""
_MACHINES: Final = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
}


def default_profile() -> Path | None:
    """The profile of this machine, None if none is installed."""
    return next((path for path in PROFILES if path.is_file()), None)


def seccomp_of(path: Path, capabilities: Collection[str], machine: str | None = None) -> dict[str, Any]:
    """The `linux.seccomp` member for a container with these capabilities. Raises InvalidError for another format."""
    try:
        profile = json.loads(path.read_bytes())
        return _converted(profile, frozenset(capabilities), machine or platform.machine())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidError(f"{path} is no seccomp profile: {error}") from None


def _converted(profile: dict[str, Any], capabilities: frozenset[str], machine: str) -> dict[str, Any]:
    name, own = _MACHINES.get(machine, ("", ""))
    maps = {entry["architecture"]: entry["subArchitectures"] or [] for entry in profile.get("archMap") or []}
    converted = {
        "defaultAction": profile["defaultAction"],
        "architectures": [own, *maps.get(own, ())] if maps else profile.get("architectures", []),
        "syscalls": [_rule(rule) for rule in profile.get("syscalls") or [] if _applies(rule, capabilities, name)],
    }
    if profile.get("defaultErrnoRet") is not None:
        converted["defaultErrnoRet"] = profile["defaultErrnoRet"]
    return converted


def _applies(rule: dict[str, Any], capabilities: frozenset[str], machine: str) -> bool:
    """Whether all `includes` hold and no `excludes` does; kernels before `minKernel` (4.8) do not run this program."""
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    machines = includes.get("arches") or [machine]
    return (
        machine in machines
        and capabilities.issuperset(includes.get("caps") or ())
        and machine not in (excludes.get("arches") or ())
        and capabilities.isdisjoint(excludes.get("caps") or ())
        and "minKernel" not in excludes
    )


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    converted: dict[str, Any] = {"names": rule.get("names") or [rule["name"]], "action": rule["action"]}
    if rule.get("errnoRet") is not None:
        converted["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        converted["args"] = rule["args"]
    return converted
