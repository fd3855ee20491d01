"""Which options does a container have? They are plain data, so that its record keeps them for `start`.

The texts are those of the command line; `parts.check` has read each of them once before a container is made.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from ...image.oci.documents import HealthConfig

PRIVATE, HOST, NONE = "private", "host", "none"
OF_CONTAINER = "container:"
"""The networks of `--network`; the last is followed by the name of a container."""
ADDRESS, NAME_SERVER = "10.0.2.100", "10.0.2.3"
"""slirp4netns(1): the guest and the name server of its default network, 10.0.2.0/24, which is our private one."""


class Settings(Struct, frozen=True, omit_defaults=True):
    """The options of `create` and `run`. Empty values leave those of the image, or docker's defaults, in force.

    `anonymous` are the names of those volumes among `volumes` and `mounts` that got their name with the container.
    """

    command: list[str] = []
    entrypoint: str | None = None
    environment: list[str] = []
    working_directory: str = ""
    user: str = ""
    groups: list[str] = []
    hostname: str = ""
    labels: dict[str, str] = {}
    has_terminal: bool = False
    keeps_stdin: bool = False
    is_read_only: bool = False
    volumes: list[str] = []
    mounts: list[str] = []
    anonymous: list[str] = []
    tmpfs: list[str] = []
    volumes_from: list[str] = []
    network: str = ""
    ports: list[str] = []
    publishes_all: bool = False
    hosts: list[str] = []
    dns: list[str] = []
    added_capabilities: list[str] = []
    dropped_capabilities: list[str] = []
    is_privileged: bool = False
    security: list[str] = []
    has_init: bool = False
    ulimits: list[str] = []
    memory: str = ""
    cpus: str = ""
    pids_limit: int = 0
    stop_signal: str = ""
    stop_timeout_s: int | None = None
    health: HealthConfig | None = None
    runtime: Literal["", "bwrap", "runc"] = ""
    log_driver: Literal["", "k8s-file", "none"] = ""

    @property
    def network_kind(self) -> str:
        """The network; published ports without a network of their own mean a private one."""
        return self.network or (PRIVATE if self.ports or self.publishes_all else HOST)

    @property
    def has_log(self) -> bool:
        return self.log_driver != NONE


NO_SETTINGS: Final = Settings()
