"""`overlayfs inspect` of containers, `port`, `top` and `stats`: what a container is, and what it does now."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from overlayfs.cli.container.running import LOG
from overlayfs.cli.container.under_runc import bundle_of, call_runc, running_under_runc
from overlayfs.cli.output import Cell, format_size, print_json, print_table
from overlayfs.cli.store.inspect import details_of
from overlayfs.cli.template import print_documents
from overlayfs.container.containers import Container, Containers
from overlayfs.container.health import Health, check_of
from overlayfs.container.live.signals import program_of
from overlayfs.container.live.status import exit_code_of, status_of
from overlayfs.container.spec.parts import ports_of
from overlayfs.container.volumes import Volumes, mounts_of
from overlayfs.image.oci.errors import InvalidError, NotFoundError
from overlayfs.image.store.store import Store


def is_a_container_among(store_directory: Path | None, names: Sequence[str]) -> bool:
    """Whether a name is that of a container. Never makes a store."""
    with Store.open(store_directory) as store:
        return any(Containers(store).find_if_there(name) for name in names)


def inspect(store_directory: Path | None, names: Sequence[str], template: str = "") -> None:
    """One JSON list, with the names of `docker container inspect`; or the template filled for each."""
    with Store.open(store_directory) as store:
        documents = [_document_of(store, name) for name in names]
    print_documents(documents, template)


def inspect_any(store_directory: Path | None, names: Sequence[str], template: str = "") -> None:
    """The same of containers and images, of which containers come first."""
    with Store.open(store_directory) as store:
        containers = Containers(store)
        documents = [
            _document_of(store, name) if containers.find_if_there(name) else details_of(store, store.find(name))
            for name in names
        ]
    print_documents(documents, template)


def _document_of(store: Store, name: str) -> dict[str, Any]:
    containers = Containers(store)
    return _document(store, containers, containers.find(name))


def _document(store: Store, containers: Containers, container: Container) -> dict[str, Any]:
    settings, directory = container.settings, containers.directory(container)
    image = store.load_by_manifest(container.manifest)
    config = image.config.config
    return {
        "Id": container.id,
        "Name": container.name,
        "Created": container.created,
        "Path": container.command[0] if container.command else "",
        "Args": container.command[1:],
        "State": _state(container, directory.parent.parent),
        "Image": image.id,
        "ImageName": container.image,
        "LogPath": str(directory / LOG) if (directory / LOG).exists() else "",
        "HostConfig": {
            "NetworkMode": settings.network_kind,
            "PortBindings": _wanted_bindings(settings.ports),
            "AutoRemove": container.is_ephemeral,
            "CapAdd": settings.added_capabilities,
            "CapDrop": settings.dropped_capabilities,
            "Privileged": settings.is_privileged,
            "ReadonlyRootfs": settings.is_read_only,
            "SecurityOpt": settings.security,
            "Memory": settings.memory,
            "Cpus": settings.cpus,
            "PidsLimit": settings.pids_limit,
            "Runtime": settings.runtime or "runc",
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        },
        "GraphDriver": {
            "Name": "overlayfs",
            "Data": {"UpperDir": str(containers.upper(container)), "Layers": list(container.layers)},
        },
        "Mounts": list(_mounts(store, container)),
        "Config": {
            "Hostname": settings.hostname or container.name,
            "User": settings.user or config.user,
            "Env": [*config.env, *settings.environment],
            "Cmd": settings.command or config.cmd,
            "Entrypoint": config.entrypoint if settings.entrypoint is None else [settings.entrypoint],
            "WorkingDir": settings.working_directory or config.working_dir,
            "Labels": settings.labels,
            "Tty": settings.has_terminal,
            "OpenStdin": settings.keeps_stdin,
            "StopSignal": settings.stop_signal or config.stop_signal,
            "StopTimeout": settings.stop_timeout_s,
            "Healthcheck": to_builtins(check_of(settings.health, config.healthcheck)),
        },
        "NetworkSettings": {"Ports": _bindings(container.ports)},
    }


def _state(container: Container, store: Path) -> dict[str, Any]:
    bundle = bundle_of(store, container)
    status = status_of(container, bundle)
    program = program_of(container, bundle)
    return {
        "Status": status,
        "Running": status in ("running", "paused"),
        "Paused": status == "paused",
        "Pid": program or 0,
        "ExitCode": exit_code_of(container),
        "StartedAt": _time(container.started),
        "FinishedAt": _time(container.ended),
        **({"Health": _health(container.health)} if container.health else {}),
    }


def _health(health: Health) -> dict[str, Any]:
    """Docker's members."""
    probes = [
        {"Start": _time(one.started), "End": _time(one.ended), "ExitCode": one.exit_status, "Output": one.output}
        for one in health.probes
    ]
    return {"Status": health.status, "FailingStreak": health.failures, "Log": probes}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds") if seconds else ""


def _wanted_bindings(texts: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Docker's members from the options."""
    found: dict[str, list[dict[str, str]]] = {}
    for port in (port for text in texts for port in ports_of(text)):
        host = f"{port.host}-{port.last}" if port.last else str(port.host or "")
        found.setdefault(f"{port.container}/{port.protocol}", []).append({"HostIp": port.address, "HostPort": host})
    return found


def _bindings(published: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Docker's members from `0.0.0.0:8080->80/tcp`."""
    found: dict[str, list[dict[str, str]]] = {}
    for text in published:
        host, _, inner = text.partition("->")
        address, _, number = host.rpartition(":")
        found.setdefault(inner, []).append({"HostIp": address, "HostPort": number})
    return found


def _mounts(store: Store, container: Container) -> Iterator[dict[str, Any]]:
    try:
        mounts = mounts_of(container.settings, Volumes(store))
    except (InvalidError, NotFoundError):  # a source is gone
        return
    for volume in mounts.volumes:
        name = mounts.named.get(volume.target)
        yield {
            "Type": "volume" if name else "bind",
            **({"Name": name} if name else {}),
            "Source": str(volume.source),
            "Destination": volume.target,
            "RW": not volume.is_read_only,
        }
    for tmpfs in mounts.tmpfs:
        yield {"Type": "tmpfs", "Source": "", "Destination": tmpfs.target, "RW": not tmpfs.flags & 1}


def show_ports(store_directory: Path | None, name: str, wanted: str) -> None:
    """The published ports of a running container, as docker prints them. Raises NotFoundError for `wanted`."""
    with Store.open(store_directory) as store:
        container = Containers(store).find(name)
    pairs = [text.partition("->")[::2] for text in (container.ports if container.is_active else [])]
    if wanted:
        inner = wanted if "/" in wanted else f"{wanted}/tcp"
        pairs = [pair for pair in pairs if pair[1] == inner]
        if not pairs:
            raise NotFoundError(f"the container {container.name} publishes no port {inner}")
    for host, inner in pairs:
        print(host if wanted else f"{inner} -> {host}")


def show_processes(store_directory: Path | None, name: str, options: Sequence[str]) -> None:
    """What ps(1) says about the processes of a container. Raises InvalidError for what it says about the options."""
    container, store = running_under_runc(store_directory, name)
    program = program_of(container, bundle_of(store, container))
    assert program is not None
    pids = [str(pid) for pid in _processes_of(program)]
    words = ["ps", *(options or ["-f"]), "-p", ",".join(pids)]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode and done.stderr:
        raise InvalidError(f"ps: {done.stderr.splitlines()[0].removeprefix('error: ')}")
    print("\n".join(_lines_about(pids, done.stdout.splitlines())))


def _lines_about(pids: Sequence[str], lines: Sequence[str]) -> Iterator[str]:
    """The heading and the lines of these processes, found by the column PID as docker does: -e and `aux` list all."""
    heading = lines[0].split() if lines else []
    if "PID" not in heading:
        raise InvalidError("top needs ps to show the column PID: as in -o pid,user,args")
    column = heading.index("PID")
    yield lines[0]
    # a program may have no name: its line has fewer words
    yield from (line for line in lines[1:] if any(word in pids for word in line.split()[column : column + 1]))


def _processes_of(program: int) -> Iterator[int]:
    """All processes of its pid namespace."""
    namespace = os.stat(f"/proc/{program}/ns/pid").st_ino
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}/ns/pid").st_ino == namespace:
                yield int(name)
        except OSError:  # it has ended, or is another user's
            continue


def show_usage(store_directory: Path | None, names: Sequence[str], *, as_json: bool) -> None:
    """What running containers use now, as their cgroups count it."""
    if not names:
        with Store.open(store_directory) as store:
            everyone = Containers(store).readable().containers
            listed = [one for one in everyone if one.is_active and not one.mountpoint]
            names = [one.name for one in listed if program_of(one, bundle_of(store.path, one))]
    usages = [_usage(store_directory, name) for name in names]
    if as_json:
        print_json(usages)
    else:
        rows = [
            [
                Cell(one["name"], "bold"),
                Cell(f"{one['cpu_s']:.2f} s"),
                Cell(format_size(one["memory"])),
                Cell(str(one["pids"])),
            ]
            for one in usages
        ]
        print_table(("NAME", "CPU TIME", "MEMORY", "PIDS"), rows)


def _usage(store_directory: Path | None, name: str) -> dict[str, Any]:
    container, store = running_under_runc(store_directory, name)
    data = json.loads(call_runc(container, store, "events", "--stats"))["data"]
    return {
        "name": container.name,
        "id": container.id,
        "cpu_s": data["cpu"]["usage"].get("total", 0) / 1e9,
        "memory": data["memory"]["usage"].get("usage", 0),
        "pids": data["pids"].get("current", 0),
    }
