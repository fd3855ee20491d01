"""Pull and push against a registry in this process: what is sent, what is not, and what happens after faults."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import replace

import msgspec
import pytest
import trio

from overlayfs.image.oci.digest import digest_of, hex_of
from overlayfs.image.oci.documents import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Platform, dump
from overlayfs.image.oci.errors import DigestError, ImageError, NotFoundError, RegistryError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.registry.endpoints import Registries, Section
from overlayfs.image.registry.retrying import Retrying
from overlayfs.image.registry.transfer import Access, pull, push, tags
from overlayfs.image.store.store import Image, Store
from tests.image.making import put, tar, whole
from tests.image.registry.fake_registry import (
    FakeRegistry,
    Reply,
    Request,
    error,
    on,
    once,
    serving,
    times,
)

NOISE = random.Random(4).randbytes(300_000)  # does not compress
LAYERS = (tar({"etc/os": b"debian", "noise": NOISE}), tar({"etc/os": b"ours"}), tar({"b": b"c"}))


class Counting:
    """Watches work: the bytes that were done of each blob."""

    def __init__(self) -> None:
        self.done_of: dict[str, int] = {}
        self.size_of: dict[str, int | None] = {}

    def begin(self, what: str, total: int | None) -> CountingTask:
        self.done_of[what], self.size_of[what] = 0, total
        return CountingTask(self, what)


class CountingTask:
    def __init__(self, counting: Counting, what: str) -> None:
        self.counting, self.what = counting, what

    def advance(self, n: int) -> None:
        self.counting.done_of[self.what] += n

    def done(self, note: str = "") -> None:
        pass


class Waits:
    """Stands in for the clock: what would have been waited."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await trio.lowlevel.checkpoint()


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def access(waits: Waits) -> Access:
    return Access(insecure=True, retrying=Retrying(sleep=waits.sleep))


def name(fake: FakeRegistry, text: str = "app:1") -> Reference:
    return Reference.parse(f"{fake.name}/{text}")


def pulled(store: Store, reference: Reference, access: Access, **options: object) -> Image:
    return trio.run(lambda: pull(store, reference, options.get("platform"), access, all_platforms="all" in options))  # type: ignore[arg-type]


def staged(store: Store) -> list[str]:
    return os.listdir(store.path / "tmp")


# pull


def test_pull_brings_same_bytes_and_name_last(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(theirs, None, *LAYERS)
    fake.publish(theirs, image, "app", "1")
    got = pulled(store, name(fake), access)
    assert whole(store, got) == whole(theirs, image)
    assert got.reference == name(fake)
    assert store.find(f"{fake.name}/app:1").digest == image.digest
    assert staged(store) == []


def test_second_pull_fetches_no_blob(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    fake.publish(theirs, put(theirs, None, *LAYERS), "app", "1")
    pulled(store, name(fake), access)
    before = len(fake.sent("GET", "/blobs/"))
    pulled(store, name(fake), access)
    assert len(fake.sent("GET", "/blobs/")) == before == 4


def test_same_layer_twice_is_fetched_once(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    fake.publish(theirs, put(theirs, None, LAYERS[1], LAYERS[1]), "app", "1")
    got = pulled(store, name(fake), access)
    assert len(got.manifest.layers) == 2
    assert len(fake.sent("GET", "/blobs/")) == 2


def test_pull_by_digest(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(theirs, None, *LAYERS)
    fake.publish(theirs, image, "app")
    reference = name(fake, f"app@{image.digest}")
    assert pulled(store, reference, access).digest == image.digest
    assert store.find(str(reference)).digest == image.digest


def test_blob_that_breaks_off_is_continued(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access, waits: Waits
) -> None:
    image = put(theirs, None, LAYERS[0])
    fake.publish(theirs, image, "app", "1")
    layer = image.manifest.layers[0]
    data = fake.blobs[layer.digest]
    fake.rules.append(once(on("GET", layer.digest, Reply(200, {}, data, cut=100_000))))
    assert whole(store, pulled(store, name(fake), access)) == whole(theirs, image)
    assert [seen.headers.get("range") for seen in fake.sent("GET", layer.digest)] == [None, "bytes=100000-"]
    assert len(waits.asked) == 1


def test_blob_that_always_breaks_off_comes_in_many_parts(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access
) -> None:
    image = put(theirs, None, LAYERS[0])
    fake.publish(theirs, image, "app", "1")

    def cut(request: Request) -> Reply | None:
        reply = fake._blobs(request, "app", image.manifest.layers[0].digest)
        return replace(reply, cut=20_000) if request.path.endswith(image.manifest.layers[0].digest) else None

    fake.rules.append(cut)
    assert whole(store, pulled(store, name(fake), access)) == whole(theirs, image)
    assert len(fake.sent("GET", image.manifest.layers[0].digest)) > 10


def test_what_an_earlier_process_got_is_not_fetched_again(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access
) -> None:
    image = put(theirs, None, LAYERS[0])
    fake.publish(theirs, image, "app", "1")
    layer = image.manifest.layers[0]
    (store.path / "tmp" / f"partial-{hex_of(layer.digest)}").write_bytes(fake.blobs[layer.digest][:77_777])
    assert whole(store, pulled(store, name(fake), access)) == whole(theirs, image)
    assert [seen.headers.get("range") for seen in fake.sent("GET", layer.digest)] == ["bytes=77777-"]
    assert staged(store) == []


@pytest.mark.parametrize("left", [b"wrong" * 1000, b"x" * 10_000_000, NOISE])
def test_wrong_bytes_of_an_earlier_process_are_replaced(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access, left: bytes
) -> None:
    image = put(theirs, None, LAYERS[0])
    fake.publish(theirs, image, "app", "1")
    layer = image.manifest.layers[0]
    (store.path / "tmp" / f"partial-{hex_of(layer.digest)}").write_bytes(left[: layer.size + 1])
    assert whole(store, pulled(store, name(fake), access)) == whole(theirs, image)


def test_part_of_an_earlier_process_that_cannot_be_read_is_replaced(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = put(theirs, None, LAYERS[0])
    fake.publish(theirs, image, "app", "1")
    layer = image.manifest.layers[0]
    (store.path / "tmp" / f"partial-{hex_of(layer.digest)}").write_bytes(fake.blobs[layer.digest][:77_777])

    def refused(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refused)
        assert whole(store, pulled(store, name(fake), access)) == whole(theirs, image)


def test_registry_without_ranges_sends_all_again(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access
) -> None:
    image = put(theirs, None, LAYERS[0])
    fake.publish(theirs, image, "app", "1")
    layer = image.manifest.layers[0]
    data = fake.blobs[layer.digest]
    fake.rules.append(once(on("GET", layer.digest, Reply(200, {}, data, cut=100_000))))
    fake.rules.append(on("GET", layer.digest, Reply(200, {}, data)))
    assert whole(store, pulled(store, name(fake), access)) == whole(theirs, image)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(416),
        Reply(206, {"Content-Range": "bytes 0-5/6"}, b"wrong!"),
        Reply(206, {"Content-Range": "nonsense"}, b"wrong!"),
        Reply(206, {}, b"wrong!"),
    ],
)
def test_wrong_answer_to_a_range_begins_anew(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access, reply: Reply
) -> None:
    image = put(theirs, None, LAYERS[0])
    fake.publish(theirs, image, "app", "1")
    layer = image.manifest.layers[0]
    (store.path / "tmp" / f"partial-{hex_of(layer.digest)}").write_bytes(fake.blobs[layer.digest][:1000])
    fake.rules.append(once(on("GET", layer.digest, reply)))
    assert whole(store, pulled(store, name(fake), access)) == whole(theirs, image)


def test_blob_that_never_comes_is_given_up_and_kept_for_later(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access, waits: Waits
) -> None:
    image = put(theirs, None, LAYERS[0])
    fake.publish(theirs, image, "app", "1")
    layer = image.manifest.layers[0]
    data = fake.blobs[layer.digest]
    fake.rules.append(once(on("GET", layer.digest, Reply(200, {}, data, cut=1000))))
    # It says that it is closed: else another request could be sent on it meanwhile, and fail.
    never = Reply(206, {"Content-Range": f"bytes 1000-9/{layer.size}", "Connection": "close"}, b"", cut=0)
    fake.rules.append(on("GET", layer.digest, never))
    with pytest.raises(RegistryError, match=layer.digest):
        pulled(store, name(fake), access)
    assert staged(store) == [f"partial-{hex_of(layer.digest)}"]
    assert store.images() == []
    assert len(waits.asked) == 4


def test_busy_registry_is_asked_again(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access, waits: Waits
) -> None:
    image = put(theirs, None, LAYERS[1])
    fake.publish(theirs, image, "app", "1")
    fake.rules.append(once(on("GET", "manifests", Reply(429, {"Retry-After": "7"}))))
    fake.rules.append(times(2, on("GET", image.id, Reply(503))))
    fake.rules.append(once(on("GET", image.manifest.layers[0].digest, Reply(500))))
    assert pulled(store, name(fake), access).id == image.id
    assert waits.asked[0] == 7
    assert len(waits.asked) == 4


def test_busy_registry_is_not_asked_for_ever(store: Store, fake: FakeRegistry, access: Access, waits: Waits) -> None:
    fake.rules.append(on("GET", "manifests", error(503, "UNAVAILABLE", "out for lunch")))
    with pytest.raises(RegistryError, match="out for lunch") as raised:
        pulled(store, name(fake), access)
    assert raised.value.status == 503
    assert len(waits.asked) == 4
    assert waits.asked == sorted(waits.asked)


def test_registry_that_wants_an_hour_is_left_alone(
    store: Store, fake: FakeRegistry, access: Access, waits: Waits
) -> None:
    fake.rules.append(on("GET", "manifests", Reply(429, {"Retry-After": "3600"})))
    with pytest.raises(RegistryError, match="try again in 3600 s"):
        pulled(store, name(fake), access)
    assert waits.asked == []


def test_at_most_so_many_connections(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    layers = [tar({f"file{number}": NOISE}) for number in range(12)]
    fake.publish(theirs, put(theirs, None, *layers), "app", "1")
    registries = Registries({fake.name: Section(insecure=True, connections=3)})
    assert len(pulled(store, name(fake), replace(access, registries=registries)).manifest.layers) == 12
    assert 1 <= fake.most_under_way <= 3


def test_first_failure_ends_the_pull(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(theirs, None, *LAYERS)
    fake.publish(theirs, image, "app", "1")
    del fake.blobs[image.manifest.layers[1].digest]
    fake.repositories["app"].remove(image.manifest.layers[1].digest)
    with pytest.raises(NotFoundError, match=image.manifest.layers[1].digest):
        pulled(store, name(fake), access)
    assert store.images() == []


def test_unknown_tag_is_said(store: Store, fake: FakeRegistry, access: Access) -> None:
    with pytest.raises(NotFoundError, match=f"{fake.name}/app:1 is not there: manifest unknown"):
        pulled(store, name(fake), access)


def test_nobody_listens(store: Store, access: Access, waits: Waits) -> None:
    with serving() as gone:
        reference = name(gone)
    with pytest.raises(RegistryError, match="Connection refused"):
        pulled(store, reference, access)
    assert waits.asked == []


def make_index(theirs: Store, fake: FakeRegistry, *platforms: Platform) -> dict[Platform, Image]:
    images = {}
    members = []
    for platform in platforms:
        image = put(theirs, None, tar({"arch": platform.architecture.encode()}), variant=platform.variant)
        fake.publish(theirs, image, "app")
        images[platform] = image
        members.append(msgspec.structs.replace(image.descriptor, platform=platform))
    attestation = Descriptor(OCI_MANIFEST, digest_of(b"?"), 1, platform=Platform("unknown", "unknown"))
    data = dump(Index(2, [*members, attestation], OCI_INDEX))
    for version in ("1", digest_of(data)):
        fake.manifests["app", version] = (OCI_INDEX, data)
    return images


AMD, ARM = Platform("amd64", "linux"), Platform("arm64", "linux", "v8")


def test_index_gives_this_machines_image(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    images = make_index(theirs, fake, ARM, AMD)
    machine = {"x86_64": AMD, "aarch64": ARM}[os.uname().machine]
    assert pulled(store, name(fake), access).id == images[machine].id


def test_index_gives_the_platform_asked_for(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    images = make_index(theirs, fake, ARM, AMD)
    assert pulled(store, name(fake), access, platform=Platform("arm64", "linux")).id == images[ARM].id
    with pytest.raises(NotFoundError, match="linux/s390x; there is linux/arm64/v8, linux/amd64"):
        pulled(store, name(fake), access, platform=Platform("s390x", "linux"))


def test_whole_index_is_pulled_and_pushed(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    images = make_index(theirs, fake, ARM, AMD)
    index = msgspec.json.decode(fake.manifests["app", "1"][1], type=Index)
    data = dump(msgspec.structs.replace(index, manifests=index.manifests[:2]))
    fake.manifests["app", "1"] = (OCI_INDEX, data)
    image = pulled(store, name(fake), access, all=True)
    assert image.digest == digest_of(data)
    with serving() as other:
        pushed = trio.run(push, store, image, name(other, "copy:2"), access)
        assert pushed.descriptor.digest == digest_of(data)
        assert other.manifests["copy", "2"] == (OCI_INDEX, data)
        assert {("copy", image.digest) for image in images.values()} <= other.manifests.keys()


def test_mirror_is_asked_first_and_the_registry_for_what_it_lacks(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access
) -> None:
    image = put(theirs, None, *LAYERS)
    fake.publish(theirs, image, "app", "1")
    with serving() as mirror:
        mirror.publish(theirs, image, "cache/app", "1")
        lacking = image.manifest.layers[0].digest
        mirror.repositories["cache/app"].remove(lacking)
        mirrors = Registries({fake.name: Section(mirrors=[f"{mirror.url}/cache"], insecure=True)})
        got = pulled(store, name(fake), replace(access, registries=mirrors))
    assert whole(store, got) == whole(theirs, image)
    assert [seen.path for seen in fake.sent("GET", "/app/")] == [f"/v2/app/blobs/{lacking}"]


def test_dead_or_lying_mirror_is_passed_over(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(theirs, None, *LAYERS)
    fake.publish(theirs, image, "app", "1")
    with serving() as gone:
        dead = gone.url
    with serving() as liar:
        liar.publish(theirs, image, "app", "1")
        liar.blobs = {digest: bytes(len(data)) for digest, data in liar.blobs.items()}
        mirrors = Registries({fake.name: Section(mirrors=[dead, liar.url], insecure=True)})
        got = pulled(store, name(fake), replace(access, registries=mirrors))
    assert whole(store, got) == whole(theirs, image)


def test_two_pulls_at_once_fetch_each_blob_once(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access
) -> None:
    image = put(theirs, None, *LAYERS)
    fake.publish(theirs, image, "app", "1")

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(pull, store, name(fake), None, replace(access, retrying=Retrying()))

    trio.run(both)
    assert len(fake.sent("GET", "/blobs/")) == 4
    assert staged(store) == []


def test_progress_counts_each_byte_once(store: Store, theirs: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(theirs, None, *LAYERS)
    fake.publish(theirs, image, "app", "1")
    layer = image.manifest.layers[0]
    with serving() as mirror:
        mirror.publish(theirs, image, "app", "1")
        mirror.rules.append(on("GET", layer.digest, Reply(200, {}, mirror.blobs[layer.digest], cut=100_000)))
        registries = Registries({fake.name: Section(mirrors=[mirror.url], insecure=True)})
        counting = Counting()
        how = replace(access, registries=registries)
        got = trio.run(lambda: pull(store, name(fake), None, how, progress=counting))
        assert counting.done_of == counting.size_of
        assert len(counting.size_of) == 4
    with serving() as other:
        other.rules.append(lambda request: keep_half(other, request))
        counting = Counting()
        trio.run(push, store, got, name(other), replace(access, chunk=100_000), counting)
        assert counting.done_of == counting.size_of


# push


def test_push_sends_same_bytes(store: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(store, None, *LAYERS)
    pushed = trio.run(push, store, image, name(fake), access)
    assert fake.manifests["app", "1"][1] == store.read_blob(image.descriptor)
    assert fake.blobs == {digest: data for digest, data in whole(store, image).items() if digest != image.digest}
    assert pushed.counts == {"sent": 4, "mounted": 0, "exists": 0}
    assert fake.sent("PUT")[-1].path == "/v2/app/manifests/1"


def test_what_is_there_is_not_sent(store: Store, fake: FakeRegistry, access: Access) -> None:
    trio.run(push, store, put(store, None, *LAYERS[:2]), name(fake), access)
    pushed = trio.run(push, store, put(store, None, *LAYERS), name(fake, "app:2"), access)
    assert pushed.counts == {"sent": 2, "mounted": 0, "exists": 2}


def test_layers_of_another_repository_are_mounted(store: Store, fake: FakeRegistry, access: Access) -> None:
    base = put(store, f"{fake.name}/base:1", *LAYERS[:2])
    trio.run(push, store, base, name(fake, "base:1"), access)
    pushed = trio.run(push, store, put(store, None, *LAYERS), name(fake), access)
    assert pushed.counts == {"sent": 2, "mounted": 2, "exists": 0}


def test_refused_mount_becomes_an_upload(store: Store, fake: FakeRegistry, access: Access) -> None:
    put(store, f"{fake.name}/base:1", *LAYERS[:2])  # named so, but never pushed
    pushed = trio.run(push, store, put(store, None, *LAYERS), name(fake), access)
    assert pushed.counts == {"sent": 4, "mounted": 0, "exists": 0}
    assert len(fake.sent("POST")) == 4


def test_mount_that_is_forbidden_becomes_an_upload(store: Store, fake: FakeRegistry, access: Access) -> None:
    put(store, f"{fake.name}/private:1", *LAYERS[:2])
    fake.rules.append(lambda request: error(403, "DENIED", "not yours") if "mount" in request.query else None)
    pushed = trio.run(push, store, put(store, None, *LAYERS), name(fake), access)
    assert pushed.counts == {"sent": 4, "mounted": 0, "exists": 0}


def test_large_blob_goes_in_chunks(store: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(store, None, LAYERS[0])
    trio.run(push, store, image, name(fake), replace(access, chunk=100_000))
    assert fake.blobs[image.manifest.layers[0].digest] == store.read_blob(image.manifest.layers[0])
    assert [len(seen.body) for seen in fake.sent("PATCH")] == [100_000] * 3
    assert [seen.headers["content-range"] for seen in fake.sent("PATCH")][1] == "100000-199999"


def keep_half(fake: FakeRegistry, request: Request) -> Reply | None:
    """As a connection that is cut in the middle of a chunk leaves it."""
    session = request.path.rpartition("/")[2]
    if request.method == "PATCH" and len(fake.uploads[session]) == 100_000:
        fake.uploads[session] += request.body[:40_000]
        raise ConnectionResetError
    return None


def test_upload_goes_on_where_the_registry_has_it(
    store: Store, fake: FakeRegistry, access: Access, waits: Waits
) -> None:
    image = put(store, None, LAYERS[0])
    fake.rules.append(lambda request: keep_half(fake, request))
    trio.run(push, store, image, name(fake), replace(access, chunk=100_000))
    assert fake.blobs[image.manifest.layers[0].digest] == store.read_blob(image.manifest.layers[0])
    assert [seen.headers["content-range"] for seen in fake.sent("PATCH")][2] == "140000-239999"
    assert len(waits.asked) == 1


@pytest.mark.parametrize("reply", [Reply(202, {"Range": "0-5"}), Reply(416), Reply(500), Reply(404), Reply(202)])
def test_chunk_that_is_answered_wrongly_is_asked_about(
    store: Store, fake: FakeRegistry, access: Access, reply: Reply
) -> None:
    image = put(store, None, LAYERS[0])
    fake.rules.append(once(on("PATCH", "", reply)))
    trio.run(push, store, image, name(fake), replace(access, chunk=100_000))
    assert fake.blobs[image.manifest.layers[0].digest] == store.read_blob(image.manifest.layers[0])


def test_lost_session_begins_anew(store: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(store, None, LAYERS[0])

    def forget(request: Request) -> Reply | None:
        if request.method != "PATCH" or not request.headers["content-range"].startswith("100000"):
            return None
        fake.uploads.pop(request.path.rpartition("/")[2])
        return Reply(404)

    fake.rules.append(once(forget))
    trio.run(push, store, image, name(fake), replace(access, chunk=100_000))
    assert fake.blobs[image.manifest.layers[0].digest] == store.read_blob(image.manifest.layers[0])


def test_registry_that_always_loses_the_session_is_given_up(store: Store, fake: FakeRegistry, access: Access) -> None:
    def forget(request: Request) -> Reply | None:
        if request.method == "PATCH" and request.headers["content-range"].startswith("100000"):
            fake.uploads.clear()
        return None

    fake.rules.append(forget)
    with pytest.raises(ImageError, match="upload unknown"):
        trio.run(push, store, put(store, None, LAYERS[0]), name(fake), replace(access, chunk=100_000))


def test_blob_that_never_gets_further_is_given_up(
    store: Store, theirs: Store, fake: FakeRegistry, access: Access
) -> None:
    image = put(theirs, None, LAYERS[0])
    fake.publish(theirs, image, "app", "1")
    layer = image.manifest.layers[0]
    data = fake.blobs[layer.digest]

    def only_the_start(request: Request) -> Reply | None:
        if not request.path.endswith(layer.digest):
            return None
        return Reply(416) if "range" in request.headers else Reply(200, {}, data, cut=1000)

    fake.rules.append(only_the_start)
    with pytest.raises(RegistryError, match=layer.digest):
        pulled(store, name(fake), access)


def test_upload_that_always_fails_is_given_up(store: Store, fake: FakeRegistry, access: Access, waits: Waits) -> None:
    image = put(store, None, LAYERS[0])
    fake.rules.append(on("PATCH", "", error(500, "UNKNOWN", "disk full")))
    with pytest.raises(RegistryError, match="disk full"):
        trio.run(push, store, image, name(fake), replace(access, chunk=100_000))
    assert not fake.sent("PUT", "manifests")
    assert waits.asked


def test_answer_lost_after_the_last_byte_is_no_failure(store: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(store, None, LAYERS[0])
    layer = image.manifest.layers[0]

    def take_and_hang_up(request: Request) -> Reply | None:
        if request.method == "PUT" and request.query.get("digest") == layer.digest and layer.digest not in fake.blobs:
            fake._blobs_uploads(request, "app", request.path.rpartition("/")[2])
            raise ConnectionResetError
        return None

    fake.rules.append(take_and_hang_up)
    trio.run(push, store, image, name(fake), access)
    assert len(fake.sent("PUT", "uploads")) == 2


def test_damaged_blob_of_the_store_is_not_published(store: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(store, None, LAYERS[1])
    layer = image.manifest.layers[0]
    store.blob_path(layer.digest).write_bytes(b"x" * layer.size)
    with pytest.raises(ImageError, match=layer.digest):
        trio.run(push, store, image, name(fake), access)
    store.blob_path(layer.digest).write_bytes(b"x")
    with pytest.raises(DigestError, match=layer.digest):
        trio.run(push, store, image, name(fake), access)
    assert fake.manifests == {}


def test_push_under_a_wrong_digest_is_refused(store: Store, fake: FakeRegistry, access: Access) -> None:
    image = put(store, None, LAYERS[1])
    with pytest.raises(ImageError, match=image.digest):
        trio.run(push, store, image, name(fake, f"app@{digest_of(b'')}"), access)
    assert fake.requests == [] or fake.sent("PUT") == []


# tags


def test_tags_of_all_pages(store: Store, fake: FakeRegistry, access: Access) -> None:
    fake.publish(store, put(store, None, LAYERS[1]), "app", *"edcba")
    assert trio.run(tags, name(fake), access) == ["a", "b", "c", "d", "e"]


def test_pages_without_end_end(fake: FakeRegistry, access: Access) -> None:
    def answer(request: Request) -> Reply | None:
        link = f'</v2/app/tags/list?page={len(fake.requests)}>; rel="next"'
        return Reply(200 if len(fake.requests) < 20 else 400, {"Link": link}, b'{"tags": ["a"]}')

    fake.rules.append(answer)
    assert trio.run(tags, name(fake), access) == ["a"]


@pytest.mark.parametrize("link", ["/v2/app/tags/list?n=1000", "https://elsewhere.example/v2/app/tags/list"])
def test_pages_that_lead_nowhere_end(fake: FakeRegistry, access: Access, link: str) -> None:
    body = b'{"name": "app", "tags": ["a"]}'
    fake.rules.append(on("GET", "tags", Reply(200, {"Link": f'<{link}>; rel="next"'}, body)))
    if link.startswith("/"):
        assert trio.run(tags, name(fake), access) == ["a"]
    else:
        with pytest.raises(RegistryError, match=r"elsewhere\.example"):
            trio.run(tags, name(fake), access)
