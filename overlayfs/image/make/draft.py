"""What is an image in the making? The decoded configuration of its base, for editing, and its layers.

Unknown members of the configuration are kept, layers below stay the same blobs. Nothing has a name before all parts are
in the store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Self

import msgspec
from msgspec.structs import replace

from ..oci.documents import (
    LAYER_TYPES,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    History,
    ImageConfig,
    Manifest,
    Platform,
    RunConfig,
    dump,
    parse_members,
)
from ..oci.platforms import this_platform
from ..store.store import Image, Store
from .layer_blob import NewLayer

_OF_A_CONTAINER: Final = ("container", "container_config", "docker_version", "id", "parent")
"""Members of docker's configurations that describe the container of the base image, not of the new one."""
# the check of `raw` counts: it has members that HealthConfig leaves out
_RUN_MEMBERS: Final = {member.encode_name for member in msgspec.structs.fields(RunConfig)} - {"Healthcheck"}

Raw = dict[str, Any]


@dataclass(slots=True)
class Draft:
    """`raw` is the whole configuration, with a history entry for each layer; the known members of its `config` but
    the health check are those of `config`, which may be replaced, and get into it when it is written."""

    raw: Raw
    layers: list[Descriptor]
    config: RunConfig = field(init=False)
    _before: RunConfig = field(init=False)

    def __post_init__(self) -> None:
        self.config = self._before = msgspec.convert(self.raw.get("config", {}), RunConfig)

    @classmethod
    def empty(cls, platform: Platform | None = None) -> Self:
        described = msgspec.to_builtins(platform or this_platform())
        rootfs = {"type": "layers", "diff_ids": []}
        return cls({**described, "config": {}, "rootfs": rootfs, "history": []}, [])

    @classmethod
    def on(cls, store: Store, base: Image | None) -> Self:
        """As the base image; empty for None."""
        if base is None:
            return cls.empty()
        raw: Raw = parse_members(store.read_blob(base.manifest.config), ImageConfig, base.name)
        raw["rootfs"]["diff_ids"] = diff_ids = list(base.config.rootfs.diff_ids)
        history = raw.get("history", [])
        unknown = len(diff_ids) - sum(not step.get("empty_layer") for step in history)
        raw["history"] = [{} for _ in range(unknown)] + history
        kept = {name: member for name, member in raw.items() if name not in _OF_A_CONTAINER}
        return cls(kept, [_as_oci(descriptor) for descriptor in base.manifest.layers])

    def add(self, step: History, layer: NewLayer | None) -> None:
        """Add one step of the history, with its layer or without; the image is as old as its last step."""
        self.raw["history"].append(msgspec.to_builtins(replace(step, empty_layer=layer is None)))
        self.raw["created"] = step.created
        if layer is not None:
            self.raw["rootfs"]["diff_ids"].append(layer.diff_id)
            self.layers.append(layer.descriptor)

    def replace_layers(self, step: History, layer: NewLayer) -> None:
        """Make `layer` the only one; the history keeps the steps before."""
        self.raw["history"] = [{**before, "empty_layer": True} for before in self.raw["history"]]
        self.raw["rootfs"]["diff_ids"], self.layers = [], []
        self.add(step, layer)

    def write(self, store: Store) -> Descriptor:
        """Put configuration and manifest into the store; the manifest's descriptor, which has no name yet."""
        if self.config is not self._before:
            unknown = {name: member for name, member in self.raw.get("config", {}).items() if name not in _RUN_MEMBERS}
            self.raw["config"] = {**msgspec.to_builtins(self.config), **unknown}
            self._before = self.config
        config = store.add_blob(msgspec.json.encode(self.raw), OCI_CONFIG)
        manifest = Manifest(schema_version=2, media_type=OCI_MANIFEST, config=config, layers=self.layers)
        return store.add_blob(dump(manifest), OCI_MANIFEST)


def _as_oci(layer: Descriptor) -> Descriptor:
    """The same blob with OCI's media type, as a manifest may not mix OCI's and docker's."""
    compression = LAYER_TYPES.get(layer.media_type, "")
    if compression == "":
        return layer
    return replace(layer, media_type=f"{OCI_LAYER}+{compression}" if compression else OCI_LAYER)
