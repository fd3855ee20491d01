"""How much may a layer, archive or document ask of us? Guards against bombs; each can be raised by who trusts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes. Whatever exceeds one is refused with a LimitError that names it.

    `layer_size` counts what a tar unpacks to, holes of sparse files included. `ratio` is how many times larger than
    its compressed form a stream may be; it counts from `ratio_from` bytes on, as a small file of zeros is no bomb.
    """

    layer_size: int = 64 << 30
    ratio: int = 200
    ratio_from: int = 256 << 20
    members: int = 1_000_000
    header_size: int = 1 << 20  # one extended header: pax, or a GNU long name; Go's and so most tools' bound
    sparse_extents: int = 1 << 18
    path_length: int = 4095  # PATH_MAX without the NUL: nobody could open a longer one
    name_length: int = 255
    window_size: int = 128 << 20  # of zstd: what its own program allows


DEFAULT_LIMITS = Limits()
