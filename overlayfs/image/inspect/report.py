"""How does an image become one HTML page? All in one file, without network access, fonts or scripts from elsewhere.

The parts of the page are the files in page/. Contents of the image are only ever data: JSON that cannot end the element
it stands in. The page's own script, which the content security policy names by its hash, reads them and shows them as
text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..layer.file_index import LayerIndex
from ..oci.documents import layer_steps
from .browse import EMPTY, layer_changes, merged_trees
from .report_tree import tree_document
from .waste import Waste, find_waste

if TYPE_CHECKING:
    from ..store.store import Image

_MOST_WASTED: Final = 500  # the most entries on the page; its sums are of all


def report_page(image: Image, indexes: Sequence[LayerIndex], printable: Callable[[bytes], str]) -> bytes:
    """The page of an image with these layers, bottom first; `printable` escapes names and texts."""
    page = {
        name: files(__package__).joinpath("page", name).read_bytes() for name in ("page.html", "page.css", "page.js")
    }
    script, style = page["page.js"], page["page.css"]
    parts = {
        b"@POLICY@": _policy(script, style),
        b"@STYLE@": style,
        b"@DATA@": embedded(report_document(image, indexes, printable)),
        b"@SCRIPT@": script,
    }
    return b"".join(parts.get(piece, piece) for piece in _pieces(page["page.html"], list(parts)))


def _pieces(template: bytes, marks: list[bytes]) -> list[bytes]:
    """The template, cut at the marks; each occurs once, in this order."""
    pieces = []
    for mark in marks:
        before, _, template = template.partition(mark)
        pieces += [before, mark]
    return [*pieces, template]


def _policy(script: bytes, style: bytes) -> bytes:
    """The content security policy: nothing is loaded, and no script but the page's own is run."""
    return f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'".encode()


def _hash(source: bytes) -> str:
    """The hash by which Content Security Policy Level 3 names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source).digest()).decode()}'"


def embedded(document: Any) -> bytes:
    """JSON for a script element: without characters that HTML would read as a tag, comment or entity."""
    text = msgspec.json.encode(document)
    return text.replace(b"<", rb"\u003c").replace(b">", rb"\u003e").replace(b"&", rb"\u0026")


def report_document(image: Image, indexes: Sequence[LayerIndex], printable: Callable[[bytes], str]) -> dict[str, Any]:
    """The data of the page."""
    trees = merged_trees(indexes)

    def text(words: str) -> str:
        return printable(words.encode("utf-8", "backslashreplace"))

    platform = "/".join(filter(None, (image.config.os, image.config.architecture, image.config.variant)))
    return {
        "name": text(image.name),
        "id": image.id,
        "digest": image.descriptor.digest,
        "platform": text(platform),
        "created": text(image.config.created),
        "layers": [
            {
                "diff_id": index.diff_id,
                "stored": descriptor.size,
                "size": changes.size,
                "added": changes.added,
                "modified": changes.modified,
                "deleted": changes.deleted,
                "command": text(step.created_by),
                "comment": text(step.comment),
                "created": text(step.created),
            }
            for index, descriptor, changes, step in zip(
                indexes, image.manifest.layers, layer_changes(indexes, trees), layer_steps(image.config), strict=True
            )
        ],
        "waste": _waste_document(find_waste(indexes, trees), printable),
        "tree": tree_document(trees[-1] if trees else EMPTY, printable),
    }


def _waste_document(waste: Waste, printable: Callable[[bytes], str]) -> dict[str, Any]:
    return {
        "efficiency": waste.efficiency,
        "dive_score": waste.dive_score,
        "wasted": waste.wasted,
        "count": waste.count,
        "hidden": [
            [printable(item.path), item.size, item.count, item.layers, item.hidden_by, item.reason.value]
            for item in waste.hidden[:_MOST_WASTED]
        ],
    }
