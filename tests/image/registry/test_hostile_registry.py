"""A registry that lies: nothing unverified becomes visible, nothing is fetched from where it points."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio

from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_DOCUMENT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Manifest,
)
from overlayfs.image.oci.errors import ImageError, InvalidError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.registry.transfer import pull, push, tags
from overlayfs.image.store.store import Image, Store
from tests.image.making import put, tar
from tests.image.registry.fake_registry import ACCESS, FakeRegistry, Reply, on, once, serving

LAYER = tar({"etc/os": b"debian"})


@pytest.fixture
def image(fake: FakeRegistry, theirs: Store) -> Image:
    """An image that the registry has as app:1."""
    made = put(theirs, None, LAYER)
    fake.publish(theirs, made, "app", "1")
    return made


def refused(store: Store, fake: FakeRegistry, version: str = ":1", match: str = ".") -> ImageError:
    """The pull fails with one line; no image and no blob is visible that is not what its name says."""
    reference = Reference.parse(f"{fake.name}/app{version}")
    with pytest.raises(ImageError, match=match) as raised:
        trio.run(pull, store, reference, None, ACCESS)
    assert "\n" not in str(raised.value) and str(raised.value).isprintable() and len(str(raised.value)) < 600
    assert store.entries() == []
    for path in (store.path / "blobs/sha256").iterdir():
        assert digest_of(path.read_bytes()) == f"sha256:{path.name}"
    return raised.value


def document(fake: FakeRegistry, image: Image) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fake.manifests["app", "1"][1])
    return found


def publish(fake: FakeRegistry, document: Any, media_type: str = OCI_MANIFEST) -> None:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    for version in ("1", digest_of(data)):
        fake.manifests["app", version] = (media_type, data)


def same_size(data: bytes) -> bytes:
    return bytes(len(data))


@pytest.mark.parametrize(
    "change",
    [same_size, lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: data + bytes(1 << 22)],
    ids=["other bytes", "shorter", "longer", "empty", "much longer"],
)
@pytest.mark.parametrize("which", ["layer", "config"])
def test_blob_that_is_not_what_was_promised(
    store: Store, fake: FakeRegistry, image: Image, change: Callable[[bytes], bytes], which: str
) -> None:
    blob = image.manifest.config if which == "config" else image.manifest.layers[0]
    fake.blobs[blob.digest] = change(fake.blobs[blob.digest])
    refused(store, fake, match=blob.digest)
    assert not store.has_blob(blob.digest)
    assert all("partial" not in name or which == "config" for name in os.listdir(store.path / "tmp"))


def test_endless_blob_ends(store: Store, fake: FakeRegistry, image: Image) -> None:
    blob = image.manifest.layers[0]
    reply = Reply(
        200, {"Transfer-Encoding": "chunked", "Content-Length": "0"}, b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    )
    del reply.headers["Content-Length"]
    fake.rules.append(on("GET", blob.digest, reply))
    refused(store, fake)


def test_tag_whose_digest_header_lies(store: Store, fake: FakeRegistry, image: Image) -> None:
    media_type, data = fake.manifests["app", "1"]
    headers = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(b"")}
    fake.rules.append(on("GET", "manifests/1", Reply(200, headers, data)))
    refused(store, fake, match="has the digest")


def test_digest_that_gives_another_manifest(store: Store, fake: FakeRegistry, image: Image) -> None:
    wanted = digest_of(b"another")
    fake.manifests["app", wanted] = fake.manifests["app", "1"]
    media_type, data = fake.manifests["app", "1"]
    fake.rules.append(
        on("GET", wanted, Reply(200, {"Content-Type": media_type, "Docker-Content-Digest": wanted}, data))
    )
    refused(store, fake, f"@{wanted}", match="has the digest")


@pytest.mark.parametrize(
    "digest",
    [
        "../../../../etc/passwd",
        "sha256:../../../../../../etc/cron.d/x",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 64 + "\n",
        "md5:" + "a" * 32,
        "sha512:" + "a" * 128,
        "",
        "sha256:" + "a" * 64 + "/../x",
    ],
)
@pytest.mark.parametrize("which", ["config", "layer", "index"])
def test_digest_that_is_none(store: Store, fake: FakeRegistry, image: Image, digest: str, which: str) -> None:
    changed = document(fake, image)
    if which == "index":
        member = {
            "mediaType": OCI_MANIFEST,
            "digest": digest,
            "size": 5,
            "platform": {"os": "linux", "architecture": "x"},
        }
        publish(fake, {"schemaVersion": 2, "manifests": [member]}, OCI_INDEX)
    else:
        (changed["config"] if which == "config" else changed["layers"][0])["digest"] = digest
        publish(fake, changed)
    before = len(fake.requests)
    refused(store, fake, match="not a sha256 digest")
    assert len(fake.requests) <= before + 2


def ambiguous(made: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Documents that can be read as two things, and the type they come as: CVE-2021-41190."""
    without = {key: value for key, value in made.items() if key != "mediaType"}
    return [
        ({**made, "manifests": []}, OCI_MANIFEST),
        ({**without, "manifests": []}, OCI_INDEX),
        ({**made, "mediaType": OCI_INDEX}, OCI_MANIFEST),
        (made, OCI_INDEX),
        (made, DOCKER_LIST),
        ({**made, "mediaType": DOCKER_MANIFEST}, OCI_MANIFEST),
        ({**made, "fsLayers": []}, OCI_MANIFEST),
        (without, "application/json"),
        (without, "text/html"),
        ({**made, "mediaType": 5}, OCI_MANIFEST),
    ]


@pytest.mark.parametrize("number", range(10))
def test_ambiguous_manifest(store: Store, fake: FakeRegistry, image: Image, number: int) -> None:
    publish(fake, *ambiguous(document(fake, image))[number])
    refused(store, fake)
    assert fake.sent("GET", "/blobs/") == []


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("urls", ["https://elsewhere.example/layer"]),
        ("mediaType", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        ("mediaType", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
        ("mediaType", "application/x-sh"),
    ],
)
def test_foreign_layers_are_not_fetched(
    store: Store, fake: FakeRegistry, image: Image, member: str, value: Any
) -> None:
    with serving("localhost") as other:
        changed = document(fake, image)
        changed["layers"][0][member] = [f"{other.url}/layer"] if member == "urls" else value
        if member != "urls":
            changed["layers"][0]["urls"] = [f"{other.url}/layer"]
            publish(fake, changed)
            refused(store, fake, match="which is no layer|is of no image, but of 'application/x-sh'")
        else:  # of an ordinary layer: the registry has it too, and its urls mean nothing
            publish(fake, changed)
            trio.run(pull, store, Reference.parse(f"{fake.name}/app:1"), None, ACCESS)
        assert other.requests == []


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made["config"].update(size=-1),
        lambda made: made["config"].update(size=MAX_DOCUMENT + 1),
        lambda made: made["config"].update(size="7"),
        lambda made: made["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json"),
        lambda made: made.update(layers=made["layers"] * 1001),
        lambda made: made.update(layers=[]),
        lambda made: made.update(layers=None),
        lambda made: made.update(config=None),
        lambda made: made.pop("config"),
        lambda made: made["layers"][0].update(size=1 << 80),
        lambda made: made["layers"][0].update(size=made["layers"][0]["size"] + 1),
        lambda made: made["layers"][0].update(size=made["layers"][0]["size"] - 1),
    ],
)
def test_manifest_that_makes_no_sense(
    store: Store, fake: FakeRegistry, image: Image, change: Callable[[dict[str, Any]], Any]
) -> None:
    changed = document(fake, image)
    change(changed)
    publish(fake, changed)
    refused(store, fake)


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{", b"\xff", b'"x"', b"[" * 100_000, b" " * (MAX_DOCUMENT + 1)]
)
def test_manifest_that_is_none(store: Store, fake: FakeRegistry, data: bytes) -> None:
    publish(fake, data)
    refused(store, fake)


def test_manifest_of_schema_1_is_named(store: Store, fake: FakeRegistry) -> None:
    publish(fake, {"schemaVersion": 1, "fsLayers": []}, "application/vnd.docker.distribution.manifest.v1+prettyjws")
    refused(store, fake, match="schema 1")


@pytest.mark.parametrize(
    "config",
    [b"{}", b"null", b"{", b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["../x"]}}'],
)
def test_configuration_that_is_none(store: Store, fake: FakeRegistry, image: Image, config: bytes) -> None:
    changed = document(fake, image)
    changed["config"] = {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)}
    fake.blobs[digest_of(config)] = config
    fake.repositories["app"].add(digest_of(config))
    publish(fake, changed)
    refused(store, fake)


def test_index_within_an_index_is_not_followed(store: Store, fake: FakeRegistry) -> None:
    platform = {"os": "linux", "architecture": "amd64"}
    inner = {"schemaVersion": 2, "manifests": []}
    data = json.dumps(inner).encode()
    fake.manifests["app", digest_of(data)] = (OCI_INDEX, data)
    member = {"mediaType": OCI_INDEX, "digest": digest_of(data), "size": len(data), "platform": platform}
    publish(fake, {"schemaVersion": 2, "manifests": [member]}, OCI_INDEX)
    refused(store, fake, match="no image for")


@pytest.mark.parametrize(
    "change", [{"size": 1}, {"mediaType": DOCKER_MANIFEST}, {"digest": digest_of(b"other")}], ids=str
)
def test_member_of_an_index_that_is_not_as_described(
    store: Store, fake: FakeRegistry, image: Image, change: dict[str, Any]
) -> None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    member = {
        "mediaType": OCI_MANIFEST,
        "digest": image.descriptor.digest,
        "size": image.descriptor.size,
        "platform": {"os": "linux", "architecture": machine},
        **change,
    }
    if "digest" in change:
        fake.manifests["app", change["digest"]] = fake.manifests["app", "1"]
    publish(fake, {"schemaVersion": 2, "manifests": [member]}, OCI_INDEX)
    refused(store, fake)


def test_redirects_without_end_end(store: Store, fake: FakeRegistry, image: Image) -> None:
    fake.rules.append(on("GET", "", Reply(307, {"Location": "/v2/round/and/round"})))
    refused(store, fake, match="redirects without end")


@pytest.mark.parametrize("location", ["", "http://registry.example.com/x", "file:///etc/passwd", "http://[/"])
def test_redirect_to_no_place_is_refused(store: Store, fake: FakeRegistry, image: Image, location: str) -> None:
    fake.rules.append(on("GET", "/blobs/", Reply(307, {"Location": location})))
    refused(store, fake)


def test_what_a_registry_says_does_not_reach_the_terminal_raw(store: Store, fake: FakeRegistry) -> None:
    body = json.dumps({"errors": [{"code": "X", "message": "\x1b[2J\r\nall is well\n" + "y" * 10_000}]}).encode()
    fake.rules.append(on("GET", "", Reply(404, {}, body)))
    refused(store, fake, match=r"\\x1b\[2J")


@pytest.mark.parametrize("status", [202, 204, 301, 304, 400, 405, 418, 501])
def test_any_other_status_is_an_error(store: Store, fake: FakeRegistry, status: int) -> None:
    fake.rules.append(on("GET", "", Reply(status)))
    refused(store, fake)


def test_answer_that_is_no_http(store: Store, fake: FakeRegistry) -> None:
    fake.rules.append(on("GET", "", Reply(200, {"Content-Length": "-5"}, b"x")))
    refused(store, fake)


@pytest.mark.parametrize("reply", [Reply(404, {}, bytes(5000), cut=10), Reply(404, {}, bytes(1 << 20))])
def test_refusal_is_one_however_it_is_worded(store: Store, fake: FakeRegistry, image: Image, reply: Reply) -> None:
    fake.rules.append(on("GET", "blobs", reply))
    refused(store, fake, match=f"{image.id} is not there: Not Found")


def test_busy_registry_may_have_much_to_say(store: Store, fake: FakeRegistry, image: Image) -> None:
    fake.rules.append(once(on("GET", "manifests", Reply(503, {}, bytes(1 << 20)))))
    assert trio.run(pull, store, Reference.parse(f"{fake.name}/app:1"), None, ACCESS).id == image.id


@pytest.mark.parametrize("header", ["Range", "OCI-Chunk-Min-Length"])
def test_number_of_many_digits_is_none(store: Store, fake: FakeRegistry, header: str) -> None:
    answer = Reply(202, {"Location": "/v2/app/blobs/uploads/x", "Range": "0-0", header: "0-" * (header == "Range")})
    answer.headers[header] += "9" * 5000
    fake.rules += [on("POST", "", answer), on("PATCH", "", answer)]
    fake.uploads["x"] = b""
    made = put(store, None, LAYER, kind=None)
    with pytest.raises(ImageError):
        trio.run(push, store, made, Reference.parse(f"{fake.name}/app:1"), replace(ACCESS, chunk=100))


def test_header_without_end_is_refused(store: Store, fake: FakeRegistry) -> None:
    fake.rules.append(on("GET", "", Reply(200, {"X": "y" * 1_000_000})))
    refused(store, fake)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"tags": 5}', b'{"tags": [5]}', b" " * (MAX_DOCUMENT + 1)])
def test_tags_that_are_none(fake: FakeRegistry, body: bytes) -> None:
    fake.rules.append(on("GET", "tags", Reply(200, {}, body)))
    with pytest.raises(InvalidError):
        trio.run(tags, Reference.parse(f"{fake.name}/app"), ACCESS)


@pytest.mark.parametrize("location", ["", "http://registry.example.com/x", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_upload_to_no_place_is_refused(store: Store, fake: FakeRegistry, location: str) -> None:
    fake.rules.append(on("POST", "", Reply(202, {"Location": location} if location else {})))
    with pytest.raises(ImageError):
        trio.run(push, store, put(store, None, LAYER), Reference.parse(f"{fake.name}/app:1"), ACCESS)
    assert fake.manifests == {}


def test_manifest_that_the_registry_says_it_changed(store: Store, fake: FakeRegistry) -> None:
    fake.rules.append(on("PUT", "manifests", Reply(201, {"Docker-Content-Digest": digest_of(b"")})))
    with pytest.raises(ImageError, match="says that it keeps"):
        trio.run(push, store, put(store, None, LAYER), Reference.parse(f"{fake.name}/app:1"), ACCESS)


def test_layers_and_configuration_must_agree(store: Store, fake: FakeRegistry, image: Image) -> None:
    changed = document(fake, image)
    changed["layers"] *= 2
    publish(fake, changed)
    refused(store, fake, match="2 layers, its configuration 1")
    assert isinstance(image.manifest, Manifest) and image.manifest.layers[0].media_type.startswith(OCI_LAYER)
