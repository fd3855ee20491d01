"""The cases, by what they are about."""

from __future__ import annotations

from ..case import Case
from . import attributes, content, flags, linked, naming, owners, reading, renaming

CASES: list[Case] = [
    *reading.CASES,
    *naming.CASES,
    *renaming.CASES,
    *attributes.CASES,
    *content.CASES,
    *linked.CASES,
    *flags.CASES,
    *owners.CASES,
]
