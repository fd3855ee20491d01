"""The page of an image: what it says in a real browser, at any width, whatever the image's files are called."""

from __future__ import annotations

import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from overlayfs.cli.output import printable
from overlayfs.image.inspect.browse import merged_tree, walk
from overlayfs.image.inspect.report import embedded, report_page
from overlayfs.image.inspect.report_tree import names_column, repeats
from overlayfs.image.layer.file_index import LayerIndex, Record
from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    History,
    ImageConfig,
    Manifest,
    RootFS,
)
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Image
from tests.image.inspect.browser import Visit, document_after_load, outcomes
from tests.image.inspect.indexes import EPOCH, SECOND, directory, file, hard_link, index, symlink, whiteout

HOSTILE_NAMES = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=document.title='owned'>",
    "<!--<script>",
    "]]>&amp;&lt;",
    "\u202egnp.exe",
    "\x1b[31mred\n",
    "\"'`\\",
    "\u2028${1}",
)


def image_of(indexes: list[LayerIndex], *commands: str, name: str = "demo") -> Image:
    """An image with these layers, which lies in no store."""
    config = ImageConfig(
        "amd64",
        "linux",
        RootFS("layers", [layer.diff_id for layer in indexes]),
        history=[History("2026-11-01T10:00:00.5Z", command) for command in commands],
        created="2026-11-01T10:00:00.5Z",
    )
    layers = [Descriptor(OCI_LAYER, layer.diff_id, layer.size // 3) for layer in indexes]
    manifest = Manifest(2, Descriptor(OCI_CONFIG, digest_of(b"config"), 6), layers)
    return Image(Reference.parse(name), Descriptor(OCI_MANIFEST, digest_of(b"manifest"), 8), manifest, config)


def sample() -> list[LayerIndex]:
    return [
        index(
            directory("bin"),
            file("bin/large", 5_000_000, mode=0o4755),
            hard_link("bin/again", "bin/large"),
            symlink("bin/link", "../etc/conf"),
            directory("etc"),
            file("etc/conf", 1000, mtime=EPOCH + 3 * SECOND),
            file("etc/gone", 2_000_000),
            directory("empty"),
            directory("usr"),
            directory("usr/lib"),
            *(file(f"usr/lib/lib{n}.so", 10_000 * n) for n in range(1, 40)),
            file("usr/lib/readme", 10),
        ),
        index(whiteout("etc/gone"), file("etc/conf", 1500), directory("srv"), file("srv/data", 3_000_000)),
    ]


def page_of(indexes: list[LayerIndex], *commands: str) -> bytes:
    return report_page(image_of(indexes, *commands), indexes, printable)


@pytest.mark.parametrize("values", [[], [0], [7, 7, 7, 7, 8], [1, 2, 2, 1], [5] * 1000])
def test_repeats_say_each_run_once(values: list[int]) -> None:
    spread: list[int] = []
    for number in repeats(values):
        spread += [number] if number >= 0 else [spread[-1]] * -number
    assert spread == values
    assert len(repeats(values)) <= max(2, len(values))


def test_names_end_directories() -> None:
    tree = merged_tree([index(directory("a"), directory("a/b"), file("a/b/c"), directory("d"), file("e"))])
    assert names_column(walk(tree), printable) == "a/b/c///d//e"


def test_data_cannot_end_its_element() -> None:
    text = embedded(list(HOSTILE_NAMES))
    assert not set(b"<>&") & set(text)


def test_page_refers_to_nothing_outside() -> None:
    sources = [path.read_text() for path in files("overlayfs.image.inspect").joinpath("page").iterdir()]
    assert len(sources) == 3
    for text in sources:
        for mark in ("http:", "https:", "//cdn", "url(", "@import", "src=", "href=", "innerHTML", "insertAdjacent"):
            assert mark not in text


def test_page_is_the_same_every_time() -> None:
    assert page_of(sample()) == page_of(sample())


def test_hostile_names_and_commands_are_text(tmp_path: Path) -> None:
    records = [file(name.replace("/", "_"), 1000 + n) for n, name in enumerate(HOSTILE_NAMES)]
    raw = Record(b"\xff\xfe<b>", "f", 0o644, size=5, content=b"x" * 16)
    indexes = [index(*records, raw), index(whiteout(records[1].path.decode()))]
    page = tmp_path / "page.html"
    page.write_bytes(page_of(indexes, "RUN </script><script>document.title='owned'</script>", "RUN <!--<script>"))
    shown = document_after_load(page)
    assert "<title>demo" in shown
    assert shown.count("<script") == 2 and "<img" not in shown and "<b>" not in shown
    assert "\\xff\\xfe&lt;b&gt;" in shown and "\u202e" not in shown and "\x1b" not in shown
    assert "RUN &lt;/script&gt;&lt;script&gt;" in shown


USE_THE_PAGE = r"""
const texts = (selector) => [...document.querySelectorAll(selector)].map((element) => element.textContent);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const click = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const named = (name) => (one) => one.querySelector(".label").textContent.startsWith(name);
const row = (name) => [...document.querySelectorAll(".row")].find(named(name));
const tell = (id, kind, value) => { $(id).value = value; $(id).dispatchEvent(new Event(kind)); };
const type = async (words) => { tell("search", "input", words); await wait(300); };
const seen = {};
seen.paths = Array.from({ length: tree.count }, (_, node) => [pathOf(node), tree.sizes[node], tree.layers[node]]);
seen.title = document.title;
seen.summary = texts("#summary dd");
seen.layers = texts("#layers .command");
seen.changes = texts("#layers .changes");
seen.top = texts(".row .label");
click(row("usr"));
click(row("lib"));
seen.open = view.rows.length;
click(row("bin"));
click(row("large"));
seen.details = texts("#details dd");
click(row("again"));
seen.linked = texts("#details dd");
await type("*.so");
seen.found = $("count").textContent;
await type("etc/CON");
seen.in_path = texts(".row .label");
await type("");
tell("order", "change", "size");
seen.by_size = view.rows.filter((node, n) => !view.depths[n]).map((node) => tree.names[node]);
seen.wasted = texts("#wasted .path");
seen.wasted_hint = $("wasted-hint").textContent;
seen.largest = texts("#largest .path").slice(0, 2);
const drawn = areas.filter(([, , , , node]) => !tree.isDirectory(node)).reduce((sum, [, , w, h]) => sum + w * h, 0);
seen.covered = drawn / ($("map").clientWidth * $("map").clientHeight);
const centre = (name) => {
  const [x, y, w, h] = areas.find(([, , , , node]) => tree.names[node] === name);
  const box = $("map").getBoundingClientRect();
  return { clientX: box.left + x + w / 2, clientY: box.top + y + h / 2, bubbles: true };
};
$("map").dispatchEvent(new PointerEvent("pointermove", centre("data")));
seen.tip = $("tip").textContent;
$("map").dispatchEvent(new MouseEvent("click", centre("lib39.so")));
seen.crumbs = texts("#crumbs button");
click(document.querySelectorAll("#layers button")[1]);
seen.of_layer = texts(".row .label");
seen.of_layer_count = $("count").textContent;
seen.root_again = texts("#crumbs button");
click($("all-layers"));
click([...document.querySelectorAll("#largest button")].find((one) => one.textContent === "/usr/lib/lib39.so"));
seen.revealed = document.querySelector(".row[aria-selected=true] .label").textContent;
$("rows").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
seen.above = document.querySelector(".row[aria-selected=true] .label").textContent;
return seen;
"""


def test_the_page_in_use(visited: dict[str, Any]) -> None:
    seen: dict[str, Any] = visited["use"]
    expected, counted = [], set()
    for node in walk(merged_tree(sample())):
        expected.append(["/" + node.path.decode(), 0 if node.origin in counted else node.size, node.layer])
        counted.add(node.origin)
    assert seen.pop("paths") == expected
    assert seen["covered"] > 0.75
    del seen["covered"]
    assert seen == {
        "title": "demo:latest - image report",
        "summary": ["17.0 MiB", "5.7 MiB", "2", "45", "1.9 MiB", "88.8 %"],
        "layers": ["COPY . /", "RUN make"],
        "changes": ["+50  ~0  -0", "+2  ~1  -1"],
        "top": ["bin/", "empty/", "etc/", "srv/", "usr/"],
        "open": 5 + 1 + 40,
        "details": [
            "/bin/large",
            "file",
            "-rwsr-xr-x (4755)",
            "0:0",
            "2023-11-14 22:13:20 UTC",
            "the same file as /bin/again",
            "1: COPY . /",
        ],
        "linked": [
            "/bin/again",
            "file",
            "-rwsr-xr-x (4755)",
            "0:0",
            "2023-11-14 22:13:20 UTC",
            "4.8 MiB (5,000,000 bytes)",
            "1: COPY . /",
        ],
        "found": "39 found of 51",
        "in_path": ["/etc/conf"],
        "by_size": ["usr", "bin", "srv", "etc", "empty"],
        "wasted": ["/etc/gone", "/etc/conf"],
        "wasted_hint": "1.9 MiB in 2 files that later layers delete or replace. "
        "Score of dive, which does not count deleted directories: 88.8 %.",
        "largest": ["/bin/again", "/srv/data"],
        "tip": "/srv/data · 2.9 MiB · layer 2",
        "crumbs": ["/", "usr"],
        "of_layer": ["srv/", "etc/"],
        "of_layer_count": "3 paths of layer 2",
        "root_again": ["/"],
        "revealed": "lib39.so",
        "above": "lib/",
    }


ON_A_PHONE = """
const wide = [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth);
return { inner: innerWidth, scrolls: document.documentElement.scrollWidth > innerWidth,
  wide: wide.map((one) => one.className || one.id),
  columns: getComputedStyle(document.querySelector(".pair")).gridTemplateColumns.split(" ").length };
"""


def many_files(count: int, layers: int) -> list[LayerIndex]:
    """Layers as a distribution's: most files small, in some hundred directories."""
    chance = random.Random(count)
    made = []
    for layer in range(layers):
        paths = {f"usr/{chance.choice('abcdef')}/{chance.randrange(60)}/file-{n}.so" for n in range(count // layers)}
        records = [
            file(f"{path}{layer}", int(chance.paretovariate(0.9) * 500), mtime=EPOCH + chance.randrange(10**6) * SECOND)
            for path in sorted(paths)
        ]
        made.append(index(*records))
    return made


WITH_MANY_FILES = """
const started = performance.now(), took = {};
const timed = (name, work) => { const from = performance.now(); work(); took[name] = performance.now() - from; };
timed("search", () => { view.query = "file-77"; listRows(); });
timed("path search", () => { view.query = "/1/file-5*"; listRows(); });
view.query = "";
timed("open all", () => {
  for (let node = 0; node < tree.count; node++) if (tree.isDirectory(node)) view.open.add(node);
  listRows();
});
timed("scroll", () => { $("rows").scrollTop = 1e6; showRows(); });
timed("map", showMap);
timed("layer", () => chooseLayer(3));
const count = (what) => document.querySelectorAll(what).length;
return { count: tree.count, rows: count(".row"), elements: count("*"), took };
"""


def page_of_many(count: int) -> bytes:
    page = page_of(many_files(count, 10))
    assert len(page) < 40 * count + 100_000
    return page


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of all visits to pages, made at once."""
    long = "usr/share/" + "very-long-name-" * 12
    wide = [*sample(), index(directory("usr"), directory("usr/share"), file(long, 9_000_000))]
    visits = {
        "use": Visit(page_of(sample(), "COPY . /", "RUN make"), USE_THE_PAGE),
        "phone": Visit(page_of(wide, *["RUN " + "x" * 500] * 3), ON_A_PHONE, width=360, height=740),
        "empty": Visit(page_of([]), "return [tree.count, document.querySelectorAll('.row').length]"),
        "many": Visit(page_of_many(10_000), WITH_MANY_FILES),
    }
    return outcomes(visits, tmp_path_factory.mktemp("pages"))


def test_page_of_no_layers(visited: dict[str, Any]) -> None:
    assert visited["empty"] == [1, 0]


def test_the_page_fits_a_phone(visited: dict[str, Any]) -> None:
    assert visited["phone"] == {"inner": 360, "scrolls": False, "wide": [], "columns": 1}


def check_many(seen: dict[str, Any], count: int) -> None:
    assert seen["count"] > count
    assert 10 < seen["rows"] < 100
    assert seen["elements"] < 700, "only what is in sight is in the document"
    assert max(seen["took"].values()) < 2000, seen["took"]


def test_the_page_of_many_files(visited: dict[str, Any]) -> None:
    check_many(visited["many"], 10_000)


@pytest.mark.long
def test_the_page_of_100_000_files(tmp_path: Path) -> None:
    seen = outcomes({"many": Visit(page_of_many(100_000), WITH_MANY_FILES)}, tmp_path)
    check_many(seen["many"], 100_000)
