"""containerd's filter grammar: which snapshots a filter chooses, and which texts are no filters."""

from __future__ import annotations

import pytest

from overlayfs.snapshotter.filters import parse
from overlayfs.snapshotter.metadata import Info, InvalidArgument, Kind

INFOS = (
    Info("base", "", Kind.COMMITTED, {"containerd.io/gc.root": "now", "size": "1"}, 1, 1),
    Info("app", "base", Kind.ACTIVE, {"a.b": "x,y", "quote": 'say "hi"'}, 1, 1),
    Info("look", "base", Kind.VIEW, {}, 1, 1),
)


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        ((), "base app look"),
        (("name==app",), "app"),
        (("name!=app",), "base look"),
        (("name==app", "kind==view"), "app look"),
        (("kind==active,parent==base",), "app"),
        (("kind==committed,parent==base",), ""),
        (('parent==""',), "base"),
        (('parent!=""',), "app look"),
        (("name~=^a.p$",), "app"),
        (("name~=/o+/",), "look"),
        ((r"name~=|a(p\|s)|",), "base app"),
        ((r"name~=/^\\w{3}$/",), "app"),
        (("labels.size",), "base"),
        (('labels."containerd.io/gc.root"',), "base"),
        (('labels."containerd.io/gc.root"==now',), "base"),
        (('labels."containerd.io/gc.root"!=now',), "app look"),
        (("labels.a.b",), "app"),
        (('labels."a.b"=="x,y"',), "app"),
        ((r'labels.quote=="say \"hi\""',), "app"),
        ((r'name=="\x61\160\u0070"',), "app"),
        (("labels",), ""),
        (("nothing",), ""),
        (("nothing!=x",), "base app look"),
        ((r'name=="\x62ase"',), "base"),
        (('"name" == app,kind',), "app"),
        (("name==sha256:12/3",), ""),
    ],
)
def test_filter_chooses(filters: tuple[str, ...], chosen: str) -> None:
    chooses = parse(filters)
    assert [info.name for info in INFOS if chooses(info)] == chosen.split()


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "name==", "name=app", "name===app", "name==a b", "name==app,", "name.", 'name=="app', "n-e==x",
        "==app", "name~=(", "name~=|a(p|s)|", r'name=="\q"', r'name=="\UFFFFFFFF"', "name==/app/", "name=='a' b",
    ],
)  # fmt: skip
def test_other_text_is_an_invalid_argument(text: str) -> None:
    with pytest.raises(InvalidArgument, match="filter"):
        parse([text])
