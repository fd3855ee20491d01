"""Which step of an image's history made which layer?"""

from __future__ import annotations

from .model import History, ImageConfig

_UNKNOWN = History()


def layer_steps(config: ImageConfig) -> list[History]:
    """One for each layer, bottom first: empty where the history is missing or does not tell of as many layers.

    OCI image specification, config.md: the steps that are not marked `empty_layer` are those of the layers, in order.
    """
    layers = len(config.rootfs.diff_ids)
    steps = [step for step in config.history if not step.empty_layer]
    return steps if len(steps) == layers else [_UNKNOWN] * layers
