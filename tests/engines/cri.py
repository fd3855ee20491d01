"""A client of the Container Runtime Interface: pods and images asked for as the kubelet does.

The tables follow k8s.io/cri-api, pkg/apis/runtime/v1/api.proto, with the fields that are used here; an enum is an int32
on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from overlayfs.snapshotter.protobuf import add_file, message_class

_PACKAGE = "runtime.v1"
_PATIENCE_S = 240
_NODE = 2  # NamespaceMode: the namespace of the node
_SANDBOX_ID = (("pod_sandbox_id", "string", 1),)
_CONTAINER_ID = (("container_id", "string", 1),)
_IMAGE = (("image", ".runtime.v1.ImageSpec", 1),)
_IMAGE_SERVICE = ("PullImage", "RemoveImage", "ListImages", "ImageStatus")

add_file(
    "tests/cri.proto",
    _PACKAGE,
    {
        "NamespaceOption": (("network", "int32", 1), ("pid", "int32", 2), ("ipc", "int32", 3)),
        "LinuxSandboxSecurityContext": (("namespace_options", ".runtime.v1.NamespaceOption", 1),),
        "LinuxPodSandboxConfig": (
            ("cgroup_parent", "string", 1),
            ("security_context", ".runtime.v1.LinuxSandboxSecurityContext", 2),
        ),
        "PodSandboxMetadata": (
            ("name", "string", 1),
            ("uid", "string", 2),
            ("namespace", "string", 3),
            ("attempt", "uint32", 4),
        ),
        "PodSandboxConfig": (
            ("metadata", ".runtime.v1.PodSandboxMetadata", 1),
            ("log_directory", "string", 3),
            ("labels", "{}", 6),
            ("linux", ".runtime.v1.LinuxPodSandboxConfig", 8),
        ),
        "RunPodSandboxRequest": (("config", ".runtime.v1.PodSandboxConfig", 1), ("runtime_handler", "string", 2)),
        "RunPodSandboxResponse": _SANDBOX_ID,
        "StopPodSandboxRequest": _SANDBOX_ID,
        "StopPodSandboxResponse": (),
        "RemovePodSandboxRequest": _SANDBOX_ID,
        "RemovePodSandboxResponse": (),
        "PodSandbox": (("id", "string", 1), ("state", "int32", 3)),
        "ListPodSandboxRequest": (),
        "ListPodSandboxResponse": (("items", "[.runtime.v1.PodSandbox]", 1),),
        "ImageSpec": (("image", "string", 1),),
        "ContainerMetadata": (("name", "string", 1), ("attempt", "uint32", 2)),
        "LinuxContainerSecurityContext": (("namespace_options", ".runtime.v1.NamespaceOption", 3),),
        "LinuxContainerConfig": (("security_context", ".runtime.v1.LinuxContainerSecurityContext", 2),),
        "ContainerConfig": (
            ("metadata", ".runtime.v1.ContainerMetadata", 1),
            ("image", ".runtime.v1.ImageSpec", 2),
            ("command", "[string]", 3),
            ("log_path", "string", 11),
            ("linux", ".runtime.v1.LinuxContainerConfig", 15),
        ),
        "CreateContainerRequest": (
            ("pod_sandbox_id", "string", 1),
            ("config", ".runtime.v1.ContainerConfig", 2),
            ("sandbox_config", ".runtime.v1.PodSandboxConfig", 3),
        ),
        "CreateContainerResponse": _CONTAINER_ID,
        "StartContainerRequest": _CONTAINER_ID,
        "StartContainerResponse": (),
        "StopContainerRequest": (*_CONTAINER_ID, ("timeout", "int64", 2)),
        "StopContainerResponse": (),
        "RemoveContainerRequest": _CONTAINER_ID,
        "RemoveContainerResponse": (),
        "ExecSyncRequest": (*_CONTAINER_ID, ("cmd", "[string]", 2), ("timeout", "int64", 3)),
        "ExecSyncResponse": (("stdout", "bytes", 1), ("stderr", "bytes", 2), ("exit_code", "int32", 3)),
        "UInt64Value": (("value", "int64", 1),),
        "FilesystemUsage": (
            ("used_bytes", ".runtime.v1.UInt64Value", 3),
            ("inodes_used", ".runtime.v1.UInt64Value", 4),
        ),
        "ContainerStats": (("writable_layer", ".runtime.v1.FilesystemUsage", 4),),
        "ContainerStatsRequest": _CONTAINER_ID,
        "ContainerStatsResponse": (("stats", ".runtime.v1.ContainerStats", 1),),
        "PullImageRequest": _IMAGE,
        "PullImageResponse": (("image_ref", "string", 1),),
        "RemoveImageRequest": _IMAGE,
        "RemoveImageResponse": (),
        "Image": (("id", "string", 1), ("repo_tags", "[string]", 2)),
        "ListImagesRequest": (),
        "ListImagesResponse": (("images", "[.runtime.v1.Image]", 1),),
        "ImageStatusRequest": _IMAGE,
        "ImageStatusResponse": (("image", ".runtime.v1.Image", 1),),
    },
)


@dataclass(frozen=True, slots=True)
class Pod:
    """A sandbox with one container."""

    sandbox: str
    container: str
    log: Path


class Cri:
    """Calls containerd's CRI plugin by the names of its protocol; what fails raises grpc.RpcError."""

    def __init__(self, address: Path, logs: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{address}")
        self._logs = logs

    def __call__(self, method: str, **fields: Any) -> Any:
        service = "ImageService" if method in _IMAGE_SERVICE else "RuntimeService"
        call: grpc.UnaryUnaryMultiCallable[Any, Any] = self._channel.unary_unary(
            f"/{_PACKAGE}.{service}/{method}",
            request_serializer=lambda request: bytes(request.SerializeToString()),
            response_deserializer=message_class(f"{_PACKAGE}.{method}Response").FromString,
        )
        request = message_class(f"{_PACKAGE}.{method}Request")(**fields)
        return call(request, timeout=_PATIENCE_S, wait_for_ready=True)

    def pull(self, image: str) -> None:
        self("PullImage", image={"image": image})

    def start_pod(self, name: str, image: str, *command: str) -> Pod:
        """What the kubelet does for a pod of one container, on the node's network."""
        sandbox = self._sandbox_config(name)
        sandbox_id = self("RunPodSandbox", config=sandbox).pod_sandbox_id
        container = {
            "metadata": {"name": "main"},
            "image": {"image": image},
            "command": command,
            "log_path": "main.log",
            "linux": {"security_context": {"namespace_options": {"network": _NODE, "pid": 1}}},
        }
        container_id = self(
            "CreateContainer", pod_sandbox_id=sandbox_id, config=container, sandbox_config=sandbox
        ).container_id
        self("StartContainer", container_id=container_id)
        return Pod(sandbox_id, container_id, self._logs / name / "main.log")

    def _sandbox_config(self, name: str) -> dict[str, Any]:
        return {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "tests"},
            "log_directory": str(self._logs / name),
            "linux": {"security_context": {"namespace_options": {"network": _NODE, "pid": 1}}},
        }

    def exec(self, pod: Pod, commands: str) -> str:
        done = self("ExecSync", container_id=pod.container, cmd=["/bin/sh", "-ec", commands], timeout=60)
        assert done.exit_code == 0, (commands, done.stderr)
        return bytes(done.stdout).decode()

    def remove_pod(self, sandbox: str) -> None:
        """As the kubelet removes a pod: its containers go with it."""
        self("StopPodSandbox", pod_sandbox_id=sandbox)
        self("RemovePodSandbox", pod_sandbox_id=sandbox)

    def sandboxes(self) -> set[str]:
        return {sandbox.id for sandbox in self("ListPodSandbox").items}

    def images(self) -> set[str]:
        return {tag for image in self("ListImages").images for tag in image.repo_tags}

    def close(self) -> None:
        self._channel.close()
